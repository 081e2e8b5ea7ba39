//! 2 bits; groups of 16 with a 4-bit scale and a 4-bit minimum: `w = (d * sc) * q - (dmin * m)`.
//! Source: ggml's `block_q2_K`.

use super::{Unpacked, search_min};
use crate::DType;
use bytemuck::{Pod, Zeroable};
use half::f16;

/// One block: 256 elements in 84 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Block {
    /// For each 16 elements the scale in the low half, the minimum in the high half.
    pub scales: [u8; 16],
    /// 2-bit integers: of element 128 h + 32 s + i in bits 2 s of byte 32 h + i.
    pub qs: [u8; 64],
    /// Scale of the scales, f16.
    pub d: [u8; 2],
    /// Scale of the minima, f16.
    pub dmin: [u8; 2],
}

const _: () = assert!(size_of::<Block>() == DType::Q2_K.block_bytes() && align_of::<Block>() == 1);

/// Unpacks a block.
pub fn unpack(b: &Block, out: &mut Unpacked) {
    let [d, dmin] = [b.d, b.dmin].map(|h| f16::from_le_bytes(h).to_f32());
    for (g, sc) in b.scales.into_iter().enumerate() {
        let m = dmin * f32::from(sc >> 4);
        out.set_run(g, 16, d * f32::from(sc & 15), -m);
    }
    for (half, qs) in b.qs.chunks_exact(32).enumerate() {
        for s in 0..4 {
            for (i, byte) in qs.iter().enumerate() {
                out.q[128 * half + 32 * s + i] = (byte >> (2 * s) & 3) as i8;
            }
        }
    }
}

/// Encodes 256 finite elements, with a search for the scales: not ggml's bytes, but no worse.
pub fn encode(x: &[f32; 256]) -> Block {
    let e = search_min::encode::<16>(x, 3, 15);
    Block {
        scales: core::array::from_fn(|g| e.scales[g] | e.mins[g] << 4),
        qs: core::array::from_fn(|k| {
            let q = |s: usize| e.q[128 * (k / 32) + 32 * s + k % 32] << (2 * s);
            q(0) | q(1) | q(2) | q(3)
        }),
        d: e.d.to_le_bytes(),
        dmin: e.dmin.to_le_bytes(),
    }
}

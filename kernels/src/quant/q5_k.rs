//! 5 bits; groups of 32 with a 6-bit scale and a 6-bit minimum:
//! `w = (d * sc) * q - (dmin * m)`. Source: ggml's `block_q5_K`.

pub use super::kscales::unpack_scales;
use super::{Unpacked, kscales::pack_scales, search_min};
use crate::DType;
use bytemuck::{Pod, Zeroable};
use half::f16;

/// One block: 256 elements in 176 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Block {
    /// Scale of the scales, f16.
    pub d: [u8; 2],
    /// Scale of the minima, f16.
    pub dmin: [u8; 2],
    /// Scales and minima, see [`unpack_scales`].
    pub scales: [u8; 12],
    /// Fifth bits: of element 32 j + i in bit j of byte i.
    pub qh: [u8; 32],
    /// Low 4 bits: of element 64 j + i in the low half of byte 32 j + i, of element 64 j + 32 + i
    /// in the high half.
    pub qs: [u8; 128],
}

const _: () = assert!(size_of::<Block>() == DType::Q5_K.block_bytes() && align_of::<Block>() == 1);

/// Unpacks a block.
pub fn unpack(b: &Block, out: &mut Unpacked) {
    let [d, dmin] = [b.d, b.dmin].map(|h| f16::from_le_bytes(h).to_f32());
    let (sc, m) = unpack_scales(&b.scales);
    for g in 0..8 {
        let m = dmin * f32::from(m[g]);
        out.set_run(g, 32, d * f32::from(sc[g]), -m);
    }
    for (j, qs) in b.qs.chunks_exact(32).enumerate() {
        for (i, byte) in qs.iter().enumerate() {
            let high = |j: usize| (b.qh[i] >> j & 1) << 4;
            out.q[64 * j + i] = (byte & 15 | high(2 * j)) as i8;
            out.q[64 * j + 32 + i] = (byte >> 4 | high(2 * j + 1)) as i8;
        }
    }
}

/// Encodes 256 finite elements, with a search for the scales: not ggml's bytes, but no worse.
pub fn encode(x: &[f32; 256]) -> Block {
    let e = search_min::encode::<8>(x, 31, 63);
    let q = |j: usize, i: usize| e.q[32 * j + i];
    Block {
        d: e.d.to_le_bytes(),
        dmin: e.dmin.to_le_bytes(),
        scales: pack_scales(&e.scales, &e.mins),
        qh: core::array::from_fn(|i| (0..8).fold(0, |bits, j| bits | q(j, i) >> 4 << j)),
        qs: core::array::from_fn(|k| {
            let (j, i) = (k / 32, k % 32);
            q(2 * j, i) & 15 | q(2 * j + 1, i) << 4
        }),
    }
}

//! 3 bits; groups of 16 with a 6-bit signed scale: `w = (d * (sc - 32)) * (q - 4)`.
//! Source: ggml's `block_q3_K`.

use super::{NO_MIN, Unpacked, search_signed};
use crate::DType;
use bytemuck::{Pod, Zeroable};
use half::f16;

/// One block: 256 elements in 110 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Block {
    /// Third bits: of element 32 j + i in bit j of byte i.
    pub hmask: [u8; 32],
    /// Low 2 bits: of element 128 h + 32 s + i in bits 2 s of byte 32 h + i.
    pub qs: [u8; 64],
    /// Scales: see [`unpack_scales`].
    pub scales: [u8; 12],
    /// Scale of the scales, f16.
    pub d: [u8; 2],
}

const _: () = assert!(size_of::<Block>() == DType::Q3_K.block_bytes() && align_of::<Block>() == 1);

/// Unpacks a block.
pub fn unpack(b: &Block, out: &mut Unpacked) {
    let d = f16::from_le_bytes(b.d).to_f32();
    for (g, sc) in unpack_scales(&b.scales).into_iter().enumerate() {
        out.set_run(g, 16, d * f32::from(sc), NO_MIN);
    }
    for j in 0..8 {
        for i in 0..32 {
            let low = b.qs[32 * (j / 4) + i] >> (2 * (j % 4)) & 3;
            let high = b.hmask[i] >> j & 1;
            out.q[32 * j + i] = (low | high << 2) as i8 - 4;
        }
    }
}

/// The 16 scales, less their offset of 32. Low 4 bits: scale j in the low half of byte j, scale
/// 8 + j in the high half. High 2 bits: of scale 4 k + j in bits 2 k of byte 8 + j.
pub fn unpack_scales(packed: &[u8; 12]) -> [i8; 16] {
    core::array::from_fn(|g| {
        let low = packed[g % 8] >> (4 * (g / 8)) & 15;
        let high = packed[8 + g % 4] >> (2 * (g / 4)) & 3;
        (low | high << 4) as i8 - 32
    })
}

/// Packs what [`unpack_scales`] unpacks; every scale is from -32 to 31.
fn pack_scales(scales: &[i8; 16]) -> [u8; 12] {
    let mut packed = [0; 12];
    for (g, sc) in scales.iter().enumerate() {
        let sc = (sc + 32) as u8;
        packed[g % 8] |= (sc & 15) << (4 * (g / 8));
        packed[8 + g % 4] |= sc >> 4 << (2 * (g / 4));
    }
    packed
}

/// Encodes 256 finite elements, with a search for the scales: not ggml's bytes, but no worse.
pub fn encode(x: &[f32; 256]) -> Block {
    let e = search_signed::encode(x, -4, -32);
    let q = |j: usize, i: usize| (e.q[32 * j + i] + 4) as u8;
    Block {
        hmask: core::array::from_fn(|i| (0..8).fold(0, |bits, j| bits | q(j, i) >> 2 << j)),
        qs: core::array::from_fn(|k| {
            let low = |s: usize| (q(4 * (k / 32) + s, k % 32) & 3) << (2 * s);
            low(0) | low(1) | low(2) | low(3)
        }),
        scales: pack_scales(&e.scales),
        d: e.d.to_le_bytes(),
    }
}

//! 1.75 bits: points of 8 values -1, 0 or 1 from a grid of 2048, each moved by an eighth up or
//! down; groups of 16 with a 3-bit scale: `w = d * (2 sc + 1) * (grid +- 1/8)`.
//! Source: ggml's `block_iq1_m`.
//!
//! Unpacked, integers are 8 times as large and scales an eighth, so that the shift is part of the
//! integer; both changes are exact.

use super::grids;
use super::{NO_MIN, Unpacked};
use crate::DType;
use bytemuck::{Pod, Zeroable};
use half::f16;

/// One block: 256 elements in 56 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Block {
    /// Low 8 bits of the grid indices, one for 8 elements.
    pub qs: [u8; 32],
    /// For each 8 elements 4 bits, the low half first: 3 high bits of the grid index and, at the
    /// top, whether the shift is down.
    pub qh: [u8; 16],
    /// Four little-endian u16: each holds, from the low end, four 3-bit scales and 4 bits of the
    /// f16 scale of the scales, of which the first u16 holds the lowest.
    pub scales: [u8; 8],
}

const _: () = assert!(size_of::<Block>() == DType::IQ1_M.block_bytes() && align_of::<Block>() == 1);

/// Unpacks a block.
pub fn unpack(b: &Block, out: &mut Unpacked) {
    let scales = [0, 2, 4, 6].map(|i| u16::from_le_bytes([b.scales[i], b.scales[i + 1]]));
    let d = f16::from_bits(
        scales[0] >> 12 | scales[1] >> 12 << 4 | scales[2] >> 12 << 8 | scales[3] >> 12 << 12,
    );
    for g in 0..16 {
        let sc = scales[g / 4] >> (3 * (g % 4)) & 7;
        out.set_run(g, 16, d.to_f32() * f32::from(2 * sc + 1) * 0.125, NO_MIN);
    }
    for k in 0..32 {
        let packed = b.qh[k / 2] >> (4 * (k % 2)) & 15;
        let point = grids::IQ1_S[usize::from(b.qs[k]) | usize::from(packed & 7) << 8];
        let shift = if packed & 8 == 0 { 1 } else { -1 };
        out.q[8 * k..][..8].copy_from_slice(&point.map(|q| q + shift));
    }
}

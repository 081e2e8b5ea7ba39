//! 1.6 bits: points of 8 values -1, 0 or 1 from a grid of 2048, moved together by an eighth up or
//! down; groups of 32 with a 3-bit scale: `w = d * (2 sc + 1) * (grid +- 1/8)`.
//! Source: ggml's `block_iq1_s`.
//!
//! Unpacked, integers are 8 times as large and scales an eighth, so that the shift is part of the
//! integer; both changes are exact.

use super::grids;
use super::{NO_MIN, Unpacked};
use crate::DType;
use bytemuck::{Pod, Zeroable};
use half::f16;

/// One block: 256 elements in 50 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Block {
    /// Scale of the scales, f16.
    pub d: [u8; 2],
    /// Low 8 bits of the grid indices, one for 8 elements.
    pub qs: [u8; 32],
    /// For each 32 elements a little-endian u16: from the low end four times 3 high bits of grid
    /// indices, the 3-bit scale, and whether the shift is down.
    pub qh: [u8; 16],
}

const _: () = assert!(size_of::<Block>() == DType::IQ1_S.block_bytes() && align_of::<Block>() == 1);

/// Unpacks a block.
pub fn unpack(b: &Block, out: &mut Unpacked) {
    let d = f16::from_le_bytes(b.d).to_f32();
    for (g, packed) in b.qh.as_chunks::<2>().0.iter().enumerate() {
        let packed = u16::from_le_bytes(*packed);
        let sc = packed >> 12 & 7;
        out.set_run(g, 32, d * f32::from(2 * sc + 1) * 0.125, NO_MIN);
        let shift = if packed & 0x8000 == 0 { 1 } else { -1 };
        for k in 4 * g..4 * g + 4 {
            let high = usize::from(packed >> (3 * (k % 4)) & 7);
            let point = grids::IQ1_S[usize::from(b.qs[k]) | high << 8];
            out.q[8 * k..][..8].copy_from_slice(&point.map(|q| q + shift));
        }
    }
}

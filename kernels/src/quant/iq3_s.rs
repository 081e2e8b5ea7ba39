//! 3.4 bits: points of 4 magnitudes from a grid of 512, with signs; groups of 32 with a 4-bit
//! scale: `w = d * (2 sc + 1) * (+-grid)`. Source: ggml's `block_iq3_s`.

use super::grids::{self, apply_signs};
use super::{NO_MIN, Unpacked};
use crate::DType;
use bytemuck::{Pod, Zeroable};
use half::f16;

/// One block: 256 elements in 110 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Block {
    /// Scale of the scales, f16.
    pub d: [u8; 2],
    /// Low 8 bits of the grid indices, one for 4 elements.
    pub qs: [u8; 64],
    /// Ninth bits of the grid indices: of point 8 j + k in bit k of byte j.
    pub qh: [u8; 8],
    /// Signs, one bit an element.
    pub signs: [u8; 32],
    /// Scales: of 32 elements in each half, the low half first.
    pub scales: [u8; 4],
}

const _: () = assert!(size_of::<Block>() == DType::IQ3_S.block_bytes() && align_of::<Block>() == 1);

/// Unpacks a block.
pub fn unpack(b: &Block, out: &mut Unpacked) {
    let d = f16::from_le_bytes(b.d).to_f32();
    for g in 0..8 {
        let sc = b.scales[g / 2] >> (4 * (g % 2)) & 15;
        out.set_run(g, 32, d * f32::from(1 + 2 * sc), NO_MIN);
    }
    for k in 0..64 {
        let high = usize::from(b.qh[k / 8] >> (k % 8) & 1);
        let point = grids::IQ3_S[usize::from(b.qs[k]) | high << 8];
        let signs = b.signs[k / 2] >> (4 * (k % 2));
        out.q[4 * k..][..4].copy_from_slice(&apply_signs(point, signs));
    }
}

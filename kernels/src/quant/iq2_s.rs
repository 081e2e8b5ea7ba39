//! 2.5 bits: points of 8 magnitudes from a grid of 1024, with signs; groups of 16 with a 4-bit
//! scale: `w = d / 4 * (sc + 1/2) * (+-grid)`. Source: ggml's `block_iq2_s`.

use super::grids::{self, apply_signs};
use super::{NO_MIN, Unpacked};
use crate::DType;
use bytemuck::{Pod, Zeroable};
use half::f16;

/// One block: 256 elements in 82 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Block {
    /// Scale of the scales, f16.
    pub d: [u8; 2],
    /// Low 8 bits of the grid indices, one for 8 elements.
    pub qs: [u8; 32],
    /// Signs, one bit an element.
    pub signs: [u8; 32],
    /// High 2 bits of the grid indices: of point 4 j + k in bits 2 k of byte j.
    pub qh: [u8; 8],
    /// Scales: of 16 elements in each half, the low half first.
    pub scales: [u8; 8],
}

const _: () = assert!(size_of::<Block>() == DType::IQ2_S.block_bytes() && align_of::<Block>() == 1);

/// Unpacks a block.
pub fn unpack(b: &Block, out: &mut Unpacked) {
    let d = f16::from_le_bytes(b.d).to_f32();
    for g in 0..16 {
        let sc = b.scales[g / 2] >> (4 * (g % 2)) & 15;
        out.set_run(g, 16, d * (0.5 + f32::from(sc)) * 0.25, NO_MIN);
    }
    for k in 0..32 {
        let high = usize::from(b.qh[k / 4] >> (2 * (k % 4)) & 3);
        let point = grids::IQ2_S[usize::from(b.qs[k]) | high << 8];
        out.q[8 * k..][..8].copy_from_slice(&apply_signs(point, b.signs[k]));
    }
}

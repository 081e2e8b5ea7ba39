//! 3.06 bits: points of 4 magnitudes from a grid of 256, with signs; groups of 32 with a 4-bit
//! scale: `w = d / 2 * (sc + 1/2) * (+-grid)`. Source: ggml's `block_iq3_xxs`.

use super::grids::{self, apply_signs, even_signs};
use super::{NO_MIN, Unpacked};
use crate::DType;
use bytemuck::{Pod, Zeroable};
use half::f16;

/// One block: 256 elements in 98 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Block {
    /// Scale of the scales, f16.
    pub d: [u8; 2],
    /// Grid indices, one for 4 elements.
    pub qs: [u8; 64],
    /// For each 32 elements a little-endian u32 of four 7-bit signs and, at the top, the 4-bit
    /// scale.
    pub scales_and_signs: [u8; 32],
}

const _: () =
    assert!(size_of::<Block>() == DType::IQ3_XXS.block_bytes() && align_of::<Block>() == 1);

/// Unpacks a block.
pub fn unpack(b: &Block, out: &mut Unpacked) {
    let d = f16::from_le_bytes(b.d).to_f32();
    for (g, packed) in b.scales_and_signs.as_chunks::<4>().0.iter().enumerate() {
        let packed = u32::from_le_bytes(*packed);
        out.set_run(g, 32, d * (0.5 + (packed >> 28) as f32) * 0.5, NO_MIN);
        for k in 0..4 {
            let signs = even_signs((packed >> (7 * k) & 127) as u8);
            let at = 8 * g + 2 * k;
            let points = [b.qs[at], b.qs[at + 1]].map(|i| grids::IQ3_XXS[usize::from(i)]);
            out.q[4 * at..][..4].copy_from_slice(&apply_signs(points[0], signs));
            out.q[4 * at + 4..][..4].copy_from_slice(&apply_signs(points[1], signs >> 4));
        }
    }
}

//! 2.06 bits: points of 8 magnitudes from a grid of 256, with signs; groups of 32 with a 4-bit
//! scale: `w = d / 4 * (sc + 1/2) * (+-grid)`. Source: ggml's `block_iq2_xxs`.

use super::grids::{self, apply_signs, even_signs};
use super::{NO_MIN, Unpacked};
use crate::DType;
use bytemuck::{Pod, Zeroable};
use half::f16;

/// One block: 256 elements in 66 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Block {
    /// Scale of the scales, f16.
    pub d: [u8; 2],
    /// For each 32 elements, 8 bytes: 4 grid indices, then a little-endian u32 of four 7-bit signs
    /// and, at the top, the 4-bit scale.
    pub qs: [u8; 64],
}

const _: () =
    assert!(size_of::<Block>() == DType::IQ2_XXS.block_bytes() && align_of::<Block>() == 1);

/// Unpacks a block.
pub fn unpack(b: &Block, out: &mut Unpacked) {
    let d = f16::from_le_bytes(b.d).to_f32();
    for (g, packed) in b.qs.as_chunks::<8>().0.iter().enumerate() {
        let [i0, i1, i2, i3, rest @ ..] = *packed;
        let rest = u32::from_le_bytes(rest);
        out.set_run(g, 32, d * (0.5 + (rest >> 28) as f32) * 0.25, NO_MIN);
        for (k, index) in [i0, i1, i2, i3].into_iter().enumerate() {
            let signs = even_signs((rest >> (7 * k) & 127) as u8);
            let point = grids::IQ2_XXS[usize::from(index)];
            out.q[32 * g + 8 * k..][..8].copy_from_slice(&apply_signs(point, signs));
        }
    }
}

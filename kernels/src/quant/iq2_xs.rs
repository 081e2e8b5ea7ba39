//! 2.3 bits: points of 8 magnitudes from a grid of 512, with signs; groups of 16 with a 4-bit
//! scale: `w = d / 4 * (sc + 1/2) * (+-grid)`. Source: ggml's `block_iq2_xs`.

use super::grids::{self, apply_signs, even_signs};
use super::{NO_MIN, Unpacked};
use crate::DType;
use bytemuck::{Pod, Zeroable};
use half::f16;

/// One block: 256 elements in 74 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Block {
    /// Scale of the scales, f16.
    pub d: [u8; 2],
    /// For each 8 elements a little-endian u16: 9 bits of grid index, then 7 bits of signs.
    pub qs: [u8; 64],
    /// Scales: of 16 elements in each half, the low half first.
    pub scales: [u8; 8],
}

const _: () =
    assert!(size_of::<Block>() == DType::IQ2_XS.block_bytes() && align_of::<Block>() == 1);

/// Unpacks a block.
pub fn unpack(b: &Block, out: &mut Unpacked) {
    let d = f16::from_le_bytes(b.d).to_f32();
    for g in 0..16 {
        let sc = b.scales[g / 2] >> (4 * (g % 2)) & 15;
        out.set_run(g, 16, d * (0.5 + f32::from(sc)) * 0.25, NO_MIN);
    }
    for (k, packed) in b.qs.as_chunks::<2>().0.iter().enumerate() {
        let packed = u16::from_le_bytes(*packed);
        let point = grids::IQ2_XS[usize::from(packed & 511)];
        let signs = even_signs((packed >> 9) as u8);
        out.q[8 * k..][..8].copy_from_slice(&apply_signs(point, signs));
    }
}

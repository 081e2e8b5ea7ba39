//! 4-bit floats (e2m1) with a power of two for 32 elements: `w = 2^(e - 128) * LEVELS[q]`.
//! Source: ggml's `block_mxfp4`; the OCP Microscaling Formats specification 1.0.

use super::{NO_MIN, Unpacked};
use crate::DType;
use bytemuck::{Pod, Zeroable};

/// Twice the values of the 16 codes. Source: ggml's `kvalues_mxfp4`. Negative zero reads as zero.
pub const LEVELS: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// One block: 32 elements in 17 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Block {
    /// Exponent, e8m0: biased by 127.
    pub e: [u8; 1],
    /// 4-bit integers: element i in the low half of byte i, element 16 + i in the high half.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<Block>() == DType::MXFP4.block_bytes() && align_of::<Block>() == 1);

/// Unpacks a block.
pub fn unpack(b: &Block, out: &mut Unpacked) {
    out.set_run(0, 32, half_scale(b.e[0]), NO_MIN);
    for (i, byte) in b.qs.into_iter().enumerate() {
        out.q[i] = LEVELS[usize::from(byte & 15)];
        out.q[16 + i] = LEVELS[usize::from(byte >> 4)];
    }
}

/// `2^(e - 128)`, half the scale that `e` stands for, as [`LEVELS`] are doubled. The two smallest
/// are subnormal. The specification's NaN, 255, reads as 2^127, as in ggml.
#[inline]
pub(crate) fn half_scale(e: u8) -> f32 {
    f32::from_bits(match e {
        0 | 1 => 0x0020_0000 << e,
        _ => u32::from(e - 1) << 23,
    })
}

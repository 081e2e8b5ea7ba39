//! 4 bits and a scale for 32 elements: `w = d * (q - 8)`. Source: ggml's `block_q4_0`.

use super::{
    NO_MIN, Unpacked,
    search::{inverse, largest},
};
use crate::DType;
use bytemuck::{Pod, Zeroable};
use half::f16;

/// One block: 32 elements in 18 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Block {
    /// Scale, f16.
    pub d: [u8; 2],
    /// 4-bit integers: element i in the low half of byte i, element 16 + i in the high half.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<Block>() == DType::Q4_0.block_bytes() && align_of::<Block>() == 1);

/// Unpacks a block.
pub fn unpack(b: &Block, out: &mut Unpacked) {
    out.set_run(0, 32, f16::from_le_bytes(b.d).to_f32(), NO_MIN);
    for (i, byte) in b.qs.into_iter().enumerate() {
        out.q[i] = (byte & 15) as i8 - 8;
        out.q[16 + i] = (byte >> 4) as i8 - 8;
    }
}

/// Encodes 32 elements as ggml's `quantize_row_q4_0_ref` does: the element of largest magnitude
/// becomes -8.
pub fn encode(x: &[f32; 32]) -> Block {
    let d = largest(x) / -8.0;
    let inv = inverse(d);
    // At least 0 before the cast, which truncates.
    let q = x.map(|x| ((x * inv + 8.5) as u8).min(15));
    Block {
        d: f16::from_f32(d).to_le_bytes(),
        qs: core::array::from_fn(|i| q[i] | q[16 + i] << 4),
    }
}

//! 8 bits and a scale for 32 elements, with their sum for products with formats that have a
//! minimum: `w = d * q`. An activation format. Source: ggml's `block_q8_1`.

use super::{NO_MIN, Unpacked, q8_0::quantize_127};
use crate::DType;
use bytemuck::{Pod, Zeroable};
use half::f16;

/// One block: 32 elements in 36 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Block {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Scale times the sum of the integers, f16; decoding ignores it.
    pub s: [u8; 2],
    /// Integers.
    pub qs: [i8; 32],
}

const _: () = assert!(size_of::<Block>() == DType::Q8_1.block_bytes() && align_of::<Block>() == 1);

/// Unpacks a block.
pub fn unpack(b: &Block, out: &mut Unpacked) {
    out.set_run(0, 32, f16::from_le_bytes(b.d).to_f32(), NO_MIN);
    out.q[..32].copy_from_slice(&b.qs);
}

/// Encodes 32 elements as ggml's `quantize_row_q8_1_ref` does: Q8_0 and the sum.
pub fn encode(x: &[f32; 32]) -> Block {
    let (d, qs) = quantize_127(x);
    let sum: i32 = qs.iter().map(|q| i32::from(*q)).sum();
    Block {
        d: f16::from_f32(d).to_le_bytes(),
        s: f16::from_f32(sum as f32 * d).to_le_bytes(),
        qs,
    }
}

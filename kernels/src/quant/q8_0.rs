//! 8 bits and a scale for 32 elements: `w = d * q`. Source: ggml's `block_q8_0`.

use super::{
    NO_MIN, Unpacked,
    search::{inverse, largest},
};
use crate::DType;
use bytemuck::{Pod, Zeroable};
use half::f16;

/// One block: 32 elements in 34 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Block {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Integers.
    pub qs: [i8; 32],
}

const _: () = assert!(size_of::<Block>() == DType::Q8_0.block_bytes() && align_of::<Block>() == 1);

/// Unpacks a block.
pub fn unpack(b: &Block, out: &mut Unpacked) {
    out.set_run(0, 32, f16::from_le_bytes(b.d).to_f32(), NO_MIN);
    out.q[..32].copy_from_slice(&b.qs);
}

/// Encodes 32 elements as ggml's `quantize_row_q8_0_ref` does: the largest magnitude becomes 127.
pub fn encode(x: &[f32; 32]) -> Block {
    let (d, qs) = quantize_127(x);
    Block {
        d: f16::from_f32(d).to_le_bytes(),
        qs,
    }
}

/// Scale and integers such that the largest magnitude becomes 127; halves round away from zero.
pub(super) fn quantize_127(x: &[f32; 32]) -> (f32, [i8; 32]) {
    let d = largest(x).abs() / 127.0;
    let inv = inverse(d);
    (d, x.map(|x| libm::roundf(x * inv) as i8))
}

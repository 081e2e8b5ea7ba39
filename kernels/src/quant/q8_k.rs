//! 8 bits and an f32 scale for 256 elements, with their sums for products with the K formats:
//! `w = d * q`. An activation format. Source: ggml's `block_q8_K`.

use super::{
    NO_MIN, Unpacked,
    search::{largest, round_within},
};
use crate::DType;
use bytemuck::{Pod, Zeroable};

/// One block: 256 elements in 292 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Block {
    /// Scale, f32.
    pub d: [u8; 4],
    /// Integers.
    pub qs: [i8; 256],
    /// Sums of 16 integers each, i16; decoding ignores them.
    pub bsums: [u8; 32],
}

const _: () = assert!(size_of::<Block>() == DType::Q8_K.block_bytes() && align_of::<Block>() == 1);

/// Unpacks a block.
pub fn unpack(b: &Block, out: &mut Unpacked) {
    out.set_run(0, 256, f32::from_le_bytes(b.d), NO_MIN);
    out.q = b.qs;
}

/// Encodes 256 elements as ggml's `quantize_row_q8_K_ref` does: the element of largest magnitude
/// becomes -127, halves round to even.
pub fn encode(x: &[f32; 256]) -> Block {
    let max = largest(x);
    if max == 0.0 {
        return Block::zeroed();
    }
    let inv = -127.0 / max;
    let qs = x.map(|x| round_within(inv * x, -128.0, 127.0) as i8);
    let mut bsums = [0; 32];
    for (sum, qs) in bsums
        .as_chunks_mut::<2>()
        .0
        .iter_mut()
        .zip(qs.chunks_exact(16))
    {
        let s: i16 = qs.iter().map(|q| i16::from(*q)).sum();
        *sum = s.to_le_bytes();
    }
    Block {
        d: (1.0 / inv).to_le_bytes(),
        qs,
        bsums,
    }
}

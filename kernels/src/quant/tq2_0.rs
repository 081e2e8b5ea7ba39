//! Ternary in 2 bits: `w = d * (q - 1)`. Source: ggml's `block_tq2_0`.

use super::{
    NO_MIN, Unpacked,
    search::{inverse, largest},
};
use crate::DType;
use bytemuck::{Pod, Zeroable};
use half::f16;

/// One block: 256 elements in 66 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Block {
    /// 2-bit integers: of element 128 h + 32 s + i in bits 2 s of byte 32 h + i.
    pub qs: [u8; 64],
    /// Scale, f16.
    pub d: [u8; 2],
}

const _: () = assert!(size_of::<Block>() == DType::TQ2_0.block_bytes() && align_of::<Block>() == 1);

/// Unpacks a block.
pub fn unpack(b: &Block, out: &mut Unpacked) {
    out.set_run(0, 256, f16::from_le_bytes(b.d).to_f32(), NO_MIN);
    for (half, qs) in b.qs.chunks_exact(32).enumerate() {
        for s in 0..4 {
            for (i, byte) in qs.iter().enumerate() {
                out.q[128 * half + 32 * s + i] = (byte >> (2 * s) & 3) as i8 - 1;
            }
        }
    }
}

/// Encodes 256 elements as ggml's `quantize_row_tq2_0_ref` does: the largest magnitude becomes 1.
pub fn encode(x: &[f32; 256]) -> Block {
    let (d, q) = ternary(x);
    let mut b = Block {
        d: f16::from_f32(d).to_le_bytes(),
        ..Block::zeroed()
    };
    for (half, qs) in b.qs.chunks_exact_mut(32).enumerate() {
        for (i, byte) in qs.iter_mut().enumerate() {
            let q = |s: usize| q[128 * half + 32 * s + i] << (2 * s);
            *byte = q(0) | q(1) | q(2) | q(3);
        }
    }
    b
}

/// The largest magnitude, and the elements rounded to -1, 0, 1 times it, plus 1.
pub(super) fn ternary(x: &[f32; 256]) -> (f32, [u8; 256]) {
    let d = largest(x).abs();
    let inv = inverse(d);
    // The product can exceed 1 by a rounding error only, and not at all once rounded.
    (
        d,
        x.map(|x| (libm::roundf(x * inv) + 1.0) as u8)
            .map(|q| q.min(2)),
    )
}

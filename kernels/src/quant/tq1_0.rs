//! Ternary, 1.69 bits: five elements in a byte as base-3 digits: `w = d * (q - 1)`. Source: ggml's
//! `block_tq1_0`.
//!
//! A byte holds the number of its digits as a fraction of 1, in units of 1/256, rounded up: times
//! 3,
//! its integer part is the first digit, and the rest holds the others.

use super::{NO_MIN, Unpacked, tq2_0::ternary};
use crate::DType;
use bytemuck::{Pod, Zeroable};
use half::f16;

/// One block: 256 elements in 54 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Block {
    /// Elements 32 n + i, n < 5, are the digits of byte i < 32; elements 160 + 16 n + i those of
    /// byte 32 + i, i < 16.
    pub qs: [u8; 48],
    /// Elements 240 + 4 n + i, n < 4, are the digits of byte i.
    pub qh: [u8; 4],
    /// Scale, f16.
    pub d: [u8; 2],
}

const _: () = assert!(size_of::<Block>() == DType::TQ1_0.block_bytes() && align_of::<Block>() == 1);

/// Unpacks a block.
pub fn unpack(b: &Block, out: &mut Unpacked) {
    out.set_run(0, 256, f16::from_le_bytes(b.d).to_f32(), NO_MIN);
    let (wide, narrow) = b.qs.split_at(32);
    let mut at = 0;
    for (bytes, n_digits) in [(wide, 5), (narrow, 5), (&b.qh[..], 4)] {
        for power in &[1u8, 3, 9, 27, 81][..n_digits] {
            for byte in bytes {
                let fraction = byte.wrapping_mul(*power);
                out.q[at] = ((u16::from(fraction) * 3) >> 8) as i8 - 1;
                at += 1;
            }
        }
    }
}

/// Encodes 256 elements as ggml's `quantize_row_tq1_0_ref` does: the largest magnitude becomes 1.
pub fn encode(x: &[f32; 256]) -> Block {
    let (d, q) = ternary(x);
    let mut b = Block {
        d: f16::from_f32(d).to_le_bytes(),
        ..Block::zeroed()
    };
    let (wide, narrow) = b.qs.split_at_mut(32);
    let mut at = 0;
    for (bytes, n_digits) in [(wide, 5), (narrow, 5), (&mut b.qh[..], 4)] {
        let len = bytes.len();
        for (i, byte) in bytes.iter_mut().enumerate() {
            // Five digits always: the last one of the four is 0.
            let digit = |n: usize| match n < n_digits {
                true => u16::from(q[at + len * n + i]),
                false => 0,
            };
            let number = (0..5).fold(0, |number, n| 3 * number + digit(n));
            *byte = (number * 256).div_ceil(243) as u8;
        }
        at += len * n_digits;
    }
    b
}

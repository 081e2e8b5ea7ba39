//! 6 bits; groups of 16 with an 8-bit signed scale: `w = (d * sc) * (q - 32)`.
//! Source: ggml's `block_q6_K`.

use super::{NO_MIN, Unpacked, search_signed};
use crate::DType;
use bytemuck::{Pod, Zeroable};
use half::f16;

/// One block: 256 elements in 210 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Block {
    /// Low 4 bits. Of the elements 128 h + i, the first 64 in the low halves of the 64 bytes from
    /// 64 h, the other 64 in the high halves.
    pub ql: [u8; 128],
    /// High 2 bits: of element 128 h + 32 s + i in bits 2 s of byte 32 h + i.
    pub qh: [u8; 64],
    /// Scales, one for 16 elements.
    pub scales: [i8; 16],
    /// Scale of the scales, f16.
    pub d: [u8; 2],
}

const _: () = assert!(size_of::<Block>() == DType::Q6_K.block_bytes() && align_of::<Block>() == 1);

/// Unpacks a block.
pub fn unpack(b: &Block, out: &mut Unpacked) {
    let d = f16::from_le_bytes(b.d).to_f32();
    for (g, sc) in b.scales.into_iter().enumerate() {
        out.set_run(g, 16, d * f32::from(sc), NO_MIN);
    }
    for half in 0..2 {
        for s in 0..4 {
            for i in 0..32 {
                let low = b.ql[64 * half + 32 * (s % 2) + i] >> (4 * (s / 2)) & 15;
                let high = b.qh[32 * half + i] >> (2 * s) & 3;
                out.q[128 * half + 32 * s + i] = (low | high << 4) as i8 - 32;
            }
        }
    }
}

/// Encodes 256 finite elements, with a search for the scales: not ggml's bytes, but no worse.
pub fn encode(x: &[f32; 256]) -> Block {
    let e = search_signed::encode(x, -32, -128);
    let q = |half: usize, s: usize, i: usize| (e.q[128 * half + 32 * s + i] + 32) as u8;
    Block {
        ql: core::array::from_fn(|k| {
            let (half, s, i) = (k / 64, k / 32 % 2, k % 32);
            q(half, s, i) & 15 | q(half, s + 2, i) << 4
        }),
        qh: core::array::from_fn(|k| {
            let high = |s: usize| q(k / 32, s, k % 32) >> 4 << (2 * s);
            high(0) | high(1) | high(2) | high(3)
        }),
        scales: e.scales,
        d: e.d.to_le_bytes(),
    }
}

//! 4 bits, a scale and a minimum for 32 elements: `w = d * q + m`. Source: ggml's `block_q4_1`.

use super::{
    Unpacked,
    search::{inverse, range},
};
use crate::DType;
use bytemuck::{Pod, Zeroable};
use half::f16;

/// One block: 32 elements in 20 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Block {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Minimum, f16.
    pub m: [u8; 2],
    /// 4-bit integers: element i in the low half of byte i, element 16 + i in the high half.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<Block>() == DType::Q4_1.block_bytes() && align_of::<Block>() == 1);

/// Unpacks a block.
pub fn unpack(b: &Block, out: &mut Unpacked) {
    let [d, m] = [b.d, b.m].map(|h| f16::from_le_bytes(h).to_f32());
    out.set_run(0, 32, d, m);
    for (i, byte) in b.qs.into_iter().enumerate() {
        out.q[i] = (byte & 15) as i8;
        out.q[16 + i] = (byte >> 4) as i8;
    }
}

/// Encodes 32 elements as ggml's `quantize_row_q4_1_ref` does: from the least to the greatest in
/// 15 steps.
pub fn encode(x: &[f32; 32]) -> Block {
    let (min, max) = range(x);
    let d = (max - min) / 15.0;
    let inv = inverse(d);
    let q = x.map(|x| (((x - min) * inv + 0.5) as u8).min(15));
    Block {
        d: f16::from_f32(d).to_le_bytes(),
        m: f16::from_f32(min).to_le_bytes(),
        qs: core::array::from_fn(|i| q[i] | q[16 + i] << 4),
    }
}

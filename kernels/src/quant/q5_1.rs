//! 5 bits, a scale and a minimum for 32 elements: `w = d * q + m`. Source: ggml's `block_q5_1`.

use super::{
    Unpacked,
    q5_0::fifth_bits,
    search::{inverse, range},
};
use crate::DType;
use bytemuck::{Pod, Zeroable};
use half::f16;

/// One block: 32 elements in 24 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Block {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Minimum, f16.
    pub m: [u8; 2],
    /// Fifth bits: of element i in bit i of the little-endian number.
    pub qh: [u8; 4],
    /// Low 4 bits: of element i in the low half of byte i, of element 16 + i in the high half.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<Block>() == DType::Q5_1.block_bytes() && align_of::<Block>() == 1);

/// Unpacks a block.
pub fn unpack(b: &Block, out: &mut Unpacked) {
    let [d, m] = [b.d, b.m].map(|h| f16::from_le_bytes(h).to_f32());
    out.set_run(0, 32, d, m);
    let qh = u32::from_le_bytes(b.qh);
    for (i, byte) in b.qs.into_iter().enumerate() {
        let high = |i: usize| (qh >> i & 1) as i8 * 16;
        out.q[i] = (byte & 15) as i8 + high(i);
        out.q[16 + i] = (byte >> 4) as i8 + high(16 + i);
    }
}

/// Encodes 32 elements as ggml's `quantize_row_q5_1_ref` does: from the least to the greatest in
/// 31 steps.
pub fn encode(x: &[f32; 32]) -> Block {
    let (min, max) = range(x);
    let d = (max - min) / 31.0;
    let inv = inverse(d);
    let q = x.map(|x| (((x - min) * inv + 0.5) as u8).min(31));
    Block {
        d: f16::from_f32(d).to_le_bytes(),
        m: f16::from_f32(min).to_le_bytes(),
        qh: fifth_bits(&q),
        qs: core::array::from_fn(|i| q[i] & 15 | q[16 + i] << 4),
    }
}

//! 5 bits and a scale for 32 elements: `w = d * (q - 16)`. Source: ggml's `block_q5_0`.

use super::{
    NO_MIN, Unpacked,
    search::{inverse, largest},
};
use crate::DType;
use bytemuck::{Pod, Zeroable};
use half::f16;

/// One block: 32 elements in 22 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Block {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Fifth bits: of element i in bit i of the little-endian number.
    pub qh: [u8; 4],
    /// Low 4 bits: of element i in the low half of byte i, of element 16 + i in the high half.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<Block>() == DType::Q5_0.block_bytes() && align_of::<Block>() == 1);

/// Unpacks a block.
pub fn unpack(b: &Block, out: &mut Unpacked) {
    out.set_run(0, 32, f16::from_le_bytes(b.d).to_f32(), NO_MIN);
    let qh = u32::from_le_bytes(b.qh);
    for (i, byte) in b.qs.into_iter().enumerate() {
        let high = |i: usize| (qh >> i & 1) as i8 * 16;
        out.q[i] = (byte & 15) as i8 + high(i) - 16;
        out.q[16 + i] = (byte >> 4) as i8 + high(16 + i) - 16;
    }
}

/// Encodes 32 elements as ggml's `quantize_row_q5_0_ref` does: the element of largest magnitude
/// becomes -16.
pub fn encode(x: &[f32; 32]) -> Block {
    let d = largest(x) / -16.0;
    let inv = inverse(d);
    // At least 0 before the cast, which truncates.
    let q = x.map(|x| ((x * inv + 16.5) as u8).min(31));
    Block {
        d: f16::from_f32(d).to_le_bytes(),
        qh: fifth_bits(&q),
        qs: core::array::from_fn(|i| q[i] & 15 | q[16 + i] << 4),
    }
}

/// Bit 4 of each integer, as `qh` holds them.
pub(super) fn fifth_bits(q: &[u8; 32]) -> [u8; 4] {
    let mut qh = 0;
    for (i, q) in q.iter().enumerate() {
        qh |= u32::from(q >> 4) << i;
    }
    qh.to_le_bytes()
}

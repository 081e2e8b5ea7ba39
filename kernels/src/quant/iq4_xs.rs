//! 4 bits into the table of [`IQ4_NL`](super::iq4_nl::LEVELS); groups of 32 with a 6-bit signed
//! scale: `w = (d * (sc - 32)) * LEVELS[q]`. Source: ggml's `block_iq4_xs`.

use super::iq4_nl::{LEVELS, fit, nearest};
use super::search::{inverse, largest, round_within};
use super::{NO_MIN, Unpacked};
use crate::DType;
use bytemuck::{Pod, Zeroable};
use half::f16;

/// One block: 256 elements in 136 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Block {
    /// Scale of the scales, f16.
    pub d: [u8; 2],
    /// High 2 bits of the scales: of scale g in bits 2 g of the little-endian number.
    pub scales_h: [u8; 2],
    /// Low 4 bits of the scales: scale 2 j in the low half of byte j, scale 2 j + 1 in the high
    /// half.
    pub scales_l: [u8; 4],
    /// 4-bit indices: element 32 g + i in the low half of byte 16 g + i, element 32 g + 16 + i in
    /// the high half.
    pub qs: [u8; 128],
}

const _: () =
    assert!(size_of::<Block>() == DType::IQ4_XS.block_bytes() && align_of::<Block>() == 1);

/// Unpacks a block.
pub fn unpack(b: &Block, out: &mut Unpacked) {
    let d = f16::from_le_bytes(b.d).to_f32();
    let scales_h = u16::from_le_bytes(b.scales_h);
    for (g, qs) in b.qs.chunks_exact(16).enumerate() {
        let low = b.scales_l[g / 2] >> (4 * (g % 2)) & 15;
        let high = (scales_h >> (2 * g) & 3) as u8;
        let sc = (low | high << 4) as i8 - 32;
        out.set_run(g, 32, d * f32::from(sc), NO_MIN);
        for (i, byte) in qs.iter().enumerate() {
            out.q[32 * g + i] = LEVELS[usize::from(byte & 15)];
            out.q[32 * g + 16 + i] = LEVELS[usize::from(byte >> 4)];
        }
    }
}

/// Encodes 256 finite elements, with a search for the scales: not ggml's bytes, but no worse.
pub fn encode(x: &[f32; 256]) -> Block {
    let groups = x.as_chunks::<32>().0;
    let ideal: [f32; 8] = core::array::from_fn(|g| fit(&groups[g]));
    let d = f16::from_f32(largest(&ideal) / -32.0);
    let inv = inverse(d.to_f32());
    let mut b = Block {
        d: d.to_le_bytes(),
        ..Block::zeroed()
    };
    let mut scales_h = 0;
    for (g, x) in groups.iter().enumerate() {
        let sc = round_within(ideal[g] * inv, -32.0, 31.0);
        let inv = inverse(d.to_f32() * sc);
        let q = x.map(|x| nearest(x * inv));
        for i in 0..16 {
            b.qs[16 * g + i] = q[i] | q[16 + i] << 4;
        }
        let sc = (sc as i8 + 32) as u8;
        b.scales_l[g / 2] |= (sc & 15) << (4 * (g % 2));
        scales_h |= u16::from(sc >> 4) << (2 * g);
    }
    b.scales_h = scales_h.to_le_bytes();
    b
}

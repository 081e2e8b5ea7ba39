//! 4 bits into a table of 16 uneven levels, and a scale for 32 elements: `w = d * LEVELS[q]`.
//! Source: ggml's `block_iq4_nl`.

use super::search::{TINY, inverse, largest, round_within};
use super::{NO_MIN, Unpacked};
use crate::DType;
use bytemuck::{Pod, Zeroable};
use half::f16;

/// The levels, ascending. Source: ggml's `kvalues_iq4nl`.
pub const LEVELS: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

/// One block: 32 elements in 18 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Block {
    /// Scale, f16.
    pub d: [u8; 2],
    /// 4-bit integers: element i in the low half of byte i, element 16 + i in the high half.
    pub qs: [u8; 16],
}

const _: () =
    assert!(size_of::<Block>() == DType::IQ4_NL.block_bytes() && align_of::<Block>() == 1);

/// Unpacks a block.
pub fn unpack(b: &Block, out: &mut Unpacked) {
    out.set_run(0, 32, f16::from_le_bytes(b.d).to_f32(), NO_MIN);
    for (i, byte) in b.qs.into_iter().enumerate() {
        out.q[i] = LEVELS[usize::from(byte & 15)];
        out.q[16 + i] = LEVELS[usize::from(byte >> 4)];
    }
}

/// The level nearest to each integer from -128 to 127, as its index in [`LEVELS`].
static NEAREST: [u8; 256] = {
    let mut nearest = [0; 256];
    let mut index = 0;
    let mut i = 0;
    while i < 256 {
        let x = i as i16 - 128;
        // Levels ascend, and so do integers: once the next level is nearer, it stays so.
        while index < 15 && LEVELS[index + 1] as i16 - x < x - LEVELS[index] as i16 {
            index += 1;
        }
        nearest[i] = index as u8;
        i += 1;
    }
    nearest
};

/// The index of the level nearest to `x`, which is first rounded to an integer: the step between
/// levels is 10 at least, so little is lost. NaN gives some index.
pub(super) fn nearest(x: f32) -> u8 {
    NEAREST[(round_within(x, -128.0, 127.0) as i32 + 128) as usize]
}

/// The candidates for the scale: it takes the largest element to one of these, which lie around
/// the outermost levels of both sides.
const CANDIDATES: [f32; 14] = [
    -147.0, -141.0, -136.0, -131.0, -127.0, -123.0, -118.0, -112.0, 100.0, 106.0, 113.0, 118.0,
    124.0, 130.0,
];

/// Of the candidates, refitted by least squares, the scale with the least squared error for `x`;
/// 0 for elements that are all but zero.
pub(super) fn fit(x: &[f32; 32]) -> f32 {
    let max = largest(x);
    if max.abs() < TINY {
        return 0.0;
    }
    let mut best = max / -127.0;
    let mut best_gain = 0.0;
    for target in CANDIDATES {
        let inv = target / max;
        let (mut qq, mut qx) = (0.0, 0.0);
        for x in x {
            let q = f32::from(LEVELS[usize::from(nearest(x * inv))]);
            qq += q * q;
            qx += q * x;
        }
        // What the best scale for these integers takes off the squared error.
        let gain = qx * qx / qq;
        if gain > best_gain {
            best_gain = gain;
            best = qx / qq;
        }
    }
    best
}

/// Encodes 32 finite elements, with a search for the scale: not ggml's bytes, but no worse.
pub fn encode(x: &[f32; 32]) -> Block {
    let d = f16::from_f32(fit(x));
    let inv = inverse(d.to_f32());
    let q = x.map(|x| nearest(x * inv));
    Block {
        d: d.to_le_bytes(),
        qs: core::array::from_fn(|i| q[i] | q[16 + i] << 4),
    }
}

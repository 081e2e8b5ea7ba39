//! Whole factors of adapters, decoded and encoded with each level's vectors: what merging them on
//! the spot takes. The results are the same to the bit at every level.

use half::f16;

use super::{GROUP_BYTES, SCALE_BYTES};
use crate::lanes::f16_to_f32;
use crate::level::multilevel;
use crate::quant::{self, plain};
use crate::{DType, LOW_RANK_TILE, Level, LowRank, LowRankType, simd};

/// Elements of a block of Q8_0 and Q4_0.
const BLOCK: usize = 32;
/// Bits of the smallest magnitude that is infinite or NaN.
const INFINITE: u32 = 0x7f80_0000;

/// Decodes `A`: what [`quant::dequantize`] gives, times `factor`.
///
/// # Panics
///
/// As [`quant::dequantize`].
pub fn decode_rows(level: Level, dtype: DType, src: &[u8], factor: f32, dst: &mut [f32]) {
    assert_eq!(Some(src.len()), dtype.row_bytes(dst.len()));
    if dtype != DType::Q8_0 || !simd::factors::decode_q8_0(level, src, factor, dst) {
        plain_rows(level, dtype, src, factor, dst);
    }
}

multilevel! {
    fn plain_rows(level: Level, dtype: DType, src: &[u8], factor: f32, dst: &mut [f32]) {
        match dtype {
            DType::Q8_0 => {
                let blocks = src.as_chunks::<{ DType::Q8_0.block_bytes() }>().0;
                for (block, dst) in blocks.iter().zip(dst.as_chunks_mut::<BLOCK>().0) {
                    let d = f16_to_f32(u16::from_le_bytes([block[0], block[1]]));
                    for i in 0..BLOCK {
                        dst[i] = d * f32::from(block[2 + i] as i8) * factor;
                    }
                }
            }
            DType::Q4_0 => {
                let blocks = src.as_chunks::<{ DType::Q4_0.block_bytes() }>().0;
                for (block, dst) in blocks.iter().zip(dst.as_chunks_mut::<BLOCK>().0) {
                    let d = f16_to_f32(u16::from_le_bytes([block[0], block[1]]));
                    for i in 0..BLOCK / 2 {
                        dst[i] = d * low(block[2 + i]) * factor;
                        dst[BLOCK / 2 + i] = d * high(block[2 + i]) * factor;
                    }
                }
            }
            _ => {
                match dtype.is_quantized() {
                    true => quant::dequantize(dtype, src, dst),
                    false => plain::decode(dtype, src, dst),
                }
                dst.iter_mut().for_each(|x| *x *= factor);
            }
        }
    }
}

multilevel! {
    /// Encodes `A`: what [`quant::quantize`] gives of `src` times `factor`, a positive number.
    ///
    /// # Panics
    ///
    /// As [`quant::quantize`].
    pub fn encode_rows(level: Level, dtype: DType, src: &[f32], factor: f32, dst: &mut [u8]) {
        assert_eq!(Some(dst.len()), dtype.row_bytes(src.len()));
        if dtype != DType::Q8_0 {
            /// Values scaled at once: a whole number of blocks of any type.
            const RUN: usize = quant::MAX_BLOCK_LEN;
            let mut run = [0.0; RUN];
            let n_bytes = RUN / dtype.block_len() * dtype.block_bytes();
            for (src, dst) in src.chunks(RUN).zip(dst.chunks_mut(n_bytes)) {
                for (run, x) in run.iter_mut().zip(src) {
                    *run = x * factor;
                }
                quant::quantize(dtype, &run[..src.len()], dst);
            }
            return;
        }
        let blocks = dst.as_chunks_mut::<{ DType::Q8_0.block_bytes() }>().0;
        for (src, block) in src.as_chunks::<BLOCK>().0.iter().zip(blocks) {
            let mut scaled = [0.0; BLOCK];
            for i in 0..BLOCK {
                scaled[i] = src[i] * factor;
            }
            let largest = largest_bits(&scaled);
            if largest >= INFINITE {
                block.fill(0);
                block[..2].copy_from_slice(&f16::NAN.to_le_bytes());
                continue;
            }
            let d = f32::from_bits(largest) / 127.0;
            let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
            if inverse == f32::INFINITY {
                quant::quantize(dtype, &scaled, block);
                continue;
            }
            block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
            for i in 0..BLOCK {
                block[2 + i] = round(scaled[i] * inverse, 127.0) as u8;
            }
        }
    }
}

/// Decodes `B` `[n_out, rank]`, times `factor`.
///
/// # Panics
///
/// If `dst` is of another size.
pub fn decode_low_rank(level: Level, b: &LowRank<'_>, factor: f32, dst: &mut [f32]) {
    let rank = b.rank();
    assert_eq!(dst.len(), b.n_out() * rank);
    let (mut bytes, mut rest) = (b.data(), dst);
    if b.kind() == LowRankType::Q8 && rank.is_multiple_of(4) {
        // Whole tiles; the last may lack outputs.
        let n_tiles = b.n_out() / LOW_RANK_TILE;
        let (tiles, more) = bytes.split_at(n_tiles * b.kind().tile_bytes(rank));
        let (whole, part) = rest.split_at_mut(n_tiles * LOW_RANK_TILE * rank);
        if !simd::factors::decode_tiles(level, tiles, rank, factor, whole) {
            plain_low_rank(level, b.kind(), tiles, rank, factor, whole);
        }
        (bytes, rest) = (more, part);
    }
    plain_low_rank(level, b.kind(), bytes, rank, factor, rest);
}

multilevel! {
    fn plain_low_rank(
        level: Level,
        kind: LowRankType,
        src: &[u8],
        rank: usize,
        factor: f32,
        dst: &mut [f32],
    ) {
        let dtype = match kind {
            LowRankType::F32 => DType::F32,
            LowRankType::F16 => DType::F16,
            kind => {
                let rows = dst.chunks_mut(LOW_RANK_TILE * rank);
                for (rows, tile) in rows.zip(src.chunks_exact(kind.tile_bytes(rank))) {
                    decode_tile(kind == LowRankType::Q4, tile, rank, factor, rows);
                }
                return;
            }
        };
        plain::decode(dtype, src, dst);
        dst.iter_mut().for_each(|x| *x *= factor);
    }
}

/// The values of a tile, `rows` `[at most 16, rank]`.
#[inline(always)]
fn decode_tile(is_q4: bool, tile: &[u8], rank: usize, factor: f32, rows: &mut [f32]) {
    let (f16s, groups) = tile.split_at(SCALE_BYTES);
    let mut scales = [0.0; GROUP_BYTES];
    for (scales, d) in scales
        .as_chunks_mut::<4>()
        .0
        .iter_mut()
        .zip(f16s.as_chunks().0)
    {
        *scales = [f16_to_f32(u16::from_le_bytes(*d)); 4];
    }
    // `[16 outputs][4 ranks]`.
    let mut four = [0.0; GROUP_BYTES];
    for (g, group) in groups.as_chunks::<GROUP_BYTES>().0.iter().enumerate() {
        if is_q4 {
            for i in 0..GROUP_BYTES {
                four[i] = scales[i] * low(group[i]) * factor;
            }
            put_columns(&four, rank, 8 * g, rows);
            for i in 0..GROUP_BYTES {
                four[i] = scales[i] * high(group[i]) * factor;
            }
            put_columns(&four, rank, 8 * g + 4, rows);
        } else {
            for i in 0..GROUP_BYTES {
                four[i] = scales[i] * f32::from(group[i] as i8) * factor;
            }
            put_columns(&four, rank, 4 * g, rows);
        }
    }
}

/// Puts four columns of 16 rows, those from `k` on, where the rows have them.
#[inline(always)]
fn put_columns(four: &[f32; GROUP_BYTES], rank: usize, k: usize, rows: &mut [f32]) {
    for (four, row) in four
        .as_chunks::<4>()
        .0
        .iter()
        .zip(rows.chunks_exact_mut(rank))
    {
        match row.get_mut(k..).unwrap_or_default() {
            [a, b, c, d, ..] => [*a, *b, *c, *d] = *four,
            rest => rest.iter_mut().zip(four).for_each(|(x, v)| *x = *v),
        }
    }
}

multilevel! {
    /// Packs `src` `[n_out, rank]`, times `factor`, a positive number, as `kind` into `dst`,
    /// `[n_bytes(n_out, rank)]`.
    ///
    /// The largest magnitude of each output becomes 127, or 7 in Q4. Scales beyond the range of
    /// f16 become infinite or zero: that is what `factor` can prevent. A row with a NaN decodes to
    /// NaN.
    ///
    /// # Panics
    ///
    /// If `src` is no whole number of rows, or `dst` of another size.
    pub fn encode_low_rank(
        level: Level,
        kind: LowRankType,
        src: &[f32],
        rank: usize,
        factor: f32,
        dst: &mut [u8],
    ) {
        assert!(rank > 0 && src.len().is_multiple_of(rank));
        assert_eq!(Some(dst.len()), kind.n_bytes(src.len() / rank, rank));
        match kind {
            LowRankType::F32 => {
                for (x, dst) in src.iter().zip(dst.as_chunks_mut().0) {
                    *dst = (x * factor).to_le_bytes();
                }
            }
            LowRankType::F16 => {
                for (x, dst) in src.iter().zip(dst.as_chunks_mut().0) {
                    *dst = f16::from_f32(x * factor).to_le_bytes();
                }
            }
            LowRankType::Q8 | LowRankType::Q4 => {
                let tiles = dst.chunks_exact_mut(kind.tile_bytes(rank));
                for (rows, tile) in src.chunks(LOW_RANK_TILE * rank).zip(tiles) {
                    encode_tile(kind == LowRankType::Q4, rows, rank, factor, tile);
                }
            }
        }
    }
}

/// Packs `rows` `[at most 16, rank]`.
#[inline(always)]
fn encode_tile(is_q4: bool, rows: &[f32], rank: usize, factor: f32, tile: &mut [u8]) {
    /// Ranks rounded at once: whole groups of either layout.
    const RUN: usize = 32;
    let (limit, zero) = if is_q4 { (7.0, 0x88) } else { (127.0, 0) };
    let (scales, groups) = tile.split_at_mut(SCALE_BYTES);
    let groups = groups.as_chunks_mut::<GROUP_BYTES>().0;
    scales.fill(0);
    groups.as_flattened_mut().fill(zero);
    for (o, row) in rows.chunks_exact(rank).enumerate() {
        let largest = f32::from_bits(largest_bits(row)) * factor;
        let scale = f16::from_f32(largest / limit);
        scales[2 * o..][..2].copy_from_slice(&scale.to_le_bytes());
        let scale = f16_to_f32(scale.to_bits());
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        for (run, row) in row.chunks(RUN).enumerate() {
            let mut q = [0_i8; RUN];
            match row.as_array::<RUN>() {
                Some(row) => {
                    for i in 0..RUN {
                        q[i] = round(row[i] * factor * inverse, limit);
                    }
                }
                None => {
                    for (q, x) in q.iter_mut().zip(row) {
                        *q = round(x * factor * inverse, limit);
                    }
                }
            }
            let fours = q.as_chunks::<4>().0;
            if is_q4 {
                let groups = groups.iter_mut().skip(run * RUN / 8);
                for (group, pair) in groups.zip(fours.as_chunks::<2>().0) {
                    for j in 0..4 {
                        let nibble = |q: i8| (q + 8) as u8;
                        group[4 * o + j] = nibble(pair[0][j]) | nibble(pair[1][j]) << 4;
                    }
                }
            } else {
                let groups = groups.iter_mut().skip(run * RUN / 4);
                for (group, four) in groups.zip(fours) {
                    group[4 * o..][..4].copy_from_slice(&four.map(|q| q as u8));
                }
            }
        }
    }
}

multilevel! {
    /// The largest magnitude in `x`, 0 of none; NaN counts as more than infinity.
    pub fn largest_magnitude(level: Level, x: &[f32], largest: &mut f32) {
        *largest = f32::from_bits(largest_bits(x));
    }
}

/// Magnitudes order as their bits do, and integers are compared in vectors.
#[inline(always)]
fn largest_bits(x: &[f32]) -> u32 {
    x.iter().fold(0, |m, x| m.max(x.abs().to_bits()))
}

/// `x` rounded to an integer, halves away from zero, and limited to `-limit..=limit`, at most 127;
/// 0 of NaN. Casts of floats, which saturate, would not be done in vectors.
#[inline(always)]
fn round(x: f32, limit: f32) -> i8 {
    /// Adding it rounds to an integer, halves to even ones, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let magnitude = x.abs();
    let magnitude = if magnitude >= 0.0 { magnitude } else { 0.0 };
    let magnitude = if magnitude < limit { magnitude } else { limit };
    let even = (magnitude + ROUND) - ROUND;
    let is_half_below = magnitude - even == 0.5;
    let rounded = even + if is_half_below { 1.0 } else { 0.0 };
    let signed = f32::from_bits(rounded.to_bits() | (x.to_bits() & 0x8000_0000));
    (signed + ROUND).to_bits() as i8
}

#[inline(always)]
fn low(byte: u8) -> f32 {
    f32::from((byte & 15) as i8 - 8)
}

#[inline(always)]
fn high(byte: u8) -> f32 {
    f32::from((byte >> 4) as i8 - 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_rounded_away_from_zero() {
        for i in -2000..=2000 {
            for x in [i as f32 / 16.0, (i as f32 / 16.0).next_up()] {
                let expected = libm::roundf(x).clamp(-127.0, 127.0);
                assert_eq!(f32::from(round(x, 127.0)), expected, "{x}");
            }
        }
        assert_eq!(round(0.5_f32.next_down(), 7.0), 0);
        assert_eq!((round(f32::INFINITY, 7.0), round(f32::NAN, 7.0)), (7, 0));
    }
}

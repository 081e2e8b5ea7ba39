//! `y += s B h`: the second half of a low-rank term `s B (A x)`; the first, `h = A x`, is a matmul.

mod factors;

use core::ops::Range;

use bytemuck::{Pod, Zeroable};
use half::f16;

pub use factors::{decode_low_rank, decode_rows, encode_low_rank, encode_rows, largest_magnitude};

use crate::TileMut;
use crate::input::{q8_scale, round_q8};
use crate::level::multilevel;
use crate::simd::int8::prefetch_lines;
use crate::simd::low_rank::{PREFETCH_BYTES, Tiles, add_tiles};

/// Outputs of one tile of the integer layouts.
pub const LOW_RANK_TILE: usize = 16;
/// Bytes of a tile's f16 scales, one an output.
pub(crate) const SCALE_BYTES: usize = 2 * LOW_RANK_TILE;
/// Bytes of integers that a tile's outputs have one after the other: 4 each.
pub(crate) const GROUP_BYTES: usize = 4 * LOW_RANK_TILE;
/// The largest rank: sums of as many products of bytes fit an i32.
pub const MAX_RANK: usize = 1 << 16;

/// How the factor `B` `[n_out, rank]` is stored.
///
/// The integer layouts are made for SIMD over outputs. Outputs come in tiles of 16, the last filled
/// up with zeros; a tile is 16 scales in f16, one an output, and then groups of 64 bytes, 4 for
/// each output, until the rank, filled up with zeros to whole groups, is through:
/// `B[o][k] = scale[o] * q[o][k]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LowRankType {
    /// Rows of little-endian float32.
    F32,
    /// Rows of little-endian float16.
    F16,
    /// Tiles of int8: group `g` holds ranks `4 g` to `4 g + 3`, `[16 outputs][4 ranks]`.
    Q8,
    /// Tiles of int4, stored plus 8: group `g` holds ranks `8 g` to `8 g + 3` in the low nibbles of
    /// `[16 outputs][4]` and ranks `8 g + 4` to `8 g + 7` in the high ones.
    Q4,
}

impl LowRankType {
    /// Every type.
    pub const ALL: [LowRankType; 4] = [
        LowRankType::F32,
        LowRankType::F16,
        LowRankType::Q8,
        LowRankType::Q4,
    ];

    /// The type's name.
    pub fn name(self) -> &'static str {
        match self {
            LowRankType::F32 => "F32",
            LowRankType::F16 => "F16",
            LowRankType::Q8 => "Q8",
            LowRankType::Q4 => "Q4",
        }
    }

    /// Whether it holds integers, which can be multiplied with an int8 `h`.
    pub fn is_quantized(self) -> bool {
        matches!(self, LowRankType::Q8 | LowRankType::Q4)
    }

    /// The rank filled up to whole groups.
    pub fn padded_rank(self, rank: usize) -> usize {
        rank.next_multiple_of(self.ranks_per_group())
    }

    fn ranks_per_group(self) -> usize {
        match self {
            LowRankType::F32 | LowRankType::F16 => 1,
            LowRankType::Q8 => 4,
            LowRankType::Q4 => 8,
        }
    }

    /// Bytes of a tile of 16 outputs; only the integer layouts have such.
    pub(crate) fn tile_bytes(self, rank: usize) -> usize {
        SCALE_BYTES + rank.div_ceil(self.ranks_per_group()) * GROUP_BYTES
    }

    /// Bytes of `[n_out, rank]`; `None` where the rank is 0 or above [`MAX_RANK`], or the size
    /// overflows.
    pub fn n_bytes(self, n_out: usize, rank: usize) -> Option<usize> {
        if rank == 0 || rank > MAX_RANK {
            return None;
        }
        match self {
            LowRankType::F32 => n_out.checked_mul(4 * rank),
            LowRankType::F16 => n_out.checked_mul(2 * rank),
            _ => n_out
                .div_ceil(LOW_RANK_TILE)
                .checked_mul(self.tile_bytes(rank)),
        }
    }
}

/// Layout and shape of a factor `B` `[n_out, rank]`, for whoever owns its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LowRankLayout {
    kind: LowRankType,
    n_out: usize,
    rank: usize,
    n_bytes: usize,
}

impl LowRankLayout {
    /// `None` where the rank is 0 or above [`MAX_RANK`], or the size overflows.
    pub fn new(kind: LowRankType, n_out: usize, rank: usize) -> Option<LowRankLayout> {
        let n_bytes = kind.n_bytes(n_out, rank)?;
        Some(LowRankLayout {
            kind,
            n_out,
            rank,
            n_bytes,
        })
    }

    /// Bytes of the factor.
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// How it is stored.
    pub fn kind(&self) -> LowRankType {
        self.kind
    }

    /// Outputs.
    pub fn n_out(&self) -> usize {
        self.n_out
    }

    /// Columns: the rank of the term.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The factor that `data` holds.
    ///
    /// # Panics
    ///
    /// If that is not as many bytes.
    #[inline]
    pub fn view<'a>(&self, data: &'a [u8]) -> LowRank<'a> {
        assert_eq!(data.len(), self.n_bytes);
        LowRank {
            kind: self.kind,
            n_out: self.n_out,
            rank: self.rank,
            data,
        }
    }
}

/// The factor `B` `[n_out, rank]`, checked once so that kernels cannot fail.
#[derive(Clone, Copy, Debug)]
pub struct LowRank<'a> {
    kind: LowRankType,
    n_out: usize,
    rank: usize,
    data: &'a [u8],
}

impl<'a> LowRank<'a> {
    /// A view of `data`, or `None` where that is not of the size of `[n_out, rank]`.
    pub fn new(kind: LowRankType, n_out: usize, rank: usize, data: &'a [u8]) -> Option<Self> {
        let layout = LowRankLayout::new(kind, n_out, rank)?;
        (layout.n_bytes == data.len()).then(|| layout.view(data))
    }

    /// How it is stored.
    pub fn kind(&self) -> LowRankType {
        self.kind
    }

    /// Outputs.
    pub fn n_out(&self) -> usize {
        self.n_out
    }

    /// Columns: the rank of the term.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The bytes, as [`encode_low_rank`](crate::encode_low_rank) makes them.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// Copies the outputs `rows`, stored as they are here, to `out`,
    /// `[n_bytes(rows.len(), rank)]`: tiles begin at the first of them.
    ///
    /// # Panics
    ///
    /// If there are no such outputs, or `out` is of another size.
    pub fn copy_rows(&self, rows: Range<usize>, out: &mut [u8]) {
        assert!(rows.start <= rows.end && rows.end <= self.n_out);
        assert_eq!(Some(out.len()), self.kind.n_bytes(rows.len(), self.rank));
        if !self.kind.is_quantized() {
            let n_bytes = self.data.len() / self.n_out.max(1);
            out.copy_from_slice(&self.data[rows.start * n_bytes..rows.end * n_bytes]);
            return;
        }
        let zero = if self.kind == LowRankType::Q4 {
            0x88
        } else {
            0
        };
        let tiles = out.chunks_exact_mut(self.kind.tile_bytes(self.rank));
        for (tile, first) in tiles.zip(rows.clone().step_by(LOW_RANK_TILE)) {
            let (scales, groups) = tile.split_at_mut(SCALE_BYTES);
            scales.fill(0);
            groups.fill(zero);
            for (to, from) in (first..rows.end.min(first + LOW_RANK_TILE)).enumerate() {
                let (source, from) = (self.tile(from / LOW_RANK_TILE), from % LOW_RANK_TILE);
                scales.as_chunks_mut().0[to] = source.scales[from];
                let groups = groups.as_chunks_mut::<GROUP_BYTES>().0.iter_mut();
                for (group, source) in groups.zip(source.groups) {
                    group[4 * to..][..4].copy_from_slice(&source[4 * from..][..4]);
                }
            }
        }
    }

    /// Asks the memory for what an integer layout has of the outputs `rows`, or the first of it: adding
    /// them asks for the rest.
    pub fn prefetch(&self, rows: Range<usize>) {
        let n = match self.kind.is_quantized() {
            true => self.kind.tile_bytes(self.rank),
            false => return,
        };
        let tiles = rows.start / LOW_RANK_TILE..rows.end.div_ceil(LOW_RANK_TILE);
        let bytes = self
            .data
            .get(tiles.start * n..tiles.end * n)
            .unwrap_or_default();
        prefetch_lines(&bytes[..bytes.len().min(PREFETCH_BYTES)]);
    }

    /// The values of output `o`, `[rank]`.
    ///
    /// # Panics
    ///
    /// If there is no such output, or `row` is longer than the rank.
    pub fn row(&self, o: usize, row: &mut [f32]) {
        assert!(o < self.n_out && row.len() <= self.rank);
        for (k, x) in row.iter_mut().enumerate() {
            *x = self.value(o, k);
        }
    }

    fn value(&self, o: usize, k: usize) -> f32 {
        let i = o * self.rank + k;
        match self.kind {
            LowRankType::F32 => f32::from_le_bytes(self.data.as_chunks().0[i]),
            LowRankType::F16 => f16::from_le_bytes(self.data.as_chunks().0[i]).to_f32(),
            _ => {
                let tile = self.tile(o / LOW_RANK_TILE);
                let (group, o) = (k / self.kind.ranks_per_group(), o % LOW_RANK_TILE);
                let byte = tile.groups[group][4 * o + k % 4];
                let q = match self.kind {
                    LowRankType::Q4 if k % 8 < 4 => low(byte),
                    LowRankType::Q4 => high(byte),
                    _ => byte as i8,
                };
                tile.scale(o) * f32::from(q)
            }
        }
    }

    /// Tile `i` of an integer layout.
    #[inline(always)]
    fn tile(&self, i: usize) -> Tile<'a> {
        let n = self.kind.tile_bytes(self.rank);
        let (scales, groups) = self.data[i * n..][..n].split_at(SCALE_BYTES);
        Tile {
            scales: scales.as_chunks().0,
            groups: groups.as_chunks().0,
        }
    }
}

/// 16 outputs of an integer layout.
struct Tile<'a> {
    scales: &'a [[u8; 2]],
    groups: &'a [[u8; GROUP_BYTES]],
}

impl Tile<'_> {
    #[inline(always)]
    fn scale(&self, o: usize) -> f32 {
        f16::from_le_bytes(self.scales[o]).to_f32()
    }
}

#[inline(always)]
fn low(byte: u8) -> i8 {
    (byte & 15) as i8 - 8
}

#[inline(always)]
fn high(byte: u8) -> i8 {
    (byte >> 4) as i8 - 8
}

/// The ranks' activations `h = A x`, a row a token.
#[derive(Clone, Copy, Debug)]
pub enum LowRankInput<'a> {
    /// Float32.
    F32 {
        /// The row of token `t` is `h[t * stride..][..rank]`.
        h: &'a [f32],
        /// From one token's row to the next.
        stride: usize,
    },
    /// Rounded to int8 by [`quantize_h`]; for the integer layouts only.
    Q8 {
        /// The row of token `t` is `q[t * stride..][..padded_rank]`, see
        /// [`LowRankType::padded_rank`].
        q: &'a [i8],
        /// From one token's row to the next.
        stride: usize,
        /// The scale of token `t` is `scale[t * scale_stride]`.
        scale: &'a [RankScale],
        /// From one token's scale to the next.
        scale_stride: usize,
    },
}

/// What belongs to one token's int8 ranks `q`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct RankScale {
    /// `h[k] = scale * q[k]`.
    pub scale: f32,
    /// The sum of the integers.
    pub sum: i32,
}

/// The fields of [`LowRankInput::Q8`].
#[derive(Clone, Copy)]
pub(crate) struct QuantizedRanks<'a> {
    pub q: &'a [i8],
    pub stride: usize,
    pub scale: &'a [RankScale],
    pub scale_stride: usize,
}

/// A term `scale B h` of [`add_low_rank`].
#[derive(Clone, Copy, Debug)]
pub struct LowRankTerm<'a> {
    /// The factor `[n_out, rank]`.
    pub b: LowRank<'a>,
    /// The ranks `[n_tokens, rank]`.
    pub h: LowRankInput<'a>,
    /// What the product is multiplied with.
    pub scale: f32,
}

impl<'a> LowRankTerm<'a> {
    /// Checks that the term is one of `n_tokens` and the outputs `rows`.
    fn check(&self, n_tokens: usize, rows: &Range<usize>) {
        let b = &self.b;
        assert!(rows.start.is_multiple_of(LOW_RANK_TILE) && rows.end <= b.n_out);
        let holds = |len: usize, stride: usize, width: usize| match n_tokens {
            0 => true,
            n => {
                (n - 1)
                    .checked_mul(stride)
                    .and_then(|i| i.checked_add(width))
                    <= Some(len)
            }
        };
        match self.h {
            LowRankInput::F32 { h, stride } => assert!(holds(h.len(), stride, b.rank)),
            LowRankInput::Q8 {
                q,
                stride,
                scale,
                scale_stride,
            } => {
                assert!(b.kind.is_quantized());
                let padded = b.kind.padded_rank(b.rank);
                assert!(holds(q.len(), stride, padded) && holds(scale.len(), scale_stride, 1));
            }
        }
    }

    /// The tiles of `B` from output `start` on and the ranks, where these are integers.
    #[inline(always)]
    pub(crate) fn tiles(&self, start: usize) -> Option<(Tiles<'a>, QuantizedRanks<'a>)> {
        let LowRankInput::Q8 {
            q,
            stride,
            scale,
            scale_stride,
        } = self.h
        else {
            return None;
        };
        let LowRank {
            kind, rank, data, ..
        } = self.b;
        let tiles = Tiles {
            data: &data[start / LOW_RANK_TILE * kind.tile_bytes(rank)..],
            n_groups: rank.div_ceil(kind.ranks_per_group()),
            is_q4: kind == LowRankType::Q4,
        };
        let h = QuantizedRanks {
            q,
            stride,
            scale,
            scale_stride,
        };
        Some((tiles, h))
    }
}

/// `y[t][r - rows.start] += sum scale * sum_k b[r][k] h[t][k]` over some terms, for the outputs
/// `rows`, with `y` `[n_tokens, rows.len()]`.
///
/// # Panics
///
/// If the shapes do not fit, `rows` does not begin at a multiple of 16, or an `h` is int8 and its
/// `b` is not.
pub fn add_low_rank(
    level: crate::Level,
    terms: &[LowRankTerm<'_>],
    rows: Range<usize>,
    y: &mut TileMut<'_>,
) {
    assert_eq!(rows.len(), y.n_cols());
    terms.iter().for_each(|term| term.check(y.n_rows(), &rows));
    let is_done = add_tiles(level, terms, rows.start, y);
    for LowRankTerm { b, h, scale } in terms {
        match *h {
            LowRankInput::F32 { h, stride } => match b.kind.is_quantized() {
                true => add_tiles_f32(level, b, rows.start, h, stride, *scale, y),
                false => add_rows_f32(level, b, rows.start, h, stride, *scale, y),
            },
            LowRankInput::Q8 { .. } if is_done => {}
            LowRankInput::Q8 {
                q,
                stride,
                scale: h_scale,
                scale_stride,
            } => {
                let h = QuantizedRanks {
                    q,
                    stride,
                    scale: h_scale,
                    scale_stride,
                };
                add_tiles_q8(b, rows.start, h, *scale, y);
            }
        }
    }
}

multilevel! {
    /// Float rows of `b`.
    fn add_rows_f32(
        level: Level,
        b: &LowRank<'_>,
        start: usize,
        h: &[f32],
        stride: usize,
        scale: f32,
        y: &mut TileMut<'_>,
    ) {
        /// Values decoded at once.
        const RUN: usize = 64;
        let mut run = [0.0; RUN];
        for o in 0..y.n_cols() {
            for k in (0..b.rank).step_by(RUN) {
                let run = &mut run[..RUN.min(b.rank - k)];
                for (i, x) in run.iter_mut().enumerate() {
                    *x = b.value(start + o, k + i);
                }
                for t in 0..y.n_rows() {
                    let h = &h[t * stride + k..][..run.len()];
                    y.row(t)[o] += scale * crate::lanes::dot(run, h);
                }
            }
        }
    }
}

multilevel! {
    /// Integer tiles of `b`, float `h`.
    fn add_tiles_f32(
        level: Level,
        b: &LowRank<'_>,
        start: usize,
        h: &[f32],
        stride: usize,
        scale: f32,
        y: &mut TileMut<'_>,
    ) {
        for o in (0..y.n_cols()).step_by(LOW_RANK_TILE) {
            let tile = b.tile((start + o) / LOW_RANK_TILE);
            let mut scales = [0.0; LOW_RANK_TILE];
            for (i, s) in scales.iter_mut().enumerate() {
                *s = scale * tile.scale(i);
            }
            for t in 0..y.n_rows() {
                let h = &h[t * stride..][..b.rank];
                let mut sums = [0.0; LOW_RANK_TILE];
                for (g, group) in tile.groups.iter().enumerate() {
                    // The ranks of four columns, zeros past the last.
                    let four = |k: usize| {
                        let mut four = [0.0; 4];
                        let rest = h.get(k..).unwrap_or_default();
                        let n = rest.len().min(4);
                        four[..n].copy_from_slice(&rest[..n]);
                        four
                    };
                    match b.kind {
                        LowRankType::Q4 => {
                            let (first, second) = (four(8 * g), four(8 * g + 4));
                            for (sum, b) in sums.iter_mut().zip(group.as_chunks::<4>().0) {
                                for j in 0..4 {
                                    *sum += first[j] * f32::from(low(b[j]));
                                    *sum += second[j] * f32::from(high(b[j]));
                                }
                            }
                        }
                        _ => {
                            let four = four(4 * g);
                            for (sum, b) in sums.iter_mut().zip(group.as_chunks::<4>().0) {
                                for j in 0..4 {
                                    *sum += four[j] * f32::from(b[j] as i8);
                                }
                            }
                        }
                    }
                }
                let y = &mut y.row(t)[o..];
                for ((y, sum), scale) in y.iter_mut().zip(sums).zip(scales) {
                    *y += scale * sum;
                }
            }
        }
    }
}

/// Integer tiles of `b`, int8 `h`: exact sums of integers, then
/// `y += (scale scale_h) (scale_b sum)`.
fn add_tiles_q8(
    b: &LowRank<'_>,
    start: usize,
    h: QuantizedRanks<'_>,
    scale: f32,
    y: &mut TileMut<'_>,
) {
    let padded = b.kind.padded_rank(b.rank);
    for o in (0..y.n_cols()).step_by(LOW_RANK_TILE) {
        let tile = b.tile((start + o) / LOW_RANK_TILE);
        let mut scales = [0.0; LOW_RANK_TILE];
        for (i, s) in scales.iter_mut().enumerate() {
            *s = tile.scale(i);
        }
        for t in 0..y.n_rows() {
            let fours = h.q[t * h.stride..][..padded].as_chunks::<4>().0;
            let mut sums = [0_i32; LOW_RANK_TILE];
            match b.kind {
                LowRankType::Q4 => {
                    for (group, x) in tile.groups.iter().zip(fours.as_chunks::<2>().0) {
                        for (sum, b) in sums.iter_mut().zip(group.as_chunks::<4>().0) {
                            for j in 0..4 {
                                *sum += i32::from(x[0][j]) * i32::from(low(b[j]));
                                *sum += i32::from(x[1][j]) * i32::from(high(b[j]));
                            }
                        }
                    }
                }
                _ => {
                    for (group, x) in tile.groups.iter().zip(fours) {
                        for (sum, b) in sums.iter_mut().zip(group.as_chunks::<4>().0) {
                            for j in 0..4 {
                                *sum += i32::from(x[j]) * i32::from(b[j] as i8);
                            }
                        }
                    }
                }
            }
            let scale = scale * h.scale[t * h.scale_stride].scale;
            let y = &mut y.row(t)[o..];
            for ((y, sum), b_scale) in y.iter_mut().zip(sums).zip(scales) {
                *y += scale * (b_scale * sum as f32);
            }
        }
    }
}

multilevel! {
    /// Rounds one token's `h` `[rank]` to int8 with one scale, `h[k] = scale * q[k]`; the rest of
    /// `q`, `[at least rank]`, becomes zero. `scale` is set to that scale and the sum of the integers.
    ///
    /// Rounds as [`quantize_q8`](crate::quantize_q8) does, NaN and infinity included.
    ///
    /// # Panics
    ///
    /// If `q` is shorter than `h`.
    pub fn quantize_h(level: Level, h: &[f32], q: &mut [i8], scale: &mut RankScale) {
        let (q, padding) = q.split_at_mut(h.len());
        padding.fill(0);
        let (h_scale, inverse) = q8_scale(h);
        for (q, h) in q.iter_mut().zip(h) {
            *q = round_q8(*h, inverse);
        }
        *scale = RankScale {
            scale: h_scale,
            sum: q.iter().map(|q| i32::from(*q)).sum(),
        };
    }
}

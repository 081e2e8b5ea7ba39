//! Causal attention with grouped queries over a KV cache, by the online softmax (Milakov and
//! Gimelshein, arXiv 1805.02867): one pass over the cache, no buffer as long as the context.

#![allow(clippy::needless_range_loop)] // indices name lanes, queries and positions of several arrays at once

use core::ops::Range;

use crate::lanes::{across, exp};
use crate::simd::{Lanes, Plain, float, on_float_level};
use crate::{DType, Level, TileMut, quant};

/// The largest head, in elements.
pub const MAX_HEAD_DIM: usize = 512;
/// The most query heads that share a KV head.
pub const MAX_QUERY_GROUP: usize = 64;
/// Positions whose keys lie element by element beside each other.
pub const KEY_GROUP: usize = 16;

/// The most positions that are looked at together: some groups of keys.
const TILE: usize = 64;
/// Elements of keys, and of values, that are decoded at once: 64 positions of heads of 128.
const TILE_LEN: usize = TILE * 128;
/// Query rows that go over the cache together, so that each tile is decoded once for all of them.
const MAX_QUERIES: usize = MAX_QUERY_GROUP;
/// Bytes of a block of Q8_0, and its elements.
const Q8_BYTES: usize = DType::Q8_0.block_bytes();
const Q8_LEN: usize = DType::Q8_0.block_len();

/// The keys and values of one KV head, and how queries look at them.
#[derive(Clone, Copy, Debug)]
pub struct KvHead<'a> {
    /// Type of `k` and `v`: F32, F16 or Q8_0.
    pub dtype: DType,
    /// Elements of a key, of a value and of a query.
    pub head_dim: usize,
    /// Places for positions, whole groups of 16: position `p` is at place `p % n_places`, so that what
    /// no query sees any more makes room for what comes.
    pub n_places: usize,
    /// Keys as [`store_key`] lays them out, whole groups of 16 places.
    pub k: &'a [u8],
    /// Values, `[n_places, head_dim]`.
    pub v: &'a [u8],
    /// Position of the first query token: token `t` sees positions up to `first + t`.
    pub first: usize,
    /// Where set, a token sees the last `window` positions only, its own included.
    pub window: Option<usize>,
    /// Multiplies the scores.
    pub scale: f32,
    /// Where set, scores become `cap tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// Attention sinks: for each query head of the group one more score, not multiplied, of a position whose value
    /// is nothing; empty where there are none.
    pub sinks: &'a [f32],
}

/// Puts the key `[head_dim]` of a position into `keys`, the keys of whole groups of 16 positions.
///
/// A group is `[head_dim][16 positions]`, so that one load has an element of 16 keys; of Q8_0 it
/// is, for each 32 elements, 16 scales and `[32][16 positions]` integers.
///
/// # Panics
///
/// If `keys` has no such position, the type is not F32, F16 or Q8_0, or the key is longer than
/// [`MAX_HEAD_DIM`] or no whole number of blocks.
pub fn store_key(dtype: DType, key: &[f32], position: usize, keys: &mut [u8]) {
    /// Puts elements of `N` bytes into one of 16 columns.
    fn spread<const N: usize>(elements: &[u8], column: usize, columns: &mut [u8]) {
        let rows = columns.as_chunks_mut::<N>().0.chunks_exact_mut(KEY_GROUP);
        for (element, row) in elements.as_chunks::<N>().0.iter().zip(rows) {
            row[column] = *element;
        }
    }
    let mut buffer = [0; 4 * MAX_HEAD_DIM];
    let row = &mut buffer[..key.len() / dtype.block_len() * dtype.block_bytes()];
    quant::quantize(dtype, key, row);
    let n_bytes = KEY_GROUP * row.len();
    let (group, column) = (position / KEY_GROUP, position % KEY_GROUP);
    let group = &mut keys[group * n_bytes..][..n_bytes];
    match dtype {
        DType::F32 => spread::<4>(row, column, group),
        DType::F16 => spread::<2>(row, column, group),
        DType::Q8_0 => {
            let blocks = group.chunks_exact_mut(KEY_GROUP * Q8_BYTES);
            for (block, columns) in row.chunks_exact(Q8_BYTES).zip(blocks) {
                let (scales, integers) = columns.split_at_mut(2 * KEY_GROUP);
                spread::<2>(&block[..2], column, scales);
                spread::<1>(&block[2..], column, integers);
            }
        }
        other => panic!("no cache is {other}"),
    }
}

/// Attention of `y.n_rows()` tokens, each with a group of query heads that share one KV head.
///
/// Token `t`'s queries are `q[t * q_stride..][..y.n_cols()]`: the group's heads one after the
/// other, as their outputs in `y` `[n_tokens, group * head_dim]`.
///
/// `y = sum_p softmax_p(scale q.k_p) v_p` over the positions `p` that the token sees, and the head's sink.
///
/// # Panics
///
/// If the shapes do not fit: places missing that a token sees, or none or no whole groups; `y`'s columns no
/// whole number of heads or more than [`MAX_QUERY_GROUP`] of them, a head longer than [`MAX_HEAD_DIM`]; sinks for
/// another number of heads.
pub fn attention(level: Level, kv: &KvHead<'_>, q: &[f32], q_stride: usize, y: &mut TileMut<'_>) {
    assert!(kv.head_dim <= MAX_HEAD_DIM && y.n_cols().is_multiple_of(kv.head_dim));
    assert!(kv.n_places > 0 && kv.n_places.is_multiple_of(KEY_GROUP));
    // What the first token sees from, to where the last one is.
    let from = kv
        .window
        .map_or(0, |window| (kv.first + 1).saturating_sub(window));
    assert!(kv.first + y.n_rows() - from <= kv.n_places);
    let group = y.n_cols() / kv.head_dim;
    assert!(group <= MAX_QUERIES);
    assert!(kv.sinks.is_empty() || kv.sinks.len() == group);
    for t in (0..y.n_rows()).step_by(MAX_QUERIES / group) {
        let tokens = t..y.n_rows().min(t + MAX_QUERIES / group);
        let mut queries = Queries::new(kv, q, q_stride, tokens, y);
        macro_rules! run {
            ($simd:ty, $features:literal) => {{
                #[inline(never)] // the buffers of two levels would lie on the stack
                #[target_feature(enable = $features)]
                fn entry(kv: &KvHead<'_>, queries: &mut Queries) {
                    // SAFETY: this function has the level's features, and the pointers are good as
                    // long as the borrows of `q` and `y`.
                    unsafe { attend::<$simd>(kv, queries) }
                }
                // SAFETY: the level's token proves that the CPU has the features.
                unsafe { entry(kv, &mut queries) }
            }};
        }
        on_float_level!(level, run, attend_plain(kv, &mut queries));
    }
}

/// The scalar level; never inlined, as the other levels' entries.
#[inline(never)]
fn attend_plain(kv: &KvHead<'_>, queries: &mut Queries) {
    // SAFETY: plain Rust needs no features; the pointers are good as long as the borrows they come from.
    unsafe { attend::<Plain>(kv, queries) }
}

/// Positions whose places follow each other.
struct Run {
    /// The first of them, counted from where the walk begins.
    first: usize,
    /// Its place.
    place: usize,
    len: usize,
}

/// The walk over `len` positions from `start` on, around the places' end where they reach it.
struct Runs {
    n_places: usize,
    start: usize,
    done: usize,
    len: usize,
}

impl Runs {
    fn new(n_places: usize, start: usize, len: usize) -> Runs {
        Runs {
            n_places,
            start,
            done: 0,
            len,
        }
    }
}

impl Iterator for Runs {
    type Item = Run;

    #[inline(always)]
    fn next(&mut self) -> Option<Run> {
        let first = self.done;
        let place = match self.start + first {
            position if position < self.n_places => position,
            position => position % self.n_places,
        };
        let len = (self.len - first).min(self.n_places - place);
        self.done += len;
        (len > 0).then_some(Run { first, place, len })
    }
}

/// The queries of some tokens, with their outputs and what the softmax knows of each so far.
struct Queries {
    n: usize,
    /// Query heads of a token.
    group: usize,
    /// The first token's position.
    first: usize,
    /// Queries, `[head_dim]` each.
    q: [*const f32; MAX_QUERIES],
    /// Outputs, `[head_dim]` each.
    y: [*mut f32; MAX_QUERIES],
    /// The largest score, and the sum of the weights relative to it.
    state: [(f32, f32); MAX_QUERIES],
}

impl Queries {
    /// Those of the tokens `tokens`, with outputs of zero.
    fn new(
        kv: &KvHead<'_>,
        q: &[f32],
        q_stride: usize,
        tokens: Range<usize>,
        y: &mut TileMut<'_>,
    ) -> Queries {
        let group = y.n_cols() / kv.head_dim;
        let mut queries = Queries {
            n: tokens.len() * group,
            group,
            first: kv.first + tokens.start,
            q: [core::ptr::null(); MAX_QUERIES],
            y: [core::ptr::null_mut(); MAX_QUERIES],
            state: [(f32::NEG_INFINITY, 0.0); MAX_QUERIES],
        };
        for (i, t) in tokens.enumerate() {
            let y = y.row(t);
            y.fill(0.0);
            for (h, y) in y.chunks_exact_mut(kv.head_dim).enumerate() {
                let q = &q[t * q_stride + h * kv.head_dim..][..kv.head_dim];
                queries.q[i * group + h] = q.as_ptr();
                queries.y[i * group + h] = y.as_mut_ptr();
            }
        }
        queries
    }

    /// The positions that query `i` sees.
    fn seen(&self, i: usize, window: Option<usize>) -> Range<usize> {
        let end = self.first + i / self.group + 1;
        window.map_or(0, |window| end.saturating_sub(window))..end
    }
}

/// # Safety
///
/// The CPU has the level's features, with which the caller is compiled; the pointers of `queries`
/// are to `kv.head_dim` elements, those in `y` to be written.
#[inline(always)]
unsafe fn attend<S: Lanes>(kv: &KvHead<'_>, queries: &mut Queries) {
    let n = kv.head_dim;
    let row_bytes = n / kv.dtype.block_len() * kv.dtype.block_bytes();
    let tile_len = TILE.min(TILE_LEN / n) / KEY_GROUP * KEY_GROUP;
    let (mut k, mut v) = ([0.0; TILE_LEN], [0.0; TILE_LEN]);
    let mut weights = [[0.0; TILE]; MAX_QUERIES];
    let all = queries.seen(0, kv.window).start..queries.seen(queries.n - 1, kv.window).end;
    let mut next = all.start / KEY_GROUP * KEY_GROUP;
    while next < all.end {
        // Tiles end at the same positions whichever queries there are, so that sums have one order.
        let start = next;
        let len = (tile_len - start % tile_len).min(all.end - start);
        next += len;
        let n_keys = len.next_multiple_of(KEY_GROUP);
        let (k, v) = (&mut k[..n_keys * n], &mut v[..len * n]);
        // SAFETY: the caller's.
        unsafe {
            for run in Runs::new(kv.n_places, start, n_keys) {
                let bytes = &kv.k[run.place * row_bytes..][..run.len * row_bytes];
                decode_keys::<S>(kv.dtype, bytes, &mut k[run.first * n..][..run.len * n]);
            }
            for run in Runs::new(kv.n_places, start, len) {
                let bytes = &kv.v[run.place * row_bytes..][..run.len * row_bytes];
                float::decode::<S>(kv.dtype, bytes, &mut v[run.first * n..][..run.len * n]);
            }
            let mut i = 0;
            while i < queries.n {
                i += match queries.n - i {
                    4.. => scores::<S, 4>(&queries.q[i..], kv.scale, k, n, &mut weights[i..]),
                    _ => scores::<S, 1>(&queries.q[i..], kv.scale, k, n, &mut weights[i..]),
                }
            }
        }
        if let Some(cap) = kv.softcap {
            weights[..queries.n]
                .iter_mut()
                .for_each(|scores| soft_cap(scores, cap));
        }
        for (i, weights) in weights[..queries.n].iter_mut().enumerate() {
            let seen = queries.seen(i, kv.window);
            let seen =
                seen.start.saturating_sub(start).min(len)..seen.end.saturating_sub(start).min(len);
            let (max, sum) = &mut queries.state[i];
            let rescale = soften(weights, seen, max, sum);
            if rescale != 1.0 {
                // SAFETY: the caller's.
                let y = unsafe { core::slice::from_raw_parts_mut(queries.y[i], n) };
                y.iter_mut().for_each(|y| *y *= rescale);
            }
        }
        // SAFETY: the caller's.
        unsafe {
            let mut i = 0;
            while i < queries.n {
                i += match queries.n - i {
                    4.. => add_values::<S, 4>(&weights[i..], v, n, &queries.y[i..]),
                    _ => add_values::<S, 1>(&weights[i..], v, n, &queries.y[i..]),
                }
            }
        }
    }
    for i in 0..queries.n {
        // SAFETY: the caller's.
        let y = unsafe { core::slice::from_raw_parts_mut(queries.y[i], n) };
        let (max, mut sum) = queries.state[i];
        if !kv.sinks.is_empty() {
            sum += exp(kv.sinks[i % queries.group] - max);
        }
        y.iter_mut().for_each(|y| *y /= sum);
    }
}

/// `cap tanh(score / cap)`.
#[inline(always)]
fn soft_cap(scores: &mut [f32; TILE], cap: f32) {
    for s in scores {
        *s = cap * (1.0 - 2.0 / (exp(2.0 * *s / cap) + 1.0));
    }
}

/// Turns the scores of a query into weights relative to the largest score so far, zeros where it
/// sees nothing, and updates that score and the sum of weights. Gives what the outputs so far must
/// be multiplied with.
#[inline(always)]
fn soften(scores: &mut [f32; TILE], seen: Range<usize>, max: &mut f32, sum: &mut f32) -> f32 {
    if seen.is_empty() {
        scores.fill(0.0);
        return 1.0;
    }
    scores[..seen.start].fill(f32::NEG_INFINITY);
    scores[seen.end..].fill(f32::NEG_INFINITY);
    let scores = scores.as_chunks_mut::<KEY_GROUP>().0;
    // Lane by lane, and the lanes at last, so that the compiler vectorizes it.
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut maxima = [*max; KEY_GROUP];
    for scores in &*scores {
        for (max, s) in maxima.iter_mut().zip(scores) {
            *max = larger(*max, *s);
        }
    }
    let new_max = across(maxima, larger);
    let mut sums = [0.0; KEY_GROUP];
    for scores in scores {
        for (sum, s) in sums.iter_mut().zip(scores) {
            *s = exp(*s - new_max);
            *sum += *s;
        }
    }
    // What was summed so far was relative to the old maximum.
    let rescale = exp(*max - new_max);
    *max = new_max;
    *sum = *sum * rescale + across(sums, |a, b| a + b);
    rescale
}

/// Whole groups of keys as floats, `[groups][head_dim][16]`.
///
/// # Safety
///
/// As [`attend`].
#[inline(always)]
unsafe fn decode_keys<S: Lanes>(dtype: DType, bytes: &[u8], keys: &mut [f32]) {
    if dtype != DType::Q8_0 {
        // SAFETY: the caller's.
        return unsafe { float::decode::<S>(dtype, bytes, keys) };
    }
    let blocks = bytes.chunks_exact(KEY_GROUP * Q8_BYTES);
    for (bytes, keys) in blocks.zip(keys.chunks_exact_mut(KEY_GROUP * Q8_LEN)) {
        let (scales, integers) = bytes.split_at(2 * KEY_GROUP);
        let rows = integers.chunks_exact(KEY_GROUP);
        // SAFETY: the caller's; all chunks have 16 elements.
        unsafe {
            let scale = S::from_f16(scales.as_ptr());
            for (row, keys) in rows.zip(keys.chunks_exact_mut(KEY_GROUP)) {
                let row = S::from_i8(row.as_ptr().cast());
                S::store(S::mul(row, scale), keys.as_mut_ptr());
            }
        }
    }
}

/// `scores[i][p] = scale q_i . k_p` of `Q` queries for the positions of `keys`,
/// `[groups][head_dim][16]`. Gives `Q`.
///
/// # Safety
///
/// As [`attend`].
#[inline(always)]
unsafe fn scores<S: Lanes, const Q: usize>(
    q: &[*const f32],
    scale: f32,
    keys: &[f32],
    n: usize,
    scores: &mut [[f32; TILE]],
) -> usize {
    let n_groups = keys.len() / (KEY_GROUP * n);
    let mut g = 0;
    while g < n_groups {
        let keys = &keys[g * KEY_GROUP * n..];
        // SAFETY: the caller's.
        g += unsafe {
            match n_groups - g {
                4.. if S::WIDE_TILE => group_scores::<S, Q, 4>(q, scale, keys, n, scores, g),
                _ => group_scores::<S, Q, 1>(q, scale, keys, n, scores, g),
            }
        };
    }
    Q
}

/// [`scores`] of `G` groups, the first of them number `g`. Gives `G`.
///
/// # Safety
///
/// As [`attend`].
#[inline(always)]
unsafe fn group_scores<S: Lanes, const Q: usize, const G: usize>(
    q: &[*const f32],
    scale: f32,
    keys: &[f32],
    n: usize,
    scores: &mut [[f32; TILE]],
    g: usize,
) -> usize {
    assert!(q.len() >= Q && scores.len() >= Q && keys.len() >= G * KEY_GROUP * n);
    // SAFETY: the caller's; the keys of `G` groups are there by the assertion.
    unsafe {
        let mut sums = [[S::splat_float(0.0); G]; Q];
        for d in 0..n {
            let mut k = [S::splat_float(0.0); G];
            for (j, k) in k.iter_mut().enumerate() {
                *k = S::floats(keys.as_ptr().add((j * n + d) * KEY_GROUP));
            }
            for i in 0..Q {
                let q = S::splat_float(*q[i].add(d));
                for j in 0..G {
                    sums[i][j] = S::mul_add(k[j], q, sums[i][j]);
                }
            }
        }
        for i in 0..Q {
            for j in 0..G {
                let scores = &mut scores[i][(g + j) * KEY_GROUP..][..KEY_GROUP];
                let scaled = S::mul(sums[i][j], S::splat_float(scale));
                S::store(scaled, scores.as_mut_ptr());
            }
        }
    }
    G
}

/// `y_i += sum_p weights[i][p] v_p` for `Q` queries and `values` `[positions, head_dim]`. Gives `Q`.
///
/// # Safety
///
/// As [`attend`].
#[inline(always)]
unsafe fn add_values<S: Lanes, const Q: usize>(
    weights: &[[f32; TILE]],
    values: &[f32],
    n: usize,
    y: &[*mut f32],
) -> usize {
    let mut d = 0;
    while d + 16 <= n {
        // SAFETY: the caller's; so many elements from `d` on are in a head.
        d += unsafe {
            match n - d {
                64.. if S::WIDE_TILE => add_columns::<S, Q, 4>(weights, values, n, y, d),
                _ => add_columns::<S, Q, 1>(weights, values, n, y, d),
            }
        };
    }
    for i in 0..Q {
        for d in d..n {
            let terms = weights[i].iter().zip(values.chunks_exact(n));
            let sum: f32 = terms.map(|(w, v)| w * v[d]).sum();
            // SAFETY: the caller's.
            unsafe { *y[i].add(d) += sum };
        }
    }
    Q
}

/// [`add_values`] for the 16 `D` elements from `d` on. Gives their number.
///
/// # Safety
///
/// As [`attend`], and a head has as many elements.
#[inline(always)]
unsafe fn add_columns<S: Lanes, const Q: usize, const D: usize>(
    weights: &[[f32; TILE]],
    values: &[f32],
    n: usize,
    y: &[*mut f32],
    d: usize,
) -> usize {
    assert!(weights.len() >= Q && y.len() >= Q && d + 16 * D <= n && values.len() <= TILE * n);
    // SAFETY: the caller's; 16 D elements from `d` on are in each row by the assertion.
    unsafe {
        let mut sums = [[S::splat_float(0.0); D]; Q];
        for i in 0..Q {
            for j in 0..D {
                sums[i][j] = S::floats(y[i].add(d + 16 * j));
            }
        }
        for p in 0..values.len() / n {
            let mut v = [S::splat_float(0.0); D];
            for (j, v) in v.iter_mut().enumerate() {
                *v = S::floats(values.as_ptr().add(p * n + d + 16 * j));
            }
            for i in 0..Q {
                let weight = S::splat_float(weights[i][p]);
                for j in 0..D {
                    sums[i][j] = S::mul_add(v[j], weight, sums[i][j]);
                }
            }
        }
        for i in 0..Q {
            for j in 0..D {
                S::store(sums[i][j], y[i].add(d + 16 * j));
            }
        }
    }
    16 * D
}

#[cfg(test)]
mod tests;

//! Causal attention with grouped queries over a KV cache, by the online softmax (Milakov and
//! Gimelshein, arXiv 1805.02867): one pass over the cache, no buffer as long as the context.

use crate::lanes::{dot, exp};
use crate::level::multilevel;
use crate::{DType, Level, TileMut, quant};

/// The largest head, in elements.
pub const MAX_HEAD_DIM: usize = 512;

/// The most positions that are looked at together.
const TILE: usize = 64;
/// Elements of keys, and of values, that are decoded at once: 64 positions of heads of 128.
const TILE_LEN: usize = 8192;
/// The most query heads that share a KV head.
pub const MAX_QUERY_GROUP: usize = 64;
/// Query rows that go over the cache together, so that each tile is decoded once for all of them.
const MAX_QUERIES: usize = MAX_QUERY_GROUP;

/// The keys and values of one KV head, and how queries look at them.
#[derive(Clone, Copy, Debug)]
pub struct KvHead<'a> {
    /// Type of `k` and `v`.
    pub dtype: DType,
    /// Elements of a key, of a value and of a query.
    pub head_dim: usize,
    /// Keys, `[n_positions, head_dim]`.
    pub k: &'a [u8],
    /// Values, `[n_positions, head_dim]`.
    pub v: &'a [u8],
    /// Position of the first query token: token `t` sees positions up to `first + t`.
    pub first: usize,
    /// Where set, a token sees the last `window` positions only, its own included.
    pub window: Option<usize>,
    /// Multiplies the scores.
    pub scale: f32,
}

/// Attention of `y.n_rows()` tokens, each with a group of query heads that share one KV head.
///
/// Token `t`'s queries are `q[t * q_stride..][..y.n_cols()]`: the group's heads one after the
/// other, as their outputs in `y` `[n_tokens, group * head_dim]`.
///
/// `y = sum_p softmax_p(scale q.k_p) v_p` over the positions `p` that the token sees.
///
/// # Panics
///
/// If the shapes do not fit: the cache shorter than the last token's position, `y`'s columns no
/// whole number of heads or more than [`MAX_QUERY_GROUP`] of them, a head longer than [`MAX_HEAD_DIM`].
pub fn attention(level: Level, kv: &KvHead<'_>, q: &[f32], q_stride: usize, y: &mut TileMut<'_>) {
    assert!(kv.head_dim <= MAX_HEAD_DIM && y.n_cols().is_multiple_of(kv.head_dim));
    let group = y.n_cols() / kv.head_dim;
    assert!(group <= MAX_QUERIES);
    for t in (0..y.n_rows()).step_by(MAX_QUERIES / group) {
        let n_tokens = (y.n_rows() - t).min(MAX_QUERIES / group);
        attend(level, kv, q, q_stride, t, n_tokens, y);
    }
}

multilevel! {
    /// The tokens `t0..t0 + n_tokens`.
    fn attend(
        level: Level,
        kv: &KvHead<'_>,
        q: &[f32],
        q_stride: usize,
        t0: usize,
        n_tokens: usize,
        y: &mut TileMut<'_>,
    ) {
        let n = kv.head_dim;
        let row_bytes = n / kv.dtype.block_len() * kv.dtype.block_bytes();
        let tile_len = TILE.min(TILE_LEN / n);
        let (mut k, mut v) = ([0.0; TILE_LEN], [0.0; TILE_LEN]);
        let mut scores = [0.0; TILE];
        // Of each query: the largest score so far, and the sum of the weights relative to it.
        let mut state = [(f32::NEG_INFINITY, 0.0); MAX_QUERIES];
        let end_of = |t: usize| kv.first + t + 1;
        let start_of = |t: usize| kv.window.map_or(0, |window| end_of(t).saturating_sub(window));
        for t in t0..t0 + n_tokens {
            y.row(t).fill(0.0);
        }
        let all = start_of(t0)..end_of(t0 + n_tokens - 1);
        for start in all.clone().step_by(tile_len) {
            let tile = start..all.end.min(start + tile_len);
            let bytes = tile.start * row_bytes..tile.end * row_bytes;
            decode(kv.dtype, &kv.k[bytes.clone()], &mut k[..tile.len() * n]);
            decode(kv.dtype, &kv.v[bytes], &mut v[..tile.len() * n]);
            for t in t0..t0 + n_tokens {
                // The part of the tile that this token sees.
                let seen = tile.start.max(start_of(t))..tile.end.min(end_of(t));
                if seen.is_empty() {
                    continue;
                }
                let rows = (seen.start - start) * n..(seen.end - start) * n;
                let scores = &mut scores[..seen.len()];
                let heads = q[t * q_stride..].chunks_exact(n).zip(y.row(t).chunks_exact_mut(n));
                let group = heads.len();
                for (h, (q, y)) in heads.enumerate() {
                    let (max, sum) = &mut state[(t - t0) * group + h];
                    for (score, k) in scores.iter_mut().zip(k[rows.clone()].chunks_exact(n)) {
                        *score = kv.scale * dot(q, k);
                    }
                    let new_max = scores.iter().copied().fold(*max, f32::max);
                    scores.iter_mut().for_each(|s| *s = exp(*s - new_max));
                    // What was summed so far was relative to the old maximum.
                    let rescale = exp(*max - new_max);
                    *max = new_max;
                    *sum = *sum * rescale + scores.iter().sum::<f32>();
                    y.iter_mut().for_each(|y| *y *= rescale);
                    for (weight, v) in scores.iter().zip(v[rows.clone()].chunks_exact(n)) {
                        y.iter_mut().zip(v).for_each(|(y, v)| *y += weight * v);
                    }
                }
            }
        }
        for t in t0..t0 + n_tokens {
            let group = y.n_cols() / n;
            for (h, y) in y.row(t).chunks_exact_mut(n).enumerate() {
                let sum = state[(t - t0) * group + h].1;
                y.iter_mut().for_each(|y| *y /= sum);
            }
        }
    }
}

/// Rows of the cache as floats; its plain types with the level's instructions.
#[inline(always)]
fn decode(dtype: DType, src: &[u8], dst: &mut [f32]) {
    match dtype.is_quantized() {
        true => quant::dequantize(dtype, src, dst),
        false => quant::plain::decode(dtype, src, dst),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, in f64, for queries, keys and values of float32.
    fn naive(kv: &KvHead<'_>, k: &[f32], v: &[f32], q: &[f32], t: usize) -> Vec<f64> {
        let n = kv.head_dim;
        let end = kv.first + t + 1;
        let start = kv.window.map_or(0, |w| end.saturating_sub(w));
        let dot = |p: usize| -> f64 {
            let k = &k[p * n..][..n];
            q.iter()
                .zip(k)
                .map(|(q, k)| f64::from(*q) * f64::from(*k))
                .sum()
        };
        let weights: Vec<f64> = (start..end)
            .map(|p| (f64::from(kv.scale) * dot(p)).exp())
            .collect();
        let sum: f64 = weights.iter().sum();
        (0..n)
            .map(|i| {
                let rows = weights.iter().zip(start..end);
                rows.map(|(w, p)| w * f64::from(v[p * n + i])).sum::<f64>() / sum
            })
            .collect()
    }

    #[test]
    fn agrees_with_the_definition_at_every_level() {
        let wave = |n: usize, f: f32| (0..n).map(|i| (i as f32 * f).sin()).collect::<Vec<_>>();
        for (n, group, first, n_tokens, window) in [
            (64, 4, 0, 1, None),
            (64, 4, 150, 1, None),
            (32, 2, 60, 70, None),
            (16, 3, 5, 130, Some(7)),
            (512, 1, 40, 3, Some(33)),
            (20, 64, 63, 2, None),
        ] {
            let n_positions = first + n_tokens;
            let (k, v) = (wave(n_positions * n, 0.37), wave(n_positions * n, 0.73));
            let q_stride = group * n + 5;
            let q = wave(n_tokens * q_stride, 1.1);
            let kv = KvHead {
                dtype: DType::F32,
                head_dim: n,
                k: bytemuck::cast_slice(&k),
                v: bytemuck::cast_slice(&v),
                first,
                window,
                scale: 0.3,
            };
            for level in Level::available() {
                let mut y = vec![f32::NAN; n_tokens * group * n];
                attention(
                    level,
                    &kv,
                    &q,
                    q_stride,
                    &mut TileMut::new(&mut y, group * n),
                );
                for (t, y) in y.chunks_exact(group * n).enumerate() {
                    for (h, y) in y.chunks_exact(n).enumerate() {
                        let q = &q[t * q_stride + h * n..][..n];
                        for (y, truth) in y.iter().zip(naive(&kv, &k, &v, q, t)) {
                            assert!((f64::from(*y) - truth).abs() < 1e-5, "{y} {truth}");
                        }
                    }
                }
            }
        }
    }
}

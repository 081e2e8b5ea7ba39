//! Causal attention with grouped queries over a KV cache, by the online softmax (Milakov and
//! Gimelshein, arXiv 1805.02867): one pass over the cache, no buffer as long as the context.

use crate::{DType, Level, TileMut, quant};

/// The largest head, in elements.
pub const MAX_HEAD_DIM: usize = 512;

/// Positions whose scores are held at once.
const TILE: usize = 64;

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
/// whole number of heads, a head longer than [`MAX_HEAD_DIM`].
pub fn attention(level: Level, kv: &KvHead<'_>, q: &[f32], q_stride: usize, y: &mut TileMut<'_>) {
    assert!(kv.head_dim <= MAX_HEAD_DIM && y.n_cols().is_multiple_of(kv.head_dim));
    let _ = level;
    for t in 0..y.n_rows() {
        let end = kv.first + t + 1;
        let start = kv.window.map_or(0, |window| end.saturating_sub(window));
        let q = &q[t * q_stride..][..y.n_cols()];
        let heads = q.chunks_exact(kv.head_dim);
        for (q, y) in heads.zip(y.row(t).chunks_exact_mut(kv.head_dim)) {
            attend(kv, start, end, q, y);
        }
    }
}

/// One query over the positions `start..end`.
fn attend(kv: &KvHead<'_>, start: usize, end: usize, q: &[f32], y: &mut [f32]) {
    let row_bytes = kv.head_dim / kv.dtype.block_len() * kv.dtype.block_bytes();
    let mut row = [0.0; MAX_HEAD_DIM];
    let row = &mut row[..kv.head_dim];
    let mut scores = [0.0; TILE];
    let (mut max, mut sum) = (f32::NEG_INFINITY, 0.0);
    y.fill(0.0);
    for tile in (start..end).step_by(TILE) {
        let scores = &mut scores[..TILE.min(end - tile)];
        for (p, score) in scores.iter_mut().enumerate() {
            quant::dequantize(kv.dtype, &kv.k[(tile + p) * row_bytes..][..row_bytes], row);
            *score = kv.scale * q.iter().zip(&*row).map(|(q, k)| q * k).sum::<f32>();
        }
        let new_max = scores.iter().copied().fold(max, f32::max);
        // What was summed so far was relative to the old maximum.
        let rescale = libm::expf(max - new_max);
        max = new_max;
        sum *= rescale;
        y.iter_mut().for_each(|y| *y *= rescale);
        for (p, score) in scores.iter().enumerate() {
            let weight = libm::expf(score - max);
            sum += weight;
            quant::dequantize(kv.dtype, &kv.v[(tile + p) * row_bytes..][..row_bytes], row);
            for (y, v) in y.iter_mut().zip(&*row) {
                *y += weight * v;
            }
        }
    }
    y.iter_mut().for_each(|y| *y /= sum);
}

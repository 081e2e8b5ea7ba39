//! Every buffer that a step uses, allocated when the session starts or its composition is set.

use alloc::vec::Vec;

use tandem_kernels::{Input, Q8_BLOCK, Q8_GROUP, Q8_STARTS, Q8Rows, SharedMatrix, quantize_q8};

use crate::linear::{Exec, LinearInput};
use crate::rank_pass::Ranks;
use crate::weights::Linear;
use crate::{Config, SessionError};

/// Tokens of one task in steps that go token by token.
pub(crate) const TOKENS_PER_TASK: usize = 4;

/// Buffers for `n_batch` tokens at a time.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// The residual stream, `[n_batch, n_embd]`.
    pub x: Vec<f32>,
    /// The normalized residual stream, `[n_batch, n_embd]`.
    pub h: Activations,
    /// What linears compute, one after the other: queries, keys and values, `[n_batch, n_q]` and
    /// twice `[n_batch, n_kv]`, and what a block adds to the residual stream, `[n_batch, n_embd]`.
    pub y: Vec<f32>,
    /// Attention's output, `[n_batch, n_q]`.
    pub attn: Activations,
    /// The gated inside of the feed-forward network, `[n_batch, n_ff]`.
    pub gated: Activations,
    /// Rotary angles of the global layers.
    pub rope: RopeTable,
    /// Rotary angles of the local layers.
    pub rope_local: RopeTable,
    /// Logits of one token, `[n_vocab]`.
    pub logits: Vec<f32>,
    /// The ranks of the composition's low-rank terms; made when that is set.
    pub ranks: Ranks,
}

/// The input of linears: rows of floats and, for quantized weights, the same rounded to int8.
#[derive(Debug)]
pub(crate) struct Activations {
    /// `[n_batch, n_cols]`.
    pub f32: Vec<f32>,
    n_cols: usize,
    /// See [`Q8Rows`]; empty where `n_cols` is no multiple of its block, as no weights are
    /// quantized then.
    q: Vec<i8>,
    scale: Vec<f32>,
    sum: Vec<f32>,
    start: Vec<i32>,
}

impl Activations {
    fn new(n_batch: usize, n_cols: usize) -> Result<Activations, SessionError> {
        let n_quantized = if n_cols.is_multiple_of(Q8_BLOCK) {
            n_batch * n_cols
        } else {
            0
        };
        Ok(Activations {
            f32: zeroed(n_batch * n_cols)?,
            n_cols,
            q: zeroed(n_quantized)?,
            scale: zeroed(n_quantized / Q8_BLOCK)?,
            sum: zeroed(n_quantized / Q8_GROUP)?,
            start: zeroed(n_quantized / Q8_BLOCK * Q8_STARTS)?,
        })
    }

    fn n_bytes(n_batch: usize, n_cols: usize) -> usize {
        let n_blocks = n_cols / Q8_BLOCK;
        n_batch * (5 * n_cols + 4 * (n_blocks + n_cols / Q8_GROUP + n_blocks * Q8_STARTS))
    }

    /// The first `n_tokens` rows as the input of `users`, rounded to int8 if one of them wants it.
    pub(crate) fn input(
        &mut self,
        exec: &Exec<'_>,
        n_tokens: usize,
        users: &[&Linear<'_>],
    ) -> LinearInput<'_> {
        let n_cols = self.n_cols;
        let n = n_tokens * n_cols;
        let x = &self.f32[..n];
        let q8 = users.iter().any(|linear| exec.wants_q8(linear)).then(|| {
            let (n_blocks, n_groups) = (n_cols / Q8_BLOCK, n_cols / Q8_GROUP);
            let q = SharedMatrix::new(&mut self.q[..n], n_cols, TOKENS_PER_TASK, n_cols);
            let scale = SharedMatrix::new(
                &mut self.scale[..n / Q8_BLOCK],
                n_blocks,
                TOKENS_PER_TASK,
                n_blocks,
            );
            let sum = SharedMatrix::new(
                &mut self.sum[..n / Q8_GROUP],
                n_groups,
                TOKENS_PER_TASK,
                n_groups,
            );
            let n_starts = n_blocks * Q8_STARTS;
            let start = SharedMatrix::new(
                &mut self.start[..n / Q8_BLOCK * Q8_STARTS],
                n_starts,
                TOKENS_PER_TASK,
                n_starts,
            );
            exec.light_pool(n_tokens)
                .run(n_tokens.div_ceil(TOKENS_PER_TASK), &|i| {
                    let (mut q, mut scale) = (q.tile(i, 0), scale.tile(i, 0));
                    let (mut sum, mut start) = (sum.tile(i, 0), start.tile(i, 0));
                    let rows = x[i * TOKENS_PER_TASK * n_cols..].chunks_exact(n_cols);
                    for (t, x) in rows.take(TOKENS_PER_TASK).enumerate() {
                        let (q, scale) = (q.row(t), scale.row(t));
                        quantize_q8(exec.level, x, q, scale, sum.row(t), start.row(t));
                    }
                });
            Input::Q8(Q8Rows {
                q: &self.q[..n],
                scale: &self.scale[..n / Q8_BLOCK],
                sum: &self.sum[..n / Q8_GROUP],
                start: &self.start[..n / Q8_BLOCK * Q8_STARTS],
            })
        });
        LinearInput {
            f32: Input::F32(x),
            q8,
        }
    }
}

/// Rotary frequencies, and the angles of the positions of a batch.
#[derive(Debug)]
pub(crate) struct RopeTable {
    /// `[n_rot / 2]`.
    pub inv_freq: Vec<f32>,
    /// Length of the turned vectors.
    pub magnitude: f32,
    /// `[n_batch, n_rot / 2]`.
    pub cos: Vec<f32>,
    /// `[n_batch, n_rot / 2]`.
    pub sin: Vec<f32>,
}

impl Scratch {
    pub(crate) fn new(config: &Config, n_batch: usize) -> Result<Scratch, SessionError> {
        let (n_embd, n_q, n_ff) = (config.n_embd, config.n_q(), config.n_ff);
        Ok(Scratch {
            x: zeroed(n_batch * n_embd)?,
            h: Activations::new(n_batch, n_embd)?,
            y: zeroed(n_batch * n_y(config))?,
            attn: Activations::new(n_batch, n_q)?,
            gated: Activations::new(n_batch, n_ff)?,
            rope: RopeTable::new(config.n_rot / 2, n_batch)?,
            rope_local: RopeTable::new(config.n_rot / 2, n_batch)?,
            logits: zeroed(config.n_vocab)?,
            ranks: Ranks::default(),
        })
    }

    /// Bytes of the buffers.
    pub(crate) fn n_bytes(config: &Config, n_batch: usize) -> usize {
        let (n_embd, n_q, n_ff) = (config.n_embd, config.n_q(), config.n_ff);
        let floats = n_embd + n_y(config) + 2 * config.n_rot;
        let activations = [n_embd, n_q, n_ff].map(|n| Activations::n_bytes(n_batch, n));
        4 * n_batch * floats + activations.iter().sum::<usize>() + 4 * config.n_vocab
    }
}

/// Columns of [`Scratch::y`].
fn n_y(config: &Config) -> usize {
    let n_qkv = config.n_q() + 2 * config.n_kv();
    n_qkv.max(config.n_embd)
}

impl RopeTable {
    fn new(n_pairs: usize, n_batch: usize) -> Result<RopeTable, SessionError> {
        Ok(RopeTable {
            inv_freq: zeroed(n_pairs)?,
            magnitude: 1.0,
            cos: zeroed(n_batch * n_pairs)?,
            sin: zeroed(n_batch * n_pairs)?,
        })
    }
}

/// A buffer of zeros, or the error that there is no memory for it.
pub(crate) fn zeroed<T: Clone + Default>(n: usize) -> Result<Vec<T>, SessionError> {
    let mut buffer = Vec::new();
    buffer
        .try_reserve_exact(n)
        .map_err(|_| SessionError::OutOfMemory {
            n_bytes: n.saturating_mul(size_of::<T>()),
        })?;
    buffer.resize(n, T::default());
    Ok(buffer)
}

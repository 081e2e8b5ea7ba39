//! Every buffer that a step uses, allocated when the session starts or its composition is set.

use alloc::vec::Vec;

use tandem_kernels::{Input, Pool, Q8_BLOCK, Q8_SUPER, Q8Rows, Q8Super, SharedMatrix, quantize_q8};

use crate::linear::{Exec, LinearInput};
use crate::rank_pass::Ranks;
use crate::weights::Linear;
use crate::{Config, SessionError};

/// Tokens of one task in steps that go token by token.
pub(crate) const TOKENS_PER_TASK: usize = 4;
/// Tasks of a thread in steps that go otherwise.
const TASKS_PER_THREAD: usize = 8;

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
    /// `[n_batch, n_cols]`; what [`Activations::outputs`] left out of them is old.
    pub f32: Vec<f32>,
    n_cols: usize,
    /// See [`Q8Rows`]; empty where no weights with so many columns are quantized.
    q8: Vec<Q8Super>,
}

impl Activations {
    fn new(n_batch: usize, n_cols: usize) -> Result<Activations, SessionError> {
        Ok(Activations {
            f32: zeroed(n_batch * n_cols)?,
            n_cols,
            q8: zeroed(n_batch * n_supers(n_cols))?,
        })
    }

    fn n_bytes(n_batch: usize, n_cols: usize) -> usize {
        n_batch * (4 * n_cols + size_of::<Q8Super>() * n_supers(n_cols))
    }

    /// The first `n_tokens` rows as the input of `users`, rounded to int8 if one of them wants it.
    pub(crate) fn input(
        &mut self,
        exec: &Exec<'_>,
        n_tokens: usize,
        users: &[&Linear<'_>],
    ) -> LinearInput<'_> {
        let n_cols = self.n_cols;
        let wants_q8 = users.iter().any(|linear| exec.wants_q8(linear));
        if wants_q8 {
            let x = &self.f32[..n_tokens * n_cols];
            let supers = &mut self.q8[..n_tokens * n_supers(n_cols)];
            let n_tasks =
                (exec.pool.n_threads() * TASKS_PER_THREAD).min(SharedMatrix::<f32>::MAX_TILES);
            let task = supers.len().div_ceil(n_tasks);
            let n_tasks = supers.len().div_ceil(task);
            let supers = SharedMatrix::new(supers, 1, task, 1);
            exec.light_pool(n_tokens).run(n_tasks, &|i| {
                quantize_q8(exec.level, x, n_cols, i * task, supers.tile(i, 0).all());
            });
        }
        self.ready(n_tokens, (true, wants_q8))
    }

    /// `n_tokens` rows to be filled, as floats and as int8 where `wants` says so, in tiles of
    /// `task_cols` columns: `[n_tokens, n_cols]`, and `[n_supers, n_tokens]` of which whole
    /// [`Q8Super`]s are a tile.
    pub(crate) fn outputs(
        &mut self,
        n_tokens: usize,
        (wants_f32, wants_q8): (bool, bool),
        task_cols: usize,
    ) -> (Option<SharedMatrix<'_>>, Option<SharedMatrix<'_, Q8Super>>) {
        let n_cols = self.n_cols;
        let f32 = &mut self.f32[..n_tokens * n_cols];
        let f32 = wants_f32.then(|| SharedMatrix::new(f32, n_cols, n_tokens, task_cols));
        let q8 = wants_q8.then(|| {
            assert!(task_cols.is_multiple_of(Q8_SUPER));
            let supers = &mut self.q8[..n_tokens * n_supers(n_cols)];
            if !n_cols.is_multiple_of(Q8_SUPER) {
                let last = supers.len() - n_tokens;
                supers[last..].fill(Q8Super::default());
            }
            SharedMatrix::new(supers, n_tokens, task_cols / Q8_SUPER, n_tokens)
        });
        (f32, q8)
    }

    /// The first `n_tokens` rows, which have been filled as floats and as int8 where `has` says so.
    pub(crate) fn ready(&self, n_tokens: usize, has: (bool, bool)) -> LinearInput<'_> {
        let n_f32 = if has.0 { n_tokens * self.n_cols } else { 0 };
        let n_q8 = n_tokens * n_supers(self.n_cols);
        LinearInput {
            f32: Input::F32(&self.f32[..n_f32]),
            q8: has
                .1
                .then(|| Input::Q8(Q8Rows::new(&self.q8[..n_q8], n_tokens))),
        }
    }
}

/// The [`Q8Super`]s of a row; none where quantized weights cannot have so many columns.
fn n_supers(n_cols: usize) -> usize {
    match n_cols.is_multiple_of(Q8_BLOCK) {
        true => n_cols.div_ceil(Q8_SUPER),
        false => 0,
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

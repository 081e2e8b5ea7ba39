//! A session: one sequence of tokens run through a model.

use alloc::vec::Vec;

use tandem_kernels::{DType, Level, Limited, Pool};

use crate::forward::{forward, logits, set_frequencies};
use crate::linear::Exec;
use crate::rank_pass::Ranks;
use crate::scratch::{Scratch, zeroed};
use crate::{Composition, Config, KvCache, Model, SessionError};

/// How a session runs.
#[derive(Clone, Copy, Debug)]
pub struct SessionOptions {
    /// Positions of the context: prompt and reply together.
    pub n_ctx: usize,
    /// Tokens evaluated at once in prefill, at most [`MAX_BATCH`].
    pub n_batch: usize,
    /// Type of the KV cache: F32, F16 or Q8_0.
    pub kv_type: DType,
    /// Keep activations in float32 where they would be rounded to int8 for quantized weights.
    pub exact: bool,
    /// Instructions that the kernels may use.
    pub level: Level,
    /// The most threads of the pool that take part in prefill.
    pub n_threads: usize,
    /// The same for single tokens, where memory is the limit and all threads may be too many.
    pub n_threads_decode: usize,
}

impl SessionOptions {
    /// The context of the model, at most 4096 tokens; F16 cache; the best instructions; all threads.
    pub fn for_model(config: &Config) -> SessionOptions {
        SessionOptions {
            n_ctx: config.n_ctx_train.min(4096),
            n_batch: 256,
            kv_type: DType::F16,
            exact: false,
            level: Level::detect(),
            n_threads: usize::MAX,
            n_threads_decode: usize::MAX,
        }
    }
}

/// Bytes that a session allocates, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The KV cache.
    pub kv_cache: usize,
    /// All other buffers.
    pub scratch: usize,
}

/// The most tokens evaluated at once: buffers grow with them, the speed no longer does.
pub const MAX_BATCH: usize = 1024;

/// Logits evaluated at once when those of all tokens are asked for.
const LOGIT_ROWS: usize = 8;

/// A model at work on one sequence. Everything it needs is allocated when it is made or its
/// composition is set; [`Session::step`] allocates nothing.
pub struct Session<'m, 'a> {
    model: &'m Model<'a>,
    /// What batches run on.
    exec: Exec<'m>,
    /// What single tokens run on.
    decode_pool: Limited<'m>,
    kv: KvCache,
    scratch: Scratch,
    /// The tokens whose keys and values are in the cache.
    tokens: Vec<u32>,
    n_ctx: usize,
    n_batch: usize,
}

impl<'m, 'a> Session<'m, 'a> {
    /// An empty session.
    ///
    /// # Errors
    ///
    /// Options that do not fit the model, or too little memory.
    pub fn new(
        model: &'m Model<'a>,
        pool: &'m dyn Pool,
        options: SessionOptions,
    ) -> Result<Session<'m, 'a>, SessionError> {
        let SessionOptions { n_ctx, n_batch, .. } = options;
        if n_ctx == 0 || n_batch == 0 {
            return Err(SessionError::Options {
                reason: "the context and the batch need at least one token",
            });
        }
        let n_batch = n_batch.min(n_ctx).min(MAX_BATCH);
        let mut scratch = Scratch::new(&model.config, n_batch)?;
        set_frequencies(model, &mut scratch, n_ctx);
        let mut tokens = zeroed(n_ctx)?;
        tokens.clear();
        Ok(Session {
            model,
            exec: Exec {
                level: options.level,
                pool: Limited::new(pool, options.n_threads),
                exact: options.exact,
                composition: None,
            },
            decode_pool: Limited::new(pool, options.n_threads_decode),
            kv: KvCache::new(&model.config, options.kv_type, n_ctx)?,
            scratch,
            tokens,
            n_ctx,
            n_batch,
        })
    }

    /// Bytes that [`Session::new`] and [`Session::set_composition`] would allocate; `None` where
    /// the options do not fit the model.
    pub fn memory(
        config: &Config,
        options: &SessionOptions,
        composition: Option<&Composition<'_>>,
    ) -> Option<Memory> {
        let n_batch = options.n_batch.min(options.n_ctx).min(MAX_BATCH);
        let n_floats = composition.map_or(0, Composition::max_record_floats);
        Some(Memory {
            kv_cache: KvCache::n_bytes(config, options.kv_type, options.n_ctx)?,
            scratch: Scratch::n_bytes(config, n_batch)
                .checked_add(options.n_ctx.checked_mul(size_of::<u32>())?)?
                .checked_add(Ranks::n_bytes(n_batch, n_floats))?,
        })
    }

    /// Whether the machine has the memory for such a session. It is better asked than just taken: a
    /// system that overcommits would give it, and kill the process later.
    ///
    /// # Errors
    ///
    /// Options that do not fit the model, or more than is free.
    #[cfg(feature = "std")]
    pub fn check_memory(
        config: &Config,
        options: &SessionOptions,
        composition: Option<&Composition<'_>>,
    ) -> Result<(), SessionError> {
        let memory = Session::memory(config, options, composition);
        let memory = memory.ok_or(SessionError::Options {
            reason: "this context does not fit the model or the machine",
        })?;
        let needed = memory.kv_cache.saturating_add(memory.scratch);
        match crate::free_memory() {
            Some(free) if needed >= free => Err(SessionError::TooLarge {
                n_ctx: options.n_ctx,
                needed,
                free,
            }),
            _ => Ok(()),
        }
    }

    /// Runs `composition`, or the model alone, from the next token on.
    ///
    /// Keys and values depend on what computed them. The cache holds those of one composition
    /// only, told apart by [`Composition::id`], which hashes the content: another content forgets
    /// all tokens ([`Session::tokens`] is empty then), the same keeps them, also in another object.
    ///
    /// Factors are used as they are stored: where the base's weights are quantized, and the
    /// session is not `exact`, integer factors work on int8 activations as the base does; all
    /// others, on all bases, work in float32.
    /// [`AdapterType::for_model`](crate::AdapterType::for_model) picks the type to go with a model.
    ///
    /// # Errors
    ///
    /// A composition for another model, or too little memory; then the session stays as it was.
    pub fn set_composition(
        &mut self,
        composition: Option<&'m Composition<'m>>,
    ) -> Result<(), SessionError> {
        if composition.is_some_and(|c| *c.config() != self.model.config) {
            return Err(SessionError::Options {
                reason: "the composition was made for another model",
            });
        }
        let n_floats = composition.map_or(0, Composition::max_record_floats);
        self.scratch.ranks = Ranks::new(self.n_batch, n_floats)?;
        if composition.map(Composition::id) != self.exec.composition.map(Composition::id) {
            self.tokens.clear();
        }
        self.exec.composition = composition;
        Ok(())
    }

    /// Keeps what was evaluated of `tokens` from their beginning and forgets what follows; returns
    /// the tokens that are left to evaluate. That is at least the last one, for its logits.
    pub fn keep_prefix<'t>(&mut self, tokens: &'t [u32]) -> &'t [u32] {
        let same = self.tokens.iter().zip(tokens).take_while(|(a, b)| a == b);
        let known = same.count().min(tokens.len().saturating_sub(1));
        self.truncate(known);
        &tokens[known..]
    }

    /// The model.
    pub fn model(&self) -> &'m Model<'a> {
        self.model
    }

    /// The tokens evaluated so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Positions of the context.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// Instructions that the kernels use.
    pub fn level(&self) -> Level {
        self.exec.level
    }

    /// Threads that `n_tokens` evaluated at once run on.
    pub fn n_threads(&self, n_tokens: usize) -> usize {
        self.exec(n_tokens).pool.n_threads()
    }

    /// Forgets all tokens but the first `n`.
    pub fn truncate(&mut self, n: usize) {
        self.tokens.truncate(n);
    }

    /// Evaluates one token and returns the logits for the next, `[n_vocab]`.
    ///
    /// # Errors
    ///
    /// As [`Session::eval`].
    pub fn step(&mut self, token: u32) -> Result<&mut [f32], SessionError> {
        self.eval(&[token])
    }

    /// Evaluates tokens after those seen so far and returns the logits for the token that follows
    /// the last, `[n_vocab]`; the caller may spoil them. On an error nothing was evaluated.
    ///
    /// # Errors
    ///
    /// No tokens, an id outside the vocabulary, or a full context.
    pub fn eval(&mut self, tokens: &[u32]) -> Result<&mut [f32], SessionError> {
        self.check(tokens)?;
        let mut last = 0;
        for batch in tokens.chunks(self.n_batch) {
            self.forward(batch);
            last = batch.len() - 1;
        }
        let exec = self.exec(1);
        let s = &mut self.scratch;
        let mut out = core::mem::take(&mut s.logits);
        logits(&exec, self.model, s, last..last + 1, &mut out);
        s.logits = out;
        Ok(&mut s.logits)
    }

    /// Evaluates tokens as [`Session::eval`] does, giving the logits after each to `each`, with
    /// the token's index in `tokens`.
    ///
    /// # Errors
    ///
    /// As [`Session::eval`], and if there is no memory for some rows of logits.
    pub fn eval_all(
        &mut self,
        tokens: &[u32],
        mut each: impl FnMut(usize, &[f32]),
    ) -> Result<(), SessionError> {
        self.check(tokens)?;
        let n_vocab = self.model.config.n_vocab;
        let mut rows = zeroed(LOGIT_ROWS.min(tokens.len()) * n_vocab)?;
        let mut done = 0;
        for batch in tokens.chunks(self.n_batch) {
            self.forward(batch);
            for start in (0..batch.len()).step_by(LOGIT_ROWS) {
                let range = start..batch.len().min(start + LOGIT_ROWS);
                let rows = &mut rows[..range.len() * n_vocab];
                logits(
                    &self.exec(range.len()),
                    self.model,
                    &mut self.scratch,
                    range,
                    rows,
                );
                for row in rows.chunks_exact(n_vocab) {
                    each(done, row);
                    done += 1;
                }
            }
        }
        Ok(())
    }

    fn check(&self, tokens: &[u32]) -> Result<(), SessionError> {
        let n_vocab = self.model.config.n_vocab;
        if tokens.is_empty() {
            return Err(SessionError::Empty);
        }
        if let Some(id) = tokens.iter().find(|id| **id as usize >= n_vocab) {
            return Err(SessionError::Token { id: *id, n_vocab });
        }
        if tokens.len() > self.n_ctx - self.tokens.len() {
            return Err(SessionError::ContextFull {
                n_ctx: self.n_ctx,
                n_past: self.tokens.len(),
                n_new: tokens.len(),
            });
        }
        Ok(())
    }

    /// What `n_tokens` at once run on.
    fn exec(&self, n_tokens: usize) -> Exec<'m> {
        match n_tokens {
            1 => Exec {
                pool: self.decode_pool,
                ..self.exec
            },
            _ => self.exec,
        }
    }

    fn forward(&mut self, batch: &[u32]) {
        let first = self.tokens.len();
        forward(
            &self.exec(batch.len()),
            self.model,
            &mut self.scratch,
            &mut self.kv,
            batch,
            first,
        );
        self.tokens.extend_from_slice(batch);
    }
}

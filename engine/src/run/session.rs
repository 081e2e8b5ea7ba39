//! A session: one text at a time, answered by a model.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::AtomicBool;

use tandem_kernels::{DType, Level};

use super::options::SessionOptions;
use super::pool::SharedPool;
use super::worker::{EachRows, Span, Worker};
use crate::buffer::zeroed;
#[cfg(feature = "chat")]
use crate::chat::TemplateArgs;
use crate::chat::{Prompt, PromptForm, prompt_ids};
use crate::exec::{Ranks, Scratch};
#[cfg(feature = "std")]
use crate::sequence::check_kv_type;
use crate::{Composition, Config, Error, Model, Sequence, SessionError};

/// Bytes that a session allocates, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Memory {
    /// The KV cache.
    pub kv_cache: usize,
    /// All other buffers.
    pub scratch: usize,
}

/// A model at work on one text at a time: a [`Worker`] with one [`Sequence`]. It answers texts by
/// [`Session::generate`] and evaluates tokens by [`Session::eval`]. Everything it needs is allocated
/// when it is made or its composition is set; [`Session::step`] allocates nothing.
pub struct Session {
    worker: Worker,
    sequence: Sequence,
    /// Of one token, `[n_vocab]`.
    logits: Vec<f32>,
    #[cfg(feature = "chat")]
    template_args: TemplateArgs,
}

impl Session {
    /// An empty session on the threads of `pool`. [`Model::session`] makes one with threads of its own.
    ///
    /// # Errors
    ///
    /// Options that do not fit the model, or too little memory.
    pub fn new(
        model: &Model,
        pool: impl Into<SharedPool>,
        options: SessionOptions,
    ) -> Result<Session, SessionError> {
        let sequence = Sequence::new(model, &options)?;
        let mut options = options;
        options.n_batch = options.batch_rows();
        Ok(Session {
            sequence,
            worker: Worker::new(model, pool, &options)?,
            logits: zeroed(model.config().n_vocab)?,
            #[cfg(feature = "chat")]
            template_args: TemplateArgs::new(),
        })
    }

    /// Bytes that [`Session::new`] and [`Session::set_composition`] would allocate; `None` where
    /// the options do not fit the model.
    pub fn memory(
        config: &Config,
        options: &SessionOptions,
        composition: Option<&Composition>,
    ) -> Option<Memory> {
        let n_batch = options.batch_rows();
        let n_floats = composition.map_or(0, |c| Ranks::n_floats(n_batch, c));
        let words = options.n_ctx.checked_add(config.n_vocab)?;
        Some(Memory {
            kv_cache: Sequence::n_bytes(config, options)?,
            scratch: Scratch::n_bytes(config, n_batch)?
                .checked_add(words.checked_mul(size_of::<u32>())?)?
                .checked_add(n_floats.checked_mul(size_of::<f32>())?)?,
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
        composition: Option<&Composition>,
    ) -> Result<(), SessionError> {
        check_kv_type(config, options.kv_type)?;
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

    /// Runs `composition`, or the model alone, from the next token on; see
    /// [`Sequence::set_composition`].
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
        composition: Option<&Composition>,
    ) -> Result<(), SessionError> {
        if let Some(composition) = composition {
            self.worker.reserve(composition)?;
        }
        self.sequence.set_composition(composition)
    }

    /// The tokens that [`Session::generate`] would begin with.
    ///
    /// # Errors
    ///
    /// As [`Session::generate`].
    pub fn prompt_ids<'p>(&self, prompt: impl Into<Prompt<'p>>) -> Result<Vec<u32>, Error> {
        let form = PromptForm {
            composition: self.sequence.composition().and_then(Composition::prompt),
            #[cfg(feature = "chat")]
            template_args: Some(&self.template_args),
        };
        prompt_ids(self.model(), form, prompt.into())
    }

    /// See [`Worker::set_interrupt`]. A generation that is interrupted ends as if it was cancelled.
    pub fn set_interrupt(&mut self, flag: Option<Arc<AtomicBool>>) {
        self.worker.set_interrupt(flag);
    }

    /// What the model's chat template is given from now on, beside the messages and the special tokens:
    /// `enable_thinking`, `tools`, `documents`, ...
    #[cfg(feature = "chat")]
    pub fn set_template_args(&mut self, args: TemplateArgs) {
        self.template_args = args;
    }

    /// See [`Sequence::keep_prefix`].
    pub fn keep_prefix<'t>(&mut self, tokens: &'t [u32]) -> &'t [u32] {
        self.sequence.keep_prefix(tokens)
    }

    /// See [`Sequence::rewind`].
    pub fn rewind(&mut self, n: usize) -> usize {
        self.sequence.rewind(n)
    }

    /// The model.
    pub fn model(&self) -> &Model {
        self.worker.model()
    }

    /// What has been evaluated: to fork, save or restore it. Its composition is set by
    /// [`Session::set_composition`].
    pub fn sequence_mut(&mut self) -> &mut Sequence {
        &mut self.sequence
    }

    /// The tokens evaluated so far.
    pub fn tokens(&self) -> &[u32] {
        self.sequence.tokens()
    }

    /// Positions of the context.
    pub fn n_ctx(&self) -> usize {
        self.sequence.n_ctx()
    }

    /// Whether no token more fits the context.
    pub fn is_full(&self) -> bool {
        self.tokens().len() >= self.n_ctx()
    }

    /// The most tokens evaluated at once.
    pub fn n_batch(&self) -> usize {
        self.worker.n_batch().min(self.sequence.n_batch())
    }

    /// Instructions that the kernels use.
    pub fn level(&self) -> Level {
        self.worker.level()
    }

    /// Threads that `n_tokens` evaluated at once run on.
    pub fn n_threads(&self, n_tokens: usize) -> usize {
        self.worker.n_threads(n_tokens)
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
        let n_last = (tokens.len() - 1) % self.n_batch() + 1;
        let (first, last) = tokens.split_at(tokens.len() - n_last);
        for tokens in first.chunks(self.n_batch()) {
            forward(&mut self.worker, &mut self.sequence, tokens, &mut [])?;
        }
        forward(&mut self.worker, &mut self.sequence, last, &mut self.logits)?;
        Ok(&mut self.logits)
    }

    /// Evaluates tokens as [`Session::eval`] does, without logits.
    ///
    /// # Errors
    ///
    /// As [`Session::eval`].
    pub fn feed(&mut self, tokens: &[u32]) -> Result<(), SessionError> {
        self.check(tokens)?;
        for tokens in tokens.chunks(self.n_batch()) {
            forward(&mut self.worker, &mut self.sequence, tokens, &mut [])?;
        }
        Ok(())
    }

    /// Evaluates tokens as [`Session::eval`] does, giving the logits after each from the index `first` on to
    /// `each`, some rows at a time: the index of the first of them and `[n, n_vocab]`.
    ///
    /// # Errors
    ///
    /// As [`Session::eval`], and if there is no memory for some rows of logits.
    pub fn eval_rows(
        &mut self,
        tokens: &[u32],
        first: usize,
        mut each: impl FnMut(usize, &[f32]),
    ) -> Result<(), SessionError> {
        let n_vocab = self.model().config().n_vocab;
        let mut row = first;
        let each_rows = &mut |rows: &[f32]| {
            each(row, rows);
            row += rows.len() / n_vocab;
        };
        self.each_row(tokens, first, EachRows::Logits(each_rows))
    }

    /// Evaluates tokens as [`Session::eval`] does, giving the hidden state of each from the index `first` on to
    /// `each`: its index and what the output matrix is given, the last norm's result, `[n_embd]`.
    ///
    /// # Errors
    ///
    /// As [`Session::eval`].
    pub fn eval_hidden(
        &mut self,
        tokens: &[u32],
        first: usize,
        mut each: impl FnMut(usize, &[f32]),
    ) -> Result<(), SessionError> {
        let mut row = first;
        let each_row = &mut |hidden: &[f32]| {
            each(row, hidden);
            row += 1;
        };
        self.each_row(tokens, first, EachRows::Hidden(each_row))
    }

    fn each_row(
        &mut self,
        tokens: &[u32],
        first: usize,
        mut each: EachRows<'_>,
    ) -> Result<(), SessionError> {
        self.check(tokens)?;
        let mut end = 0;
        for batch in tokens.chunks(self.n_batch()) {
            end += batch.len();
            let n_wanted = end.saturating_sub(first).min(batch.len());
            let (worker, sequence) = (&mut self.worker, &mut self.sequence);
            worker.forward_rows(sequence, batch, n_wanted, &mut each)?;
        }
        Ok(())
    }

    /// Evaluates at most a batch of tokens as [`Session::eval`] does, with the logits after each,
    /// `[tokens.len(), n_vocab]`.
    pub(super) fn eval_few(
        &mut self,
        tokens: &[u32],
        logits: &mut [f32],
    ) -> Result<(), SessionError> {
        self.check(tokens)?;
        forward(&mut self.worker, &mut self.sequence, tokens, logits)
    }

    /// Checks all tokens at once, so that of several batches none is evaluated where one cannot be.
    fn check(&self, tokens: &[u32]) -> Result<(), SessionError> {
        if tokens.is_empty() {
            return Err(SessionError::Empty);
        }
        self.check_ids(tokens)?;
        if tokens.len() > self.n_ctx() - self.tokens().len() {
            return Err(SessionError::ContextFull {
                n_ctx: self.n_ctx(),
                n_past: self.tokens().len(),
                n_new: tokens.len(),
            });
        }
        Ok(())
    }

    pub(super) fn check_ids(&self, tokens: &[u32]) -> Result<(), SessionError> {
        let n_vocab = self.model().config().n_vocab;
        match tokens.iter().find(|id| **id as usize >= n_vocab) {
            Some(id) => Err(SessionError::Token { id: *id, n_vocab }),
            None => Ok(()),
        }
    }
}

/// Evaluates a batch of one sequence.
fn forward(
    worker: &mut Worker,
    sequence: &mut Sequence,
    tokens: &[u32],
    logits: &mut [f32],
) -> Result<(), SessionError> {
    worker.forward(&mut [Span {
        sequence,
        tokens,
        logits,
    }])
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("n_ctx", &self.n_ctx())
            .field("n_tokens", &self.tokens().len())
            .finish_non_exhaustive()
    }
}

/// Makes a [`Session`]; from [`Model::session`].
#[derive(Clone, Debug)]
#[must_use = "a session is made by `build`"]
pub struct SessionBuilder {
    model: Model,
    composition: Option<Composition>,
    options: SessionOptions,
    kv_type: Option<DType>,
    pool: Option<SharedPool>,
    n_threads: Option<usize>,
    n_threads_decode: Option<usize>,
}

impl SessionBuilder {
    pub(crate) fn new(model: &Model) -> SessionBuilder {
        SessionBuilder {
            model: model.clone(),
            composition: None,
            options: SessionOptions::for_model(model.config()),
            kv_type: None,
            pool: None,
            n_threads: None,
            n_threads_decode: None,
        }
    }

    /// Runs a composition instead of the model alone.
    pub fn composition(mut self, composition: &Composition) -> SessionBuilder {
        self.composition = Some(composition.clone());
        self
    }

    /// Positions of the context, prompt and reply together. Default: the model's, at most 4096.
    pub fn n_ctx(mut self, n_ctx: usize) -> SessionBuilder {
        self.options.n_ctx = n_ctx;
        self
    }

    /// Tokens of a prompt evaluated at once. Default: 256.
    pub fn n_batch(mut self, n_batch: usize) -> SessionBuilder {
        self.options.n_batch = n_batch;
        self
    }

    /// Threads, never more than there are cores. Default: all cores for prompts; for single tokens the
    /// fewest that reach full speed, which takes some milliseconds to measure and follows the load.
    pub fn threads(mut self, n: usize) -> SessionBuilder {
        self.n_threads = Some(n);
        self
    }

    /// Threads for single tokens, which wait for memory more than they compute.
    pub fn threads_decode(mut self, n: usize) -> SessionBuilder {
        self.n_threads_decode = Some(n);
        self
    }

    /// Runs on these threads, which other sessions may use as well, instead of its own.
    pub fn pool(mut self, pool: impl Into<SharedPool>) -> SessionBuilder {
        self.pool = Some(pool.into());
        self
    }

    /// Type of the KV cache: F32, F16 or Q8_0. Default: F16, or F32 where activations are exact.
    pub fn kv_type(mut self, kv_type: DType) -> SessionBuilder {
        self.kv_type = Some(kv_type);
        self
    }

    /// Keeps activations in float32 where they would be rounded to int8 for quantized weights.
    pub fn exact(mut self, exact: bool) -> SessionBuilder {
        self.options.exact = exact;
        self
    }

    /// Instructions that the kernels may use. Default: the best that the CPU has.
    pub fn level(mut self, level: Level) -> SessionBuilder {
        self.options.level = level;
        self
    }

    /// The session.
    ///
    /// # Errors
    ///
    /// Options that do not fit the model, a composition for another one, or too little memory.
    pub fn build(self) -> Result<Session, Error> {
        let pool = self.pool.clone().unwrap_or_else(|| self.own_pool());
        let mut options = self.options;
        let default_type = match options.exact {
            true => DType::F32,
            false => options.kv_type,
        };
        options.kv_type = self.kv_type.unwrap_or(default_type);
        options.n_threads = self.n_threads.unwrap_or(usize::MAX);
        let given = self.n_threads_decode.or(self.n_threads);
        options.n_threads_decode = given.unwrap_or_else(|| self.measured(&pool));
        options.follow_load = given.is_none();
        #[cfg(feature = "std")]
        Session::check_memory(self.model.config(), &options, self.composition.as_ref())?;
        let mut session = Session::new(&self.model, pool, options)?;
        session.set_composition(self.composition.as_ref())?;
        Ok(session)
    }

    #[cfg(feature = "std")]
    fn own_pool(&self) -> SharedPool {
        let n_decode = self.n_threads_decode.unwrap_or(0);
        match self.n_threads {
            Some(n) => tandem_kernels::ThreadPool::new(n.max(n_decode)).into(),
            None => super::threads::all().into(),
        }
    }

    #[cfg(not(feature = "std"))]
    fn own_pool(&self) -> SharedPool {
        tandem_kernels::Serial.into()
    }

    #[cfg(feature = "std")]
    fn measured(&self, pool: &SharedPool) -> usize {
        let SessionOptions { level, exact, .. } = self.options;
        super::threads::for_decode(&self.model, pool.get(), level, exact)
    }

    #[cfg(not(feature = "std"))]
    fn measured(&self, _: &SharedPool) -> usize {
        usize::MAX
    }
}

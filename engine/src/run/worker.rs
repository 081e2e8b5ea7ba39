//! The worker: the forward pass over rows of several sequences.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};

use arrayvec::ArrayVec;
#[cfg(feature = "std")]
use std::time::Instant;
use tandem_kernels::{Level, Limited, Pool, quant};

#[cfg(feature = "std")]
use super::follow::Follow;
use super::options::{MAX_BATCH, SessionOptions};
use super::pool::SharedPool;
use crate::blocks::{Narrow, Pass, RowNorm, SpanRows, layer, layer_to_narrow};
use crate::buffer::zeroed;
use crate::exec::{
    Batch, BatchPart, Job, MAX_SPANS, Ranks, Scratch, Step, batch_floats, matmul_many,
};
use crate::model::{Layer, Tensor};
use crate::{Composition, Model, Sequence, SessionError};

/// Rows of logits computed at once where several are asked for.
const LOGIT_ROWS: usize = 8;
/// The same where all of a text's are: as many as fit so many floats, and no more than a tile is good for.
const LOGIT_FLOATS: usize = 1 << 24;
const MANY_LOGIT_ROWS: usize = 256;

/// What evaluates sequences of one model: instructions, threads, and the buffers of a pass. One serves
/// any number of sequences, one after the other or together.
///
/// ```no_run
/// # use tandem_engine::{Model, Sequence, SessionOptions, Span, Worker, threads};
/// # let model = Model::open("model.gguf")?;
/// let options = SessionOptions::for_model(model.config());
/// let mut worker = Worker::new(&model, threads::all(), &options)?;
/// let (mut one, mut other) = (Sequence::new(&model, &options)?, Sequence::new(&model, &options)?);
/// let mut logits = [vec![0.0; model.config().n_vocab], Vec::new()];
/// let [first, second] = &mut logits;
/// // Two sequences in one pass: after the first one's tokens logits are wanted.
/// worker.forward(&mut [
///     Span { sequence: &mut one, tokens: &[1, 2, 3], logits: first },
///     Span { sequence: &mut other, tokens: &[7], logits: second },
/// ])?;
/// # Ok::<(), tandem_engine::Error>(())
/// ```
pub struct Worker {
    model: Model,
    level: Level,
    pool: SharedPool,
    exact: bool,
    n_threads: usize,
    n_threads_decode: usize,
    /// Chooses the number of threads for single tokens instead.
    #[cfg(feature = "std")]
    follow: Option<Follow>,
    n_batch: usize,
    scratch: Scratch,
    /// Of several sequences, or of several rows: `[LOGIT_ROWS, n_vocab]`, made when first needed.
    logits: Vec<f32>,
    /// Ends a pass between two layers.
    interrupt: Option<Arc<AtomicBool>>,
}

/// Tokens of one sequence in a pass.
pub struct Span<'s> {
    /// Whose they are: they come after those that it has.
    pub sequence: &'s mut Sequence,
    /// The tokens, at least one.
    pub tokens: &'s [u32],
    /// Where the logits after the last tokens go, `[n, n_vocab]` for the last `n`; empty where none are
    /// wanted.
    pub logits: &'s mut [f32],
}

/// What is wanted of rows, and who gets it.
pub(crate) enum EachRows<'e> {
    /// `[n, n_vocab]`.
    Logits(&'e mut dyn FnMut(&[f32])),
    /// What the output matrix is given, the last norm's results, a row at a time, `[n_embd]`.
    Hidden(&'e mut dyn FnMut(&[f32])),
}

/// A span's place among the rows of a pass.
struct Place {
    /// Which span.
    span: usize,
    rows: Range<usize>,
    /// How many of its last rows' results are wanted.
    n_wanted: usize,
}

impl Worker {
    /// A worker on the threads of `pool`. Of the options those count that are about computing:
    /// `n_batch`, the most rows of a pass, `exact`, `level`, `n_threads` and `n_threads_decode`.
    ///
    /// # Errors
    ///
    /// Too little memory.
    pub fn new(
        model: &Model,
        pool: impl Into<SharedPool>,
        options: &SessionOptions,
    ) -> Result<Worker, SessionError> {
        let n_batch = options.n_batch.min(MAX_BATCH);
        let pool = pool.into();
        #[cfg(feature = "std")]
        let follow = options.follow_load.then(|| {
            let n_max = limited(&pool, options.n_threads).n_threads();
            Follow::new(options.n_threads_decode, n_max)
        });
        Ok(Worker {
            model: model.clone(),
            level: options.level,
            pool,
            #[cfg(feature = "std")]
            follow,
            exact: options.exact,
            n_threads: options.n_threads,
            n_threads_decode: options.n_threads_decode,
            n_batch,
            scratch: Scratch::new(model.config(), n_batch)?,
            logits: Vec::new(),
            interrupt: None,
        })
    }

    /// Makes room for a composition's ranks in passes of `n_batch` rows, so that no pass has to that has
    /// this composition only. Those of several make room when there is first one so large.
    ///
    /// # Errors
    ///
    /// Too little memory.
    pub fn reserve(&mut self, composition: &Composition) -> Result<(), SessionError> {
        let n_floats = Ranks::n_floats(self.n_batch, composition);
        self.scratch.ranks.reserve(n_floats)
    }

    /// While `flag` is set, passes end with [`SessionError::Interrupted`], at the next layer: a long one
    /// within some hundredth of its time. Sequences stay as they were before it.
    pub fn set_interrupt(&mut self, flag: Option<Arc<AtomicBool>>) {
        self.interrupt = flag;
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Instructions that the kernels use.
    pub fn level(&self) -> Level {
        self.level
    }

    /// The most rows of a pass.
    pub fn n_batch(&self) -> usize {
        self.n_batch
    }

    /// Threads that a pass of `n_rows` runs on.
    pub fn n_threads(&self, n_rows: usize) -> usize {
        limited(&self.pool, self.n_threads_of(n_rows)).n_threads()
    }

    fn n_threads_of(&self, n_rows: usize) -> usize {
        match n_rows {
            1 => self.n_threads_decode(),
            _ => self.n_threads,
        }
    }

    #[cfg(feature = "std")]
    fn n_threads_decode(&self) -> usize {
        let follow = self.follow.as_ref();
        follow.map_or(self.n_threads_decode, Follow::n_threads)
    }

    #[cfg(not(feature = "std"))]
    fn n_threads_decode(&self) -> usize {
        self.n_threads_decode
    }

    /// Evaluates tokens of several sequences in one pass, each with its own composition. Weights are
    /// read once for all of them.
    ///
    /// What a sequence gets is to the bit what it would get alone. On an error nothing was evaluated; where layers
    /// are recurrent, a sequence may have forgotten tokens then, as [`Sequence::rewind`] says.
    ///
    /// # Errors
    ///
    /// No spans or tokens, or too many for a pass; an id outside the vocabulary, a full context, a
    /// sequence of another model, logits of no whole number of rows or more than there are tokens; too
    /// little memory.
    pub fn forward(&mut self, spans: &mut [Span<'_>]) -> Result<(), SessionError> {
        self.check(spans)?;
        let places = places(spans, self.model.config().n_vocab);
        #[cfg(feature = "std")]
        let start = Instant::now();
        for span in spans.iter_mut().filter(|span| span.tokens.len() > 1) {
            span.sequence.keep_states();
        }
        let computed = self.run_layers(spans, &places);
        let computed = computed.and_then(|()| self.compute_logits(spans, &places));
        if computed.is_err() {
            for span in spans.iter_mut() {
                span.sequence.go_back(span.sequence.tokens().len());
            }
        }
        computed?;
        #[cfg(feature = "std")]
        if let [
            Span {
                tokens: [_],
                logits,
                ..
            },
        ] = spans
            && !logits.is_empty()
            && let Some(follow) = &mut self.follow
        {
            follow.record(start.elapsed().as_secs_f64());
        }
        for span in spans {
            span.sequence.push(span.tokens);
        }
        Ok(())
    }

    /// Evaluates tokens of one sequence and gives what comes out after the last `n_wanted` to `each`, as its
    /// case says.
    ///
    /// # Errors
    ///
    /// As [`Worker::forward`].
    pub(crate) fn forward_rows(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        n_wanted: usize,
        each: &mut EachRows<'_>,
    ) -> Result<(), SessionError> {
        let mut spans = [Span {
            sequence,
            tokens,
            logits: &mut [],
        }];
        self.check(&spans)?;
        let mut places = places(&spans, 1);
        places
            .iter_mut()
            .for_each(|place| place.n_wanted = n_wanted);
        spans[0].sequence.keep_states();
        let computed = self.run_layers(&mut spans, &places);
        let sequence = &mut *spans[0].sequence;
        let computed = computed.and_then(|()| match each {
            EachRows::Logits(each) => self.each_logits(sequence, n_wanted, each),
            EachRows::Hidden(each) => self.each_hidden(n_wanted, each),
        });
        match &computed {
            Ok(()) => sequence.push(tokens),
            Err(_) => drop(sequence.go_back(sequence.tokens().len())),
        }
        computed
    }

    /// The logits of the first `n_wanted` rows of the last pass, which were this sequence's.
    fn each_logits(
        &mut self,
        sequence: &Sequence,
        n_wanted: usize,
        each: &mut dyn FnMut(&[f32]),
    ) -> Result<(), SessionError> {
        let n_vocab = self.model.config().n_vocab;
        let most_rows = (LOGIT_FLOATS / n_vocab).clamp(LOGIT_ROWS, MANY_LOGIT_ROWS);
        let mut logits = zeroed(most_rows.min(n_wanted) * n_vocab)?;
        let rows: ArrayVec<usize, MAX_BATCH> = (0..n_wanted).collect();
        for rows in rows.chunks(most_rows) {
            let part = BatchPart {
                n_rows: rows.len(),
                composition: sequence.composition(),
            };
            let logits = &mut logits[..rows.len() * n_vocab];
            self.output(&[part], rows, logits)?;
            each(logits);
        }
        Ok(())
    }

    /// What the output matrix would be given for the first `n_wanted` rows of the last pass.
    fn each_hidden(
        &mut self,
        n_wanted: usize,
        each: &mut dyn FnMut(&[f32]),
    ) -> Result<(), SessionError> {
        let config = self.model.config();
        let batch = Batch::new(core::iter::empty());
        let step = Step {
            level: self.level,
            pool: limited(&self.pool, 1),
            exact: self.exact,
            batch: &batch,
        };
        let norm = RowNorm::new(config, self.model.output_norm());
        let s = &mut self.scratch;
        let h = &mut s.h.f32[..config.n_embd];
        for x in s.x.chunks_exact(config.n_embd).take(n_wanted) {
            norm.row(&step, x, h);
            if !are_finite(h) {
                return Err(self.not_finite());
            }
            each(h);
        }
        Ok(())
    }

    fn check(&self, spans: &[Span<'_>]) -> Result<(), SessionError> {
        let n_rows: usize = spans.iter().map(|span| span.tokens.len()).sum();
        if spans.is_empty() {
            return Err(SessionError::Empty);
        }
        if spans.len() > MAX_SPANS || n_rows > self.n_batch {
            return Err(SessionError::Batch {
                n_sequences: spans.len(),
                n_tokens: n_rows,
                max_tokens: self.n_batch,
            });
        }
        spans.iter().try_for_each(|span| self.check_span(span))
    }

    fn check_span(&self, span: &Span<'_>) -> Result<(), SessionError> {
        let Span {
            sequence,
            tokens,
            logits,
        } = span;
        let n_vocab = self.model.config().n_vocab;
        let refuse = |reason| Err(SessionError::Options { reason });
        if !sequence.model().is_same(&self.model) {
            return refuse("the sequence is of another model than the worker");
        }
        if tokens.is_empty() {
            return Err(SessionError::Empty);
        }
        if let Some(id) = tokens.iter().find(|id| **id as usize >= n_vocab) {
            return Err(SessionError::Token { id: *id, n_vocab });
        }
        let (n_ctx, n_past) = (sequence.n_ctx(), sequence.tokens().len());
        if tokens.len() > n_ctx - n_past {
            return Err(SessionError::ContextFull {
                n_ctx,
                n_past,
                n_new: tokens.len(),
            });
        }
        if tokens.len() > sequence.n_batch() {
            return refuse("more tokens at once than the sequence was made for");
        }
        let is_whole = logits.len().is_multiple_of(n_vocab);
        if !is_whole || logits.len() / n_vocab > tokens.len() {
            return refuse("the logits' room is no whole number of rows, or more than the tokens");
        }
        Ok(())
    }

    /// Runs all layers, which leaves the residual stream of the rows that are wanted in `scratch.x`,
    /// `[n_wanted, n_embd]`.
    fn run_layers(&mut self, spans: &mut [Span<'_>], places: &[Place]) -> Result<(), SessionError> {
        let config = self.model.config();
        let n_embd = config.n_embd;
        let mut spans: ArrayVec<_, MAX_SPANS> = spans.iter_mut().map(Some).collect();
        let mut rows = ArrayVec::<SpanRows<'_>, MAX_SPANS>::new();
        let mut parts = ArrayVec::<BatchPart<'_>, MAX_SPANS>::new();
        let mut tokens = ArrayVec::<&[u32], MAX_SPANS>::new();
        let scratch = &mut self.scratch;
        for place in places {
            let Some(span) = spans[place.span].take() else {
                continue;
            };
            let x = &mut scratch.x[place.rows.start * n_embd..place.rows.end * n_embd];
            let first = span.sequence.tokens().len();
            embed(&self.model, span.tokens, x);
            if let Some(positions) = self.model.position_embd() {
                add_positions(positions, first, x, &mut scratch.y[..n_embd]);
            }
            tokens.push(span.tokens);
            let frequencies = span.sequence.frequencies();
            for (angles, frequencies) in scratch.angles.iter_mut().zip(frequencies) {
                angles.turn(frequencies, place.rows.start, first, place.rows.len());
            }
            let (states, composition) = span.sequence.parts();
            parts.push(BatchPart {
                n_rows: place.rows.len(),
                composition,
            });
            rows.push(SpanRows {
                rows: place.rows.clone(),
                first,
                states,
            });
        }
        let batch = Batch::new(parts.iter().copied());
        scratch.ranks.reserve(batch_floats(batch.groups()))?;
        let n_threads = self.n_threads_of(batch.n_rows());
        let n_rows: ArrayVec<usize, MAX_SPANS> = places.iter().map(|p| p.rows.len()).collect();
        let n_kept: ArrayVec<usize, MAX_SPANS> = places.iter().map(|p| p.n_wanted).collect();
        for (part, n_kept) in parts.iter_mut().zip(&n_kept) {
            part.n_rows = *n_kept;
        }
        let narrow = Narrow {
            batch: &Batch::new(parts.iter().copied().filter(|part| part.n_rows > 0)),
            n_rows: &n_rows,
            n_kept: &n_kept,
        };
        let mut pass = Pass {
            step: Step {
                level: self.level,
                pool: limited(&self.pool, n_threads),
                exact: self.exact,
                batch: &batch,
            },
            config,
            scratch: &mut self.scratch,
            spans: &mut rows,
        };
        let interrupt = self.interrupt.as_deref();
        let is_narrow = n_rows != n_kept;
        if let Some(per_layer) = self.model.per_layer() {
            per_layer.forward(&mut pass, tokens.into_iter().flatten());
        }
        if let Some(altup) = self.model.altup() {
            altup.part(&mut pass);
        }
        let layers = self.model.layers();
        let last_state = layers.iter().rposition(Layer::has_state);
        for (i, weights) in layers.iter().enumerate() {
            if interrupt.is_some_and(|interrupt| interrupt.load(Ordering::Relaxed)) {
                return Err(SessionError::Interrupted);
            }
            match is_narrow && Some(i) == last_state {
                true => layer_to_narrow(&mut pass, i, weights, &narrow),
                false => layer(&mut pass, i, weights),
            }
            if pass.n_rows() == 0 {
                return Ok(());
            }
        }
        if let Some(altup) = self.model.altup() {
            altup.join(&mut pass);
        }
        Ok(())
    }

    /// Computes the logits that spans want.
    fn compute_logits(
        &mut self,
        spans: &mut [Span<'_>],
        places: &[Place],
    ) -> Result<(), SessionError> {
        let n_vocab = self.model.config().n_vocab;
        let mut wanted = ArrayVec::<Place, MAX_SPANS>::new();
        let mut end = 0;
        for place in places.iter().filter(|place| place.n_wanted > 0) {
            let rows = end..end + place.n_wanted;
            end = rows.end;
            wanted.push(Place { rows, ..*place });
        }
        sort(&mut wanted, spans);
        if let [Place { span, rows, .. }] = &wanted[..]
            && rows.len() == 1
        {
            let Span {
                sequence, logits, ..
            } = &mut spans[*span];
            let part = BatchPart {
                n_rows: 1,
                composition: sequence.composition(),
            };
            return self.output(&[part], &[rows.start], logits);
        }
        if self.logits.is_empty() && !wanted.is_empty() {
            self.logits = zeroed(LOGIT_ROWS * n_vocab)?;
        }
        let mut rest = &mut wanted[..];
        while !rest.is_empty() {
            rest = self.some_logits(spans, rest)?;
        }
        Ok(())
    }

    /// Computes [`LOGIT_ROWS`] of the logits that are wanted; returns what is left.
    fn some_logits<'w>(
        &mut self,
        spans: &mut [Span<'_>],
        wanted: &'w mut [Place],
    ) -> Result<&'w mut [Place], SessionError> {
        let n_vocab = self.model.config().n_vocab;
        let mut parts = ArrayVec::<BatchPart<'_>, LOGIT_ROWS>::new();
        let mut rows = ArrayVec::<usize, LOGIT_ROWS>::new();
        let mut targets = ArrayVec::<Target, LOGIT_ROWS>::new();
        let mut n_done = 0;
        for place in wanted.iter_mut() {
            let own = place.rows.start
                ..place
                    .rows
                    .end
                    .min(place.rows.start + rows.remaining_capacity());
            if own.is_empty() {
                break;
            }
            let span = &spans[place.span];
            parts.push(BatchPart {
                n_rows: own.len(),
                composition: span.sequence.composition(),
            });
            let first = span.logits.len() / n_vocab - place.rows.len();
            for (i, row) in own.clone().enumerate() {
                rows.push(row);
                targets.push(Target {
                    span: place.span,
                    row: first + i,
                });
            }
            place.rows.start = own.end;
            n_done += usize::from(place.rows.is_empty());
        }
        let mut logits = core::mem::take(&mut self.logits);
        let result = self.output(&parts, &rows, &mut logits[..rows.len() * n_vocab]);
        drop(parts);
        for (target, row) in targets.iter().zip(logits.chunks_exact(n_vocab)) {
            let own = &mut spans[target.span].logits[target.row * n_vocab..][..n_vocab];
            own.copy_from_slice(row);
        }
        self.logits = logits;
        result?;
        Ok(&mut wanted[n_done..])
    }

    fn not_finite(&self) -> SessionError {
        SessionError::NotFinite {
            tensor: self.model.non_finite_tensor(),
        }
    }

    /// Logits of these rows of the last pass, `[rows.len(), n_vocab]`.
    fn output(
        &mut self,
        parts: &[BatchPart<'_>],
        rows: &[usize],
        y: &mut [f32],
    ) -> Result<(), SessionError> {
        let (config, output) = (self.model.config(), self.model.output());
        let n_embd = config.n_embd;
        let batch = Batch::new(parts.iter().copied());
        let step = Step {
            level: self.level,
            pool: limited(&self.pool, self.n_threads_of(rows.len())),
            exact: self.exact,
            batch: &batch,
        };
        let s = &mut self.scratch;
        s.ranks.reserve(batch_floats(batch.groups()))?;
        let norm = RowNorm::new(config, self.model.output_norm());
        for (row, h) in rows.iter().zip(s.h.f32.chunks_exact_mut(n_embd)) {
            norm.row(&step, &s.x[row * n_embd..][..n_embd], h);
        }
        let h = s.h.input(&step, n_embd, &[output]);
        let job = Job {
            linear: output,
            y: &mut *y,
        };
        matmul_many(&step, h, [job], &mut s.ranks);
        if config.logit_scale != 1.0 {
            y.iter_mut().for_each(|logit| *logit *= config.logit_scale);
        }
        if let Some(cap) = config.logit_softcap {
            for logit in &mut *y {
                *logit = cap * libm::tanhf(*logit / cap);
            }
        }
        match are_finite(y) {
            true => Ok(()),
            false => Err(self.not_finite()),
        }
    }
}

/// Whether all are finite: the exponent's bits are not all set. Without a branch, so that it is done in
/// vectors.
fn are_finite(x: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    let is_not = |x: &f32| x.to_bits() & EXPONENT == EXPONENT;
    !x.iter().fold(false, |any, x| any | is_not(x))
}

/// Where a row of logits goes.
struct Target {
    span: usize,
    row: usize,
}

fn limited(pool: &SharedPool, n_threads: usize) -> Limited<'_> {
    Limited::new(pool.get(), n_threads)
}

/// The spans' places, those of one composition beside each other.
fn places(spans: &[Span<'_>], n_vocab: usize) -> ArrayVec<Place, MAX_SPANS> {
    let place = |(i, span): (usize, &Span<'_>)| Place {
        span: i,
        rows: 0..span.tokens.len(),
        n_wanted: span.logits.len() / n_vocab,
    };
    let mut places: ArrayVec<Place, MAX_SPANS> = spans.iter().enumerate().map(place).collect();
    sort(&mut places, spans);
    let mut end = 0;
    for place in &mut places {
        place.rows = end..end + place.rows.len();
        end = place.rows.end;
    }
    places
}

fn sort(places: &mut [Place], spans: &[Span<'_>]) {
    if places.len() > 1 {
        places.sort_unstable_by_key(|place| {
            let composition = spans[place.span].sequence.composition();
            (composition.map(|c| c.id().0), place.span)
        });
    }
}

/// Adds the embeddings of positions `first` and up to the rows of `x`, by way of `row`, `[n_embd]`.
fn add_positions(positions: &Tensor, first: usize, x: &mut [f32], row: &mut [f32]) {
    let table = positions.view();
    for (i, x) in x.chunks_exact_mut(row.len()).enumerate() {
        quant::dequantize(table.dtype(), table.row(first + i), row);
        x.iter_mut().zip(&*row).for_each(|(x, p)| *x += p);
    }
}

/// The embeddings of `tokens` into `x`, `[n_tokens, n_embd]`. The ids were checked.
fn embed(model: &Model, tokens: &[u32], x: &mut [f32]) {
    let (config, table) = (model.config(), model.token_embd().view());
    for (id, x) in tokens.iter().zip(x.chunks_exact_mut(config.n_embd)) {
        quant::dequantize(table.dtype(), table.row(*id as usize), x);
        if config.embedding_scale != 1.0 {
            x.iter_mut().for_each(|x| *x *= config.embedding_scale);
        }
    }
}

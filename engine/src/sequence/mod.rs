//! Sequences: tokens that were evaluated, and what the model's layers remember of them.

mod columns;
mod kv;
mod matrices;
mod save;
mod state;

use alloc::sync::Arc;
use alloc::vec::Vec;

use tandem_kernels::{DType, rope_frequencies};

pub(crate) use columns::Columns;
pub(crate) use kv::{Kv, KvSize};
pub(crate) use matrices::Matrices;
pub(crate) use state::{LayerState, matrices_of};

use crate::blocks::AttentionConfig;
use crate::buffer::zeroed;
use crate::model::{Config, RopeConfig, RopeFactors};
use crate::{Composition, Model, SessionError, SessionOptions};

/// Rotary frequencies, and the length of turned vectors.
#[derive(Debug)]
pub(crate) struct Frequencies {
    /// Radians a position, `[n_rot / 2]`.
    pub inv_freq: Vec<f32>,
    pub magnitude: f32,
}

impl Frequencies {
    /// Those of a rope for a context of `n_ctx`.
    pub(crate) fn of(rope: &RopeConfig, factors: &RopeFactors, n_ctx: usize) -> Frequencies {
        let factors = match (rope.has_factors, n_ctx > rope.n_ctx_orig) {
            (false, _) => &[][..],
            (true, true) if !factors.long.is_empty() => &factors.long,
            (true, _) => &factors.short,
        };
        let mut inv_freq = alloc::vec![0.0; rope.n_rot / 2];
        let scaled = rope_frequencies(rope.base, rope.scaling, factors, &mut inv_freq);
        Frequencies {
            inv_freq,
            magnitude: rope.magnitude * scaled,
        }
    }
}

/// Tokens of one text, what the model's layers remember of them, and the composition that computed
/// it. Many of them can share a [`Worker`](crate::Worker), which evaluates them.
///
/// ```no_run
/// # use tandem_engine::{Model, Sequence, SessionOptions};
/// # let model = Model::open("model.gguf")?;
/// let options = SessionOptions::for_model(model.config());
/// let prompt = Sequence::new(&model, &options)?;
/// // Evaluated by a worker; then two answers go on from there.
/// let (one, other) = (prompt.fork()?, prompt.fork()?);
/// # Ok::<(), tandem_engine::Error>(())
/// ```
#[derive(Debug)]
pub struct Sequence {
    model: Model,
    composition: Option<Composition>,
    tokens: Vec<u32>,
    states: Vec<LayerState>,
    frequencies: Arc<[Frequencies]>,
    size: KvSize,
}

impl core::fmt::Debug for KvSize {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} of {} tokens", self.dtype.name(), self.n_ctx)
    }
}

impl Sequence {
    /// An empty sequence. Of the options those count that are about the context: `n_ctx`, `kv_type`,
    /// and `n_batch`, the most tokens that are evaluated at once.
    ///
    /// # Errors
    ///
    /// Options that do not fit the model, or too little memory.
    pub fn new(model: &Model, options: &SessionOptions) -> Result<Sequence, SessionError> {
        if options.n_ctx == 0 || options.n_batch == 0 {
            return Err(SessionError::Options {
                reason: "the context and the batch need at least one token",
            });
        }
        let config = model.config();
        check_kv_type(config, options.kv_type)?;
        let positions = model.position_embd();
        if positions.is_some_and(|table| options.n_ctx > table.n_rows()) {
            return Err(SessionError::Options {
                reason: "the context is longer than the model has positions for",
            });
        }
        let size = kv_size(options);
        let layers = config.layers.iter();
        let states = layers.map(|layer| LayerState::new(&layer.mixer, config.n_embd, size));
        let states = states.collect::<Result<_, _>>()?;
        let ropes = config.ropes.iter();
        let frequencies = ropes.map(|r| Frequencies::of(r, model.rope_factors(), options.n_ctx));
        Ok(Sequence {
            model: model.clone(),
            composition: None,
            tokens: empty(options.n_ctx)?,
            states,
            frequencies: frequencies.collect(),
            size,
        })
    }

    /// Bytes of the states of a sequence; `None` where the options do not fit the model.
    pub fn n_bytes(config: &Config, options: &SessionOptions) -> Option<usize> {
        let size = kv_size(options);
        config.layers.iter().try_fold(0_usize, |sum, layer| {
            let n_bytes = LayerState::n_bytes(&layer.mixer, config.n_embd, size)?;
            sum.checked_add(n_bytes)
        })
    }

    fn copy_states(&mut self, other: &Sequence) -> Result<(), SessionError> {
        for (state, other) in self.states.iter_mut().zip(&other.states) {
            state.copy_from(other)?;
        }
        Ok(())
    }

    /// Bytes of what the layers remember, as far as anything was stored there.
    pub(crate) fn used_bytes(&self) -> usize {
        let states = self.states.iter().map(LayerState::saved_bytes);
        states.sum()
    }

    /// What was evaluated, in no more memory than it takes: to be kept, and gone on from later.
    ///
    /// # Errors
    ///
    /// Too little memory.
    pub fn snapshot(&self) -> Result<Snapshot, SessionError> {
        let states = self.states.iter().map(LayerState::compact);
        Ok(Snapshot(Sequence {
            model: self.model.clone(),
            composition: self.composition.clone(),
            tokens: self.tokens.clone(),
            states: states.collect::<Result<_, _>>()?,
            frequencies: Arc::clone(&self.frequencies),
            size: self.size,
        }))
    }

    /// Takes over what was evaluated when the snapshot was made, and its composition, in the place of what
    /// the sequence has.
    ///
    /// # Errors
    ///
    /// A snapshot of a sequence of another model or with other options; then the sequence stays as it was.
    /// Too little memory: then it is empty.
    pub fn restore_snapshot(&mut self, snapshot: &Snapshot) -> Result<(), SessionError> {
        self.copy_from(&snapshot.0)
    }

    /// Takes over what another sequence has evaluated, and its composition.
    ///
    /// # Errors
    ///
    /// As [`Sequence::restore_snapshot`].
    pub fn copy_from(&mut self, other: &Sequence) -> Result<(), SessionError> {
        if !self.model.is_same(&other.model) || self.size != other.size {
            return Err(SessionError::Options {
                reason: "the sequences are of different models, or have other options",
            });
        }
        self.rewind(0);
        if let Err(error) = self.copy_states(other) {
            self.rewind(0);
            return Err(error);
        }
        self.composition = other.composition.clone();
        self.tokens.extend_from_slice(&other.tokens);
        Ok(())
    }

    /// Another sequence that goes on from here. It copies what the layers remember.
    ///
    /// # Errors
    ///
    /// Too little memory.
    pub fn fork(&self) -> Result<Sequence, SessionError> {
        let mut tokens: Vec<u32> = empty(self.size.n_ctx)?;
        tokens.extend_from_slice(&self.tokens);
        let states = self.states.iter().map(LayerState::fork);
        Ok(Sequence {
            model: self.model.clone(),
            composition: self.composition.clone(),
            tokens,
            states: states.collect::<Result<_, _>>()?,
            frequencies: Arc::clone(&self.frequencies),
            size: self.size,
        })
    }

    /// Forgets all tokens but the first `n`, and returns how many are left: `n`, or none where a layer
    /// has forgotten what the token after the first `n` sees. Layers with a window can go back to
    /// `n_batch` tokens before the farthest that was evaluated, convolutions to 32 at least, delta nets and
    /// Mamba-2 to before the last pass of several tokens and nowhere between, so that fewer may be left; all others
    /// anywhere.
    pub fn rewind(&mut self, n: usize) -> usize {
        // None at all is done in any case: states may be those of a restoring that failed.
        if n > 0 && n >= self.tokens.len() {
            return self.tokens.len();
        }
        self.go_back(n)
    }

    /// As [`Sequence::rewind`], also where a pass failed on its way.
    pub(crate) fn go_back(&mut self, n: usize) -> usize {
        let targets = self.states.iter().map(|state| state.target(n));
        let n = targets.min().unwrap_or(n);
        let n = match self.states.iter().all(|state| state.can_rewind(n)) {
            true => n,
            false => 0,
        };
        for state in &mut self.states {
            state.rewind(n);
        }
        self.tokens.truncate(n);
        n
    }

    /// Keeps the states that tokens cannot be taken out of, to go back to.
    pub(crate) fn keep_states(&mut self) {
        for state in &mut self.states {
            state.keep(self.tokens.len());
        }
    }

    /// Keeps what was evaluated of `tokens` from their beginning, as far as it can go back, and forgets
    /// what follows; returns the tokens that are left to evaluate. That is at least the last one, for
    /// its logits.
    pub fn keep_prefix<'t>(&mut self, tokens: &'t [u32]) -> &'t [u32] {
        let same = self.tokens.iter().zip(tokens).take_while(|(a, b)| a == b);
        let known = same.count().min(tokens.len().saturating_sub(1));
        let kept = self.rewind(known);
        &tokens[kept..]
    }

    /// Runs `composition`, or the model alone, from the next token on.
    ///
    /// What layers remember depends on what computed it, so it is of one composition only, told
    /// apart by [`Composition::id`], which hashes the content: another content forgets all tokens
    /// ([`Sequence::tokens`] is empty then), the same keeps them, also in another object.
    ///
    /// # Errors
    ///
    /// A composition for another model; then the sequence stays as it was.
    pub fn set_composition(
        &mut self,
        composition: Option<&Composition>,
    ) -> Result<(), SessionError> {
        if composition.is_some_and(|c| c.linears() != self.model.linears()) {
            return Err(SessionError::Options {
                reason: "the composition was made for another model",
            });
        }
        if composition.map(Composition::id) != self.composition.as_ref().map(Composition::id) {
            self.rewind(0);
        }
        self.composition = composition.cloned();
        Ok(())
    }

    /// The composition that it runs.
    pub fn composition(&self) -> Option<&Composition> {
        self.composition.as_ref()
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The tokens evaluated so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Positions of the context.
    pub fn n_ctx(&self) -> usize {
        self.size.n_ctx
    }

    /// The most tokens evaluated at once.
    pub(crate) fn n_batch(&self) -> usize {
        self.size.n_batch
    }

    /// The rotary frequencies of each of the model's ropes.
    pub(crate) fn frequencies(&self) -> &[Frequencies] {
        &self.frequencies
    }

    /// What the layers remember, and the composition that computes more of it.
    pub(crate) fn parts(&mut self) -> (&mut [LayerState], Option<&Composition>) {
        (&mut self.states, self.composition.as_ref())
    }

    /// Notes tokens as evaluated.
    pub(crate) fn push(&mut self, tokens: &[u32]) {
        self.tokens.extend_from_slice(tokens);
    }
}

/// What a sequence had evaluated at one time, see [`Sequence::snapshot`].
#[derive(Debug)]
pub struct Snapshot(Sequence);

impl Snapshot {
    /// The tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.0.tokens
    }

    /// Bytes that it takes.
    pub fn n_bytes(&self) -> usize {
        self.0.used_bytes() + size_of_val(self.tokens())
    }

    /// As [`Sequence::save`].
    ///
    /// # Errors
    ///
    /// As [`Sequence::save`].
    pub fn save(&self) -> Result<Vec<u8>, SessionError> {
        self.0.save()
    }
}

/// Refuses a type of whose blocks heads are no whole number.
pub(crate) fn check_kv_type(config: &Config, kv_type: DType) -> Result<(), SessionError> {
    let fits = |attention: &AttentionConfig| attention.head_dim.is_multiple_of(kv_type.block_len());
    match config.attentions().all(fits) {
        true => Ok(()),
        false => Err(SessionError::Options {
            reason: "the model's heads are no whole number of Q8_0 blocks of 32 elements: keep the KV \
                     cache in F16",
        }),
    }
}

fn kv_size(options: &SessionOptions) -> KvSize {
    KvSize {
        dtype: options.kv_type,
        n_ctx: options.n_ctx,
        n_batch: options.batch_rows(),
    }
}

/// Room for a context's tokens, so that steps need not make any.
fn empty(n_ctx: usize) -> Result<Vec<u32>, SessionError> {
    let mut tokens = zeroed(n_ctx)?;
    tokens.clear();
    Ok(tokens)
}

//! What the handles stand for: files with what borrows from them, kept together by `self_cell`.

use std::ffi::CString;
use std::ops::ControlFlow;
use std::string::{String, ToString};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::vec::Vec;

use self_cell::self_cell;
use tandem_formats::bundle::Bundle;
use tandem_formats::{Gguf, GgufFiles, Mapping};

use super::arguments::argument;
use super::failure::Failure;
use super::tandem_status::{TANDEM_BUSY, TANDEM_CONTEXT, TANDEM_INTERNAL, TANDEM_MODEL};
use crate::adapters::{Workers, from_bundle};
use crate::tokenizer::{ControlTokens, Tokenizer};
use crate::{
    AdapterType, Composition, MAX_BATCH, Model as Weights, PackedAdapter, Sampler, SamplerOptions,
    Session, SessionOptions, StopReason, ThreadPool, generate, prompt,
};

/// A model's bytes.
pub(super) enum ModelBytes {
    Files(GgufFiles),
    Memory(&'static [u8]),
}

impl ModelBytes {
    fn parse(&self) -> Result<Gguf<'_>, Failure> {
        match self {
            ModelBytes::Files(files) => Ok(files.parse()?),
            ModelBytes::Memory(bytes) => {
                Gguf::parse(bytes).map_err(|error| Failure::of(TANDEM_MODEL, &error))
            }
        }
    }
}

struct Parsed<'a> {
    gguf: Gguf<'a>,
    weights: Weights<'a>,
}

self_cell!(
    struct ParsedCell {
        owner: ModelBytes,
        #[covariant]
        dependent: Parsed,
    }
);

self_cell!(
    struct TokenizerCell {
        owner: Arc<ParsedCell>,
        #[not_covariant]
        dependent: Tokenizer,
    }
);

/// An open model.
pub(super) struct Model {
    parsed: Arc<ParsedCell>,
    tokenizer: TokenizerCell,
}

impl Model {
    pub(super) fn new(bytes: ModelBytes) -> Result<Model, Failure> {
        let parsed = ParsedCell::try_new(bytes, |bytes| -> Result<_, Failure> {
            let gguf = bytes.parse()?;
            let weights = Weights::load(&gguf)?;
            Ok(Parsed { gguf, weights })
        })?;
        let parsed = Arc::new(parsed);
        let tokenizer = TokenizerCell::try_new(Arc::clone(&parsed), |parsed| {
            Tokenizer::from_gguf(parsed.gguf()).map_err(|e| Failure::of(TANDEM_MODEL, &e))
        })?;
        Ok(Model { parsed, tokenizer })
    }

    pub(super) fn with_tokenizer<R>(&self, f: impl FnOnce(&Tokenizer<'_>) -> R) -> R {
        self.tokenizer.with_dependent(|_, tokenizer| f(tokenizer))
    }
}

impl ParsedCell {
    fn gguf(&self) -> &Gguf<'_> {
        &self.borrow_dependent().gguf
    }

    fn weights(&self) -> &Weights<'_> {
        &self.borrow_dependent().weights
    }
}

/// A bundle's bytes.
pub(super) enum BundleBytes {
    File(Mapping),
    Memory(&'static [u8]),
}

self_cell!(
    struct BundleCell {
        owner: BundleBytes,
        #[covariant]
        dependent: Bundle,
    }
);

/// An open bundle.
pub(super) struct OpenBundle {
    bundle: BundleCell,
    /// The names of its compositions, for C.
    names: Vec<CString>,
}

impl OpenBundle {
    pub(super) fn new(bytes: BundleBytes) -> Result<OpenBundle, Failure> {
        let bundle = BundleCell::try_new(bytes, |bytes| {
            Bundle::parse(match bytes {
                BundleBytes::File(mapping) => mapping,
                BundleBytes::Memory(bytes) => bytes,
            })
        })?;
        let compositions = &bundle.borrow_dependent().contents().compositions;
        let names = compositions.iter().map(|c| CString::new(&*c.name));
        // The format allows no zeros in names.
        let names = names.map(Result::unwrap_or_default).collect();
        Ok(OpenBundle { bundle, names })
    }

    pub(super) fn names(&self) -> &[CString] {
        &self.names
    }
}

/// What a composition borrows from.
struct Sources {
    model: Arc<Model>,
    bundle: Option<Arc<OpenBundle>>,
}

type Packed<'a> = Vec<(PackedAdapter<'a>, f32)>;

self_cell!(
    struct PackedCell {
        owner: Sources,
        #[covariant]
        dependent: Packed,
    }
);

type Sum<'a> = Option<Composition<'a>>;

self_cell!(
    struct SumCell {
        owner: PackedCell,
        #[covariant]
        dependent: Sum,
    }
);

/// What a session borrows from.
struct Machine {
    sum: SumCell,
    pool: ThreadPool,
}

impl Machine {
    fn weights(&self) -> &Weights<'_> {
        self.sum
            .borrow_owner()
            .borrow_owner()
            .model
            .parsed
            .weights()
    }
}

type Running<'a> = Session<'a, 'a>;

self_cell!(
    struct RunningCell {
        owner: Machine,
        #[covariant]
        dependent: Running,
    }
);

/// How a session is to run; 0 is the default of a number.
pub(super) struct RunnerOptions {
    pub n_ctx: usize,
    pub n_batch: usize,
    pub n_threads: usize,
    pub n_threads_decode: usize,
    pub exact: bool,
    pub level: crate::Level,
}

/// How a text is to be continued.
pub(super) struct Request<'a> {
    pub text: &'a [u8],
    /// Take the text as it is.
    pub raw: bool,
    pub max_tokens: usize,
    pub sampler: SamplerOptions,
}

/// What became of it.
pub(super) struct Outcome {
    pub n_prompt: usize,
    pub n_generated: usize,
    pub stop: StopReason,
}

/// A session, and what to do with texts.
pub(super) struct Runner {
    model: Arc<Model>,
    /// What the composition wants to be asked with.
    form: Option<String>,
    n_batch: usize,
    session: Mutex<RunningCell>,
    cancelled: AtomicBool,
}

impl Runner {
    /// A session of `model` with a composition of `bundle`, if any. Nothing of a bundle runs that
    /// is damaged or for another base.
    pub(super) fn new(
        model: Arc<Model>,
        chosen: Option<(Arc<OpenBundle>, &str)>,
        options: &RunnerOptions,
    ) -> Result<Runner, Failure> {
        let weights = model.parsed.weights();
        let defaults = SessionOptions::for_model(&weights.config);
        let given = |n: usize, default: usize| if n == 0 { default } else { n };
        if let Some((bundle, _)) = &chosen {
            let contents = bundle.bundle.borrow_dependent().contents();
            contents.check_base(model.parsed.gguf())?;
        }
        let pool = match options.n_threads {
            0 => crate::threads::all(),
            n => ThreadPool::new(n.max(options.n_threads_decode)),
        };
        let n_threads_decode = match (options.n_threads_decode, options.n_threads) {
            (0, 0) => crate::threads::for_decode(weights, &pool, options.level, options.exact),
            (0, n) | (n, _) => n,
        };
        let session_options = SessionOptions {
            n_ctx: given(options.n_ctx, defaults.n_ctx),
            n_batch: given(options.n_batch, defaults.n_batch),
            kv_type: match options.exact {
                true => crate::DType::F32,
                false => defaults.kv_type,
            },
            exact: options.exact,
            level: options.level,
            n_threads: given(options.n_threads, defaults.n_threads),
            n_threads_decode,
        };

        let (bundle, name) = chosen.unzip();
        let sources = Sources {
            model: Arc::clone(&model),
            bundle,
        };
        let mut form = None;
        let packed = PackedCell::try_new(sources, |sources| -> Result<_, Failure> {
            let (Some(bundle), Some(name)) = (&sources.bundle, name) else {
                return Ok(Vec::new());
            };
            let bundle = bundle.bundle.borrow_dependent();
            let parsed = &sources.model.parsed;
            let parts = bundle.parts(name)?;
            form = parts.composition.prompt.as_deref().map(str::to_string);
            let adapter_type = AdapterType::for_model(parsed.weights(), options.exact);
            let config = &parsed.weights().config;
            let workers = Workers {
                level: options.level,
                pool: &pool,
            };
            Ok(from_bundle(config, &parts, adapter_type, workers)?)
        })?;
        let sum = SumCell::try_new(packed, |packed| -> Result<_, Failure> {
            let parts = packed.borrow_dependent().iter();
            let parts: Vec<_> = parts.map(|(part, weight)| (part, *weight)).collect();
            if parts.is_empty() {
                return Ok(None);
            }
            let config = &packed.borrow_owner().model.parsed.weights().config;
            Ok(Some(Composition::new(config, &parts)?))
        })?;
        let machine = Machine { sum, pool };
        let session = RunningCell::try_new(machine, |machine| -> Result<_, Failure> {
            let (weights, sum) = (machine.weights(), machine.sum.borrow_dependent());
            Session::check_memory(&weights.config, &session_options, sum.as_ref())?;
            let mut session = Session::new(weights, &machine.pool, session_options)?;
            session.set_composition(sum.as_ref())?;
            Ok(session)
        })?;
        Ok(Runner {
            model,
            form,
            n_batch: session_options.n_batch.min(MAX_BATCH),
            session: Mutex::new(session),
            cancelled: AtomicBool::new(false),
        })
    }

    /// Stops the generation that is at work.
    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Answers or continues a text. `on_text` gets whole characters.
    pub(super) fn generate(
        &self,
        request: &Request<'_>,
        mut on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Outcome, Failure> {
        let mut session = self.session.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => {
                Failure::new(TANDEM_BUSY, "the session is at work in another call")
            }
            TryLockError::Poisoned(_) => Failure::new(
                TANDEM_INTERNAL,
                "an earlier call broke the session: free it and make another",
            ),
        })?;
        self.cancelled.store(false, Ordering::Relaxed);
        session.with_dependent_mut(|_, session| {
            self.model
                .with_tokenizer(|tokenizer| self.run(session, tokenizer, request, &mut on_text))
        })
    }

    fn run(
        &self,
        session: &mut Session<'_, '_>,
        tokenizer: &Tokenizer<'_>,
        request: &Request<'_>,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Outcome, Failure> {
        let ids = match &self.form {
            Some(form) if !request.raw => prompt::fill(tokenizer, form, request.text)?,
            _ => {
                let gguf = self.model.parsed.gguf();
                prompt::encode(gguf, tokenizer, request.text, request.raw)?
            }
        };
        if ids.is_empty() {
            return Err(argument("the prompt is empty"));
        }
        if ids.len() > session.n_ctx() {
            let (n, n_ctx) = (ids.len(), session.n_ctx());
            let message =
                std::format!("the prompt has {n} tokens, the context has room for {n_ctx}");
            return Err(Failure::new(TANDEM_CONTEXT, message));
        }
        let mut rest = session.keep_prefix(&ids);
        let mut outcome = Outcome {
            n_prompt: ids.len(),
            n_generated: 0,
            stop: StopReason::Cancelled,
        };
        while let Some((batch, others)) = rest.split_at_checked(self.n_batch)
            && !others.is_empty()
        {
            session.eval(batch)?;
            rest = others;
            if self.cancelled.load(Ordering::Relaxed) {
                return Ok(outcome);
            }
        }
        let vocab = tokenizer.vocab();
        let mut decoder = vocab.stream_continuation(ControlTokens::Hide);
        let mut sampler = Sampler::new(request.sampler, session.model().config.n_vocab);
        let mut failure = None;
        let is_end = |id| vocab.is_end_of_generation(id);
        let n = request.max_tokens;
        let stop = generate(session, &mut sampler, rest, n, is_end, |id| {
            outcome.n_generated += 1;
            let go_on = match decoder.push(id) {
                Ok("") => ControlFlow::Continue(()),
                Ok(text) => on_text(text),
                Err(error) => {
                    failure = Some(error);
                    ControlFlow::Break(())
                }
            };
            match self.cancelled.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => go_on,
            }
        })?;
        if let Some(error) = failure {
            return Err(error.into());
        }
        outcome.stop = stop;
        let text = decoder.finish();
        if stop != StopReason::Cancelled && !text.is_empty() && on_text(text).is_break() {
            outcome.stop = StopReason::Cancelled;
        }
        Ok(outcome)
    }
}

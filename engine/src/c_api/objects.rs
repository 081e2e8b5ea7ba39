//! What the handles stand for. Models and pools are the engine's own; here is what C wants of bundles
//! and sessions besides.

use std::ffi::CString;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::vec::Vec;

use tandem_formats::Bytes;
use tandem_kernels::Limited;

use super::failure::Failure;
use super::tandem_status::{TANDEM_BUSY, TANDEM_INTERNAL};
use crate::constraint::{Grammar, GrammarError};
use crate::{
    AdapterType, Bundle, Composition, Compute, Error, Generation, Level, Model, Prompt, Sampling,
    Session, SharedPool, StopReason, ThreadPool,
};

/// An open bundle, for whichever model a session is of.
pub(super) struct OpenBundle {
    bundle: Arc<tandem_formats::bundle::Bundle>,
    /// The names of its compositions, for C.
    names: Vec<CString>,
}

impl OpenBundle {
    pub(super) fn new(bytes: impl Into<Bytes>) -> Result<OpenBundle, Failure> {
        let bundle = tandem_formats::bundle::Bundle::parse(bytes)?;
        let compositions = &bundle.contents().compositions;
        let names = compositions.iter().map(|c| CString::new(&*c.name));
        // The format allows no zeros in names.
        let names = names.map(Result::unwrap_or_default).collect();
        Ok(OpenBundle {
            bundle: Arc::new(bundle),
            names,
        })
    }

    pub(super) fn names(&self) -> &[CString] {
        &self.names
    }
}

/// A bundle, and the name of one of its compositions.
pub(super) type Choice<'a> = (Arc<OpenBundle>, &'a str);

/// How a session is to run; 0 is the default of a number.
pub(super) struct RunnerOptions {
    pub n_ctx: usize,
    pub n_batch: usize,
    pub n_threads: usize,
    pub n_threads_decode: usize,
    pub exact: bool,
    pub level: Level,
    /// Threads to share with other sessions.
    pub pool: Option<SharedPool>,
}

impl RunnerOptions {
    fn own_pool(&self) -> SharedPool {
        match self.n_threads {
            0 => crate::threads::all().into(),
            n => ThreadPool::new(n.max(self.n_threads_decode)).into(),
        }
    }
}

/// How a session's compositions are made.
struct Compose {
    pool: SharedPool,
    /// The most threads of the pool that may take part.
    n_threads: usize,
    level: Level,
    exact: bool,
}

impl Compose {
    /// Nothing of a bundle runs that is damaged or for another model.
    fn make(&self, model: &Model, (bundle, name): Choice<'_>) -> Result<Composition, Error> {
        let bundle = Bundle::from_parsed(model, Arc::clone(&bundle.bundle))?;
        let adapter_type = AdapterType::for_model(model, self.exact);
        let compute = Compute {
            level: self.level,
            pool: Limited::new(self.pool.get(), self.n_threads),
        };
        bundle.composition_as(name, adapter_type, compute)
    }
}

/// What became of a generation.
pub(super) struct Outcome {
    pub n_prompt: usize,
    pub n_generated: usize,
    pub stop: StopReason,
}

/// A session that one call at a time uses, and that other threads may stop.
pub(super) struct Runner {
    session: Mutex<Session>,
    compose: Compose,
    cancelled: Arc<AtomicBool>,
}

/// What an answer is to be.
pub(super) struct Asked<'a> {
    pub prompt: Prompt<'a>,
    pub sampling: &'a Sampling,
    pub form: Option<Form<'a>>,
}

/// What an answer is held to.
#[derive(Clone, Copy)]
pub(super) enum Form<'a> {
    JsonSchema(&'a str),
    Regex(&'a str),
}

impl Form<'_> {
    fn grammar(self, model: &Model) -> Result<Grammar, GrammarError> {
        let grammars = model.grammars()?;
        match self {
            Form::JsonSchema(schema) => grammars.json_schema(schema),
            Form::Regex(regex) => grammars.regex(regex),
        }
    }
}

impl Runner {
    /// A session of `model` with a composition of a bundle, if any.
    pub(super) fn new(
        model: &Model,
        chosen: Option<Choice<'_>>,
        options: RunnerOptions,
    ) -> Result<Runner, Failure> {
        let given = |n: usize| (n > 0).then_some(n);
        let compose = Compose {
            pool: options.pool.clone().unwrap_or_else(|| options.own_pool()),
            n_threads: given(options.n_threads).unwrap_or(usize::MAX),
            level: options.level,
            exact: options.exact,
        };
        let mut builder = model.session().pool(&compose.pool);
        builder = builder.level(options.level).exact(options.exact);
        if let Some(n) = given(options.n_ctx) {
            builder = builder.n_ctx(n);
        }
        if let Some(n) = given(options.n_batch) {
            builder = builder.n_batch(n);
        }
        if let Some(n) = given(options.n_threads) {
            builder = builder.threads(n);
        }
        if let Some(n) = given(options.n_threads_decode) {
            builder = builder.threads_decode(n);
        }
        if let Some(chosen) = chosen {
            builder = builder.composition(&compose.make(model, chosen)?);
        }
        Ok(Runner {
            session: Mutex::new(builder.build()?),
            compose,
            cancelled: Arc::default(),
        })
    }

    /// The session, where no other call is at work in it.
    pub(super) fn session(&self) -> Result<MutexGuard<'_, Session>, Failure> {
        self.session.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => {
                Failure::new(TANDEM_BUSY, "the session is at work in another call")
            }
            TryLockError::Poisoned(_) => Failure::new(
                TANDEM_INTERNAL,
                "an earlier call broke the session: free it and make another",
            ),
        })
    }

    /// Runs another composition, or the model alone, from now on.
    pub(super) fn set_composition(&self, chosen: Option<Choice<'_>>) -> Result<(), Failure> {
        // Locked while a merge is computed, so that nobody starts what the change would undo.
        let mut session = self.session()?;
        let make = |chosen| self.compose.make(session.model(), chosen);
        let composition = chosen.map(make).transpose()?;
        Ok(session.set_composition(composition.as_ref())?)
    }

    /// Stops the generation that is at work.
    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Answers or continues a prompt. `on_text` gets whole characters.
    pub(super) fn generate(
        &self,
        asked: Asked<'_>,
        on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Outcome, Failure> {
        let mut session = self.session()?;
        let grammar = asked.form.map(|form| form.grammar(session.model()));
        let grammar = grammar.transpose()?;
        self.cancelled.store(false, Ordering::Relaxed);
        // For as long as this is at work: the next call is another one's.
        session.set_interrupt(Some(Arc::clone(&self.cancelled)));
        let mut generation = session.generate(asked.prompt, asked.sampling);
        if let (Ok(generation), Some(grammar)) = (&mut generation, grammar) {
            generation.set_filter(Box::new(grammar.constraint()));
        }
        let outcome = self.answer(generation, on_text);
        session.set_interrupt(None);
        outcome
    }

    fn answer(
        &self,
        generation: Result<Generation<'_>, Error>,
        mut on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Outcome, Failure> {
        let mut generation = generation?;
        while let Some(piece) = generation.next() {
            if on_text(&piece?).is_break() || self.is_cancelled() {
                generation.cancel();
            }
        }
        Ok(Outcome {
            n_prompt: generation.n_prompt(),
            n_generated: generation.tokens().len(),
            stop: generation.stop_reason().unwrap_or(StopReason::Cancelled),
        })
    }
}

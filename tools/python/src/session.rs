//! Sessions.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyDict;
use self_cell::{MutBorrow, self_cell};
use tandem_engine::{Prompt, TokenFilter};

use crate::arguments::{Form, Options};
use crate::bundle::Composition;
use crate::conversation::{Asked, Talk};
use crate::error::{Result, argument};
use crate::floats::Floats;
use crate::generation::{Generation, Record};
use crate::interrupt::interruptible;
use crate::process::OfProcess;

type EngineSession = Box<tandem_engine::Session>;
type EngineGeneration<'s> = tandem_engine::Generation<'s>;

self_cell!(
    /// A session with what it generates.
    pub(crate) struct Running {
        owner: MutBorrow<EngineSession>,
        #[not_covariant]
        dependent: EngineGeneration,
    }
);

/// What a session does.
pub(crate) enum Work {
    Idle(EngineSession),
    /// The record is the generation's, too, and tells one from the other.
    Running(Running, Arc<Record>),
    /// In between, and after a panic.
    Lost,
}

/// A session that its generations share.
pub(crate) struct Shared {
    pub model: tandem_engine::Model,
    work: OfProcess<Mutex<Work>>,
}

impl Shared {
    /// What the session does; whoever asks must not have Python's lock.
    pub(crate) fn work(&self) -> Result<MutexGuard<'_, Work>> {
        Ok(self
            .work
            .get()?
            .lock()
            .unwrap_or_else(PoisonError::into_inner))
    }

    /// The same, if nobody uses it just now.
    pub(crate) fn try_work(&self) -> Option<MutexGuard<'_, Work>> {
        self.work.get().ok()?.try_lock().ok()
    }
}

impl Work {
    /// Ends what is generated, if anything is.
    pub(crate) fn idle(&mut self) -> Result<&mut tandem_engine::Session> {
        match std::mem::replace(self, Work::Lost) {
            Work::Running(mut running, record) => {
                running.with_dependent_mut(|_, generation| {
                    generation.cancel();
                    record.end(generation);
                });
                *self = Work::Idle(running.into_owner().into_inner());
            }
            other => *self = other,
        }
        match self {
            Work::Idle(session) => Ok(session),
            _ => lost(),
        }
    }

    /// Looks at the session, whatever it does.
    fn look<T>(&mut self, f: impl FnOnce(&tandem_engine::Session) -> Result<T>) -> Result<T> {
        match self {
            Work::Idle(session) => f(session),
            Work::Running(running, _) => {
                running.with_dependent(|_, generation| f(generation.session()))
            }
            Work::Lost => lost(),
        }
    }
}

fn lost<T>() -> Result<T> {
    argument("an error in the engine ended this session: make another")
}

/// A model at work on one text at a time; from `Model.session`.
///
/// What a prompt has in common with what was evaluated before, as the conversation so far is, is not evaluated
/// again. It may be used from several threads, one after the other. A new answer ends the one before.
#[pyclass(frozen, module = "tandem")]
pub(crate) struct Session(Arc<Shared>);

impl Session {
    pub(crate) fn new(session: tandem_engine::Session) -> Session {
        let model = session.model().clone();
        let work = OfProcess::new(Mutex::new(Work::Idle(Box::new(session))));
        Session(Arc::new(Shared { model, work }))
    }

    /// Asks the session that nothing is generated in.
    fn ask<T: Send>(
        &self,
        py: Python<'_>,
        f: impl FnOnce(&mut tandem_engine::Session) -> Result<T> + Send,
    ) -> Result<T> {
        py.detach(|| f(self.0.work()?.idle()?))
    }

    /// Looks at the session, whatever it does.
    fn look<T: Send>(
        &self,
        py: Python<'_>,
        f: impl FnOnce(&tandem_engine::Session) -> Result<T> + Send,
    ) -> Result<T> {
        py.detach(|| self.0.work()?.look(f))
    }

    fn begin(&self, py: Python<'_>, asked: Asked, options: Options) -> Result<Generation> {
        let stop = Arc::new(AtomicBool::new(false));
        let begun = interruptible(py, &stop, || {
            // What is refused does not end the answer before.
            let filter = options.form.map(|form| filter(&self.0.model, &form));
            let filter = filter.transpose()?;
            let mut work = self.0.work()?;
            let ids = work.look(|session| asked.ids(session))?;
            work.idle()?;
            let Work::Idle(mut session) = std::mem::replace(&mut *work, Work::Lost) else {
                return lost();
            };
            session.set_interrupt(Some(Arc::clone(&stop)));
            let begun = Running::try_new_or_recover(MutBorrow::new(session), |session| {
                let session = session.borrow_mut();
                session.generate(Prompt::Tokens(&ids), &options.sampling)
            });
            match begun {
                Ok(mut running) => {
                    let record = running.with_dependent_mut(|_, generation| {
                        if let Some(filter) = filter {
                            generation.set_filter(filter);
                        }
                        Record::new(generation, options.sampling.seed, asked.tools())
                    });
                    let record = Arc::new(record);
                    *work = Work::Running(running, Arc::clone(&record));
                    Ok(record)
                }
                Err((session, error)) => {
                    *work = Work::Idle(session.into_inner());
                    Err(error.into())
                }
            }
        })??;
        Ok(Generation::new(Arc::clone(&self.0), begun, stop))
    }
}

/// What holds an answer to a form.
fn filter(model: &tandem_engine::Model, form: &Form) -> Result<Box<dyn TokenFilter + Send>> {
    let grammars = model.grammars()?;
    let grammar = match form {
        Form::JsonSchema(schema) => grammars.json_schema(schema),
        Form::Regex(regex) => grammars.regex(regex),
        Form::Lark(lark) => grammars.lark(lark),
    };
    Ok(Box::new(grammar?.constraint()))
}

#[pymethods]
impl Session {
    /// Answers a prompt: an iterator of the answer's text. A `str` is the input of the composition's prompt where
    /// that has one, else a user's message in the model's chat template, else taken as it is; with `raw=True` it
    /// is always taken as it is. A list of ids is taken as these tokens, one of dictionaries as messages.
    ///
    /// `max_tokens`, `temperature`, `top_k`, `top_p`, `min_p`, `typical_p`, `repeat_penalty`,
    /// `frequency_penalty`, `presence_penalty`, `penalty_window`, `seed`, `stop` (a text or several), `max_draft`
    /// are as `tandem run` has them; `json_schema`, `regex` or `lark` holds the answer to a form.
    #[pyo3(signature = (prompt, *, raw=false, **options))]
    fn generate(
        &self,
        py: Python<'_>,
        prompt: &Bound<'_, PyAny>,
        raw: bool,
        options: Option<&Bound<'_, PyDict>>,
    ) -> Result<Generation> {
        let asked = Asked::read(prompt, raw)?;
        self.begin(py, asked, Options::read(options)?)
    }

    /// Answers a conversation in the model's chat template: `[{"role": "user", "content": "..."}, ...]`. `tools`, in
    /// OpenAI's form, are offered to the model; `Generation.tool_calls` are those it called. `template_args` are
    /// given to the template, `{"enable_thinking": False}` for example. Other arguments are those of `generate`.
    #[pyo3(signature = (messages, tools=None, *, template_args=None, **options))]
    fn chat(
        &self,
        py: Python<'_>,
        messages: &Bound<'_, PyAny>,
        tools: Option<&Bound<'_, PyAny>>,
        template_args: Option<&Bound<'_, PyAny>>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> Result<Generation> {
        let asked = Asked::Conversation(Talk::read(messages, tools, template_args)?);
        self.begin(py, asked, Options::read(options)?)
    }

    /// The tokens that `generate` would begin with.
    #[pyo3(signature = (prompt, *, raw=false))]
    fn prompt_ids(&self, py: Python<'_>, prompt: &Bound<'_, PyAny>, raw: bool) -> Result<Vec<u32>> {
        let asked = Asked::read(prompt, raw)?;
        self.look(py, |session| asked.ids(session))
    }

    /// Runs another composition, or the model alone, from the next answer on. What was evaluated is forgotten,
    /// unless it has the same content as the one before.
    #[pyo3(signature = (composition))]
    fn set_composition(&self, py: Python<'_>, composition: Option<&Composition>) -> Result<()> {
        let composition = composition.map(|composition| &composition.0);
        self.ask(py, |session| Ok(session.set_composition(composition)?))
    }

    /// Evaluates tokens after those that the session has, and gives the logits for the next, `[n_vocab]`.
    fn eval(&self, py: Python<'_>, tokens: Vec<u32>) -> Result<Floats> {
        let stop = Arc::new(AtomicBool::new(false));
        let shared = &self.0;
        interruptible(py, &stop, || {
            let mut work = shared.work()?;
            let session = work.idle()?;
            session.set_interrupt(Some(Arc::clone(&stop)));
            Ok(Floats::row(session.eval(&tokens)?.to_vec()))
        })?
    }

    /// Forgets all tokens but the first `n`; gives how many are left, which may be fewer.
    fn rewind(&self, py: Python<'_>, n: usize) -> Result<usize> {
        self.ask(py, |session| Ok(session.rewind(n)))
    }

    /// The tokens evaluated so far.
    #[getter]
    fn tokens(&self, py: Python<'_>) -> Result<Vec<u32>> {
        self.look(py, |session| Ok(session.tokens().to_vec()))
    }

    fn __repr__(&self) -> &'static str {
        "<tandem.Session>"
    }
}

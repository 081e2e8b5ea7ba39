//! Answers as they are generated.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::PyStopAsyncIteration;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use serde_json::Value;
use tandem_tools::calls;

use crate::arguments::from_json;
use crate::error::Result;
use crate::interrupt::interruptible;
use crate::session::{Shared, Work};

/// What an answer took, in seconds.
#[pyclass(frozen, get_all, module = "tandem")]
#[derive(Clone, Copy)]
pub(crate) struct Timings {
    /// From the start to the first token.
    prompt: f64,
    /// From the first token to the last.
    decode: f64,
    /// Tokens of the prompt.
    n_prompt: usize,
    /// Of these, those that were not evaluated anew.
    n_cached: usize,
    /// Tokens of the answer.
    n_tokens: usize,
}

#[pymethods]
impl Timings {
    /// Tokens of the answer a second, after the first.
    #[getter]
    fn tokens_per_second(&self) -> f64 {
        match self.n_tokens > 1 && self.decode > 0.0 {
            true => (self.n_tokens - 1) as f64 / self.decode,
            false => 0.0,
        }
    }

    fn __repr__(&self) -> String {
        format!(
            "<tandem.Timings: {} of {} prompt tokens cached, {:.3} s; {} tokens, {:.3} s>",
            self.n_cached, self.n_prompt, self.prompt, self.n_tokens, self.decode
        )
    }
}

/// What is left of an answer when the session does something else.
pub(crate) struct Record {
    n_prompt: usize,
    n_cached: usize,
    seed: u64,
    /// What the model was offered.
    tools: Vec<Value>,
    ended: Mutex<Option<Ended>>,
}

#[derive(Clone)]
struct Ended {
    tokens: Vec<u32>,
    stop_reason: Option<&'static str>,
    stop_string: Option<String>,
    timings: tandem_engine::Timings,
}

impl Ended {
    fn of(generation: &tandem_engine::Generation<'_>) -> Ended {
        Ended {
            tokens: generation.tokens().to_vec(),
            stop_reason: generation.stop_reason().map(|reason| reason.name()),
            stop_string: generation.stop_string().map(String::from),
            timings: generation.timings(),
        }
    }
}

impl Record {
    pub(crate) fn new(
        generation: &tandem_engine::Generation<'_>,
        seed: u64,
        tools: Vec<Value>,
    ) -> Record {
        let n_prompt = generation.n_prompt();
        Record {
            n_prompt,
            n_cached: n_prompt - generation.n_left(),
            seed,
            tools,
            ended: Mutex::new(None),
        }
    }

    /// Keeps what came of it.
    pub(crate) fn end(&self, generation: &tandem_engine::Generation<'_>) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(Ended::of(generation));
    }
}

/// An answer as it is generated: an iterator of its text, in whole characters, for `for` and `async for`.
#[pyclass(frozen, module = "tandem")]
pub(crate) struct Generation {
    session: Arc<Shared>,
    record: Arc<Record>,
    stop: Arc<AtomicBool>,
}

impl Generation {
    pub(crate) fn new(
        session: Arc<Shared>,
        record: Arc<Record>,
        stop: Arc<AtomicBool>,
    ) -> Generation {
        Generation {
            session,
            record,
            stop,
        }
    }

    /// The next piece; none where it has ended.
    fn next_piece(&self) -> Result<Option<String>> {
        let mut work = self.session.work()?;
        if !self.is_at(&work) {
            return Ok(None);
        }
        if self.stop.load(Ordering::Relaxed) {
            work.idle()?;
            return Ok(None);
        }
        let Work::Running(running, _) = &mut *work else {
            return Ok(None);
        };
        match running.with_dependent_mut(|_, generation| generation.next()) {
            Some(Ok(piece)) => Ok(Some(piece)),
            Some(Err(error)) => {
                work.idle()?;
                Err(error.into())
            }
            None => {
                work.idle()?;
                Ok(None)
            }
        }
    }

    /// Whether a session generates this.
    fn is_at(&self, work: &Work) -> bool {
        matches!(work, Work::Running(_, record) if Arc::ptr_eq(record, &self.record))
    }

    /// Whether the next piece waits for the prompt.
    fn reads_prompt(&self) -> Result<bool> {
        self.look(|generation| generation.tokens().is_empty(), |_| false)
    }

    /// Looks at it while it goes on, or at what came of it.
    fn look<T>(
        &self,
        running: impl FnOnce(&tandem_engine::Generation<'_>) -> T,
        ended: impl FnOnce(&Ended) -> T,
    ) -> Result<T> {
        let mut work = self.session.work()?;
        if self.stop.load(Ordering::Relaxed) && self.is_at(&work) {
            work.idle()?;
        }
        if let Work::Running(generation, record) = &mut *work
            && Arc::ptr_eq(record, &self.record)
        {
            return Ok(generation.with_dependent(|_, generation| running(generation)));
        }
        drop(work);
        let record = self.record.ended.lock();
        let record = record.unwrap_or_else(PoisonError::into_inner);
        match &*record {
            Some(of) => Ok(ended(of)),
            None => crate::error::argument("an error in the engine ended this answer"),
        }
    }

    fn outcome(&self, py: Python<'_>) -> Result<Ended> {
        py.detach(|| self.look(Ended::of, Ended::clone))
    }
}

#[pymethods]
impl Generation {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> Result<Option<String>> {
        match py.detach(|| self.reads_prompt())? {
            true => interruptible(py, &self.stop, || self.next_piece())?,
            false => py.detach(|| self.next_piece()),
        }
    }

    fn __aiter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __anext__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.py()
            .import("tandem.aio")?
            .call_method1("next_piece", (slf,))
    }

    /// The next piece for `async for`, on a thread of asyncio's.
    fn _next(&self, py: Python<'_>) -> PyResult<String> {
        let piece = py.detach(|| self.next_piece())?;
        piece.ok_or_else(|| PyStopAsyncIteration::new_err(()))
    }

    /// All that is still to come.
    fn read(&self, py: Python<'_>) -> Result<String> {
        let mut text = String::new();
        while let Some(piece) = self.__next__(py)? {
            text += &piece;
            if let Err(error) = py.check_signals() {
                self.cancel();
                return Err(error.into());
            }
        }
        Ok(text)
    }

    /// Ends it: no more text comes. It may be called from any thread, also while another waits for text.
    fn cancel(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// The tokens generated so far, one that ends the text included.
    #[getter]
    fn tokens(&self, py: Python<'_>) -> Result<Vec<u32>> {
        Ok(self.outcome(py)?.tokens)
    }

    /// Why it ended: "end_of_text", "max_tokens", "context_full", "cancelled", "stop_string", "complete"; none
    /// while it goes on.
    #[getter]
    fn stop_reason(&self, py: Python<'_>) -> Result<Option<&'static str>> {
        Ok(self.outcome(py)?.stop_reason)
    }

    /// Which of the stop strings ended it.
    #[getter]
    fn stop_string(&self, py: Python<'_>) -> Result<Option<String>> {
        Ok(self.outcome(py)?.stop_string)
    }

    /// What it took so far.
    #[getter]
    fn timings(&self, py: Python<'_>) -> Result<Timings> {
        let ended = self.outcome(py)?;
        Ok(Timings {
            prompt: ended.timings.prompt.as_secs_f64(),
            decode: ended.timings.decode.as_secs_f64(),
            n_prompt: self.record.n_prompt,
            n_cached: self.record.n_cached,
            n_tokens: ended.tokens.len(),
        })
    }

    /// The tools that the model called so far, of those that `Session.chat` offered: dictionaries of `name` and
    /// `arguments`, which are a dictionary, too, or the text where that is no JSON.
    #[getter]
    fn tool_calls<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        if self.record.tools.is_empty() {
            return Ok(list);
        }
        let tokens = self.outcome(py)?.tokens;
        let found = py.detach(|| calls::read(&self.session.model, &self.record.tools, &tokens))?;
        for call in found {
            let dict = PyDict::new(py);
            dict.set_item("name", call.name)?;
            match from_json(py, &call.arguments) {
                Ok(arguments) => dict.set_item("arguments", arguments)?,
                Err(_) => dict.set_item("arguments", call.arguments)?,
            }
            list.append(dict)?;
        }
        Ok(list)
    }

    /// What the random numbers began with: the same seed gives the same text.
    #[getter]
    fn seed(&self) -> u64 {
        self.record.seed
    }

    fn __repr__(&self) -> &'static str {
        "<tandem.Generation>"
    }
}

impl Drop for Generation {
    /// A session whose answer nobody waits for is free.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Where the session is in use, the next answer ends this: to wait, with Python's lock perhaps, must not be.
        if let Some(mut work) = self.session.try_work()
            && self.is_at(&work)
        {
            let _ = work.idle();
        }
    }
}

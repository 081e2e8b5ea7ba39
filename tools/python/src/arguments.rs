//! Arguments that several functions take.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;

use pyo3::conversion::FromPyObjectOwned;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use tandem_engine::{MAX_DRAFT, MAX_PENALTY_WINDOW, Sampling};

use crate::error::{Failure, Result, argument};

/// How an answer is picked, and what it is held to: the keyword arguments of `generate` and `chat`.
pub(crate) struct Options {
    pub sampling: Sampling,
    pub form: Option<Form>,
}

/// What an answer is held to.
pub(crate) enum Form {
    /// JSON of a schema.
    JsonSchema(String),
    /// A regular expression.
    Regex(String),
    /// A grammar in Lark's notation.
    Lark(String),
}

impl Options {
    pub(crate) fn read(options: Option<&Bound<'_, PyDict>>) -> Result<Options> {
        let mut sampling = Sampling::default();
        // Its keys are the same in a process that is forked; the number and the time are not.
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        sampling.seed = RandomState::new().hash_one((std::process::id(), now));
        let mut form = None;
        for read in readers(options)? {
            match &*read.key {
                "max_tokens" => sampling.max_tokens = read.value()?,
                "temperature" => {
                    sampling.temperature = read.number(|x| x >= 0.0, "of at least 0")?
                }
                "top_k" => sampling.top_k = read.value()?,
                "top_p" => sampling.top_p = read.share()?,
                "min_p" => sampling.min_p = read.share()?,
                "typical_p" => sampling.typical_p = read.share()?,
                "repeat_penalty" => {
                    sampling.repeat_penalty = read.number(|x| x > 0.0, "above 0")?
                }
                "frequency_penalty" => sampling.frequency_penalty = read.number(|_| true, "")?,
                "presence_penalty" => sampling.presence_penalty = read.number(|_| true, "")?,
                "penalty_window" => sampling.penalty_window = read.count(MAX_PENALTY_WINDOW)?,
                "max_draft" => sampling.max_draft = read.count(MAX_DRAFT)?,
                "seed" => sampling.seed = read.value()?,
                "stop" => sampling.stop = read.texts()?,
                "json_schema" => set_form(&mut form, Form::JsonSchema(read.json()?))?,
                "regex" => set_form(&mut form, Form::Regex(read.value()?))?,
                "lark" => set_form(&mut form, Form::Lark(read.value()?))?,
                _ => return read.unknown(),
            }
        }
        Ok(Options { sampling, form })
    }
}

fn set_form(place: &mut Option<Form>, form: Form) -> Result<()> {
    match place.replace(form) {
        None => Ok(()),
        Some(_) => argument("json_schema, regex and lark are one or the other"),
    }
}

/// A keyword argument.
pub(crate) struct Reader<'py> {
    pub key: String,
    value: Bound<'py, PyAny>,
}

/// The keyword arguments; one that is `None` is as if it was not given.
pub(crate) fn readers<'py>(options: Option<&Bound<'py, PyDict>>) -> Result<Vec<Reader<'py>>> {
    let mut readers = Vec::new();
    for (key, value) in options.into_iter().flatten() {
        if !value.is_none() {
            let key = key.extract()?;
            readers.push(Reader { key, value });
        }
    }
    Ok(readers)
}

impl<'py> Reader<'py> {
    /// An argument that nothing takes.
    pub(crate) fn unknown<T>(&self) -> Result<T> {
        argument(format!("there is no argument {:?}", self.key))
    }

    /// What a name stands for, if it stands for anything.
    pub(crate) fn named<T>(&self, found: Option<T>, names: &[&str]) -> Result<T> {
        let wrong = || {
            Failure::Argument(format!(
                "{}: there are {}, not {}",
                self.key,
                names.join(", "),
                self.value
            ))
        };
        found.ok_or_else(wrong)
    }

    /// A number of at least 1.
    pub(crate) fn positive(&self) -> Result<usize> {
        match self.value()? {
            0 => argument(format!("{}: at least 1 is wanted", self.key)),
            n => Ok(n),
        }
    }

    pub(crate) fn value<T: FromPyObjectOwned<'py>>(&self) -> Result<T> {
        self.value.extract().map_err(|error: T::Error| {
            let error: PyErr = error.into();
            Failure::Argument(format!("{}: {}", self.key, error.value(self.value.py())))
        })
    }

    fn number(&self, fits: impl Fn(f32) -> bool, wanted: &str) -> Result<f32> {
        let x: f32 = self.value()?;
        match x.is_finite() && fits(x) {
            true => Ok(x),
            false => argument(format!("{}: a finite number {wanted} is wanted", self.key)),
        }
    }

    fn share(&self) -> Result<f32> {
        self.number(|x| (0.0..=1.0).contains(&x), "from 0 to 1")
    }

    fn count(&self, max: usize) -> Result<usize> {
        let n = self.value()?;
        match n <= max {
            true => Ok(n),
            false => argument(format!("{}: a number up to {max} is wanted", self.key)),
        }
    }

    /// One text, or several.
    fn texts(&self) -> Result<Vec<String>> {
        match self.value.cast::<PyString>() {
            Ok(text) => Ok(vec![text.extract()?]),
            Err(_) => self.value(),
        }
    }

    /// JSON: a text, or what becomes one.
    fn json(&self) -> Result<String> {
        match self.value.cast::<PyString>() {
            Ok(text) => Ok(text.extract()?),
            Err(_) => to_json(&self.value),
        }
    }
}

/// What `json.dumps` makes of a value.
pub(crate) fn to_json(value: &Bound<'_, PyAny>) -> Result<String> {
    let json = value.py().import("json")?;
    let text = json.call_method1("dumps", (value,));
    let text = text.map_err(|error| Failure::Argument(format!("no JSON: {error}")))?;
    Ok(text.extract()?)
}

/// What `json.loads` makes of a text.
pub(crate) fn from_json<'py>(py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyAny>> {
    py.import("json")?.call_method1("loads", (text,))
}

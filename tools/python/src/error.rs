//! What fails, as Python's exceptions: the classes of `tandem.errors`.

use pyo3::prelude::*;
use tandem_engine::chat::PromptError;
use tandem_engine::constraint::GrammarError;
use tandem_engine::tokenizer::TokenizerError;
use tandem_engine::{CompositionError, Error, ModelError, SessionError};
use tandem_formats::{BundleError, FileError, GgufError};

/// What a function of ours may fail with. It is made without Python, and becomes an exception when Python has
/// it.
#[derive(Debug)]
pub(crate) enum Failure {
    /// What the engine says.
    Engine(Error),
    /// What the work behind a command says.
    Work(anyhow::Error),
    /// An argument that makes no sense.
    Argument(String),
    /// A thing whose threads are another process's.
    Forked,
    /// What a function of the caller raised.
    Raised(PyErr),
}

pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// An argument that makes no sense.
pub(crate) fn argument<T>(text: impl Into<String>) -> Result<T> {
    Err(Failure::Argument(text.into()))
}

/// What functions of the engine give that do one thing only.
macro_rules! from_engine {
    ($($error:ty),*) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Failure {
                Failure::Engine(error.into())
            }
        }
    )*};
}
from_engine!(
    Error,
    FileError,
    ModelError,
    CompositionError,
    SessionError,
    PromptError,
    TokenizerError,
    GrammarError
);

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::Work(error)
    }
}

impl From<PyErr> for Failure {
    fn from(error: PyErr) -> Failure {
        Failure::Raised(error)
    }
}

/// The class of what the engine says.
fn class_of(error: &Error) -> &'static str {
    match error {
        Error::File(_) => "FileError",
        Error::Model(_) => "ModelError",
        Error::Bundle(_) => "BundleError",
        Error::Composition(_) => "CompositionError",
        Error::Session(error) => class_of_session(error),
        Error::Prompt(_) => "PromptError",
        Error::Tokenizer(_) => "TokenizerError",
        Error::Grammar(_) => "GrammarError",
        _ => "TandemError",
    }
}

fn class_of_session(error: &SessionError) -> &'static str {
    match error {
        SessionError::ContextFull { .. } | SessionError::PromptTooLong { .. } => "ContextFullError",
        SessionError::OutOfMemory { .. } | SessionError::TooLarge { .. } => "OutOfMemoryError",
        SessionError::Options { .. } => "ArgumentError",
        _ => "SessionError",
    }
}

/// The class of the first cause that has one.
fn class_of_work(error: &anyhow::Error) -> &'static str {
    let class = |cause: &(dyn std::error::Error + 'static)| {
        if let Some(error) = cause.downcast_ref::<Error>() {
            return Some(class_of(error));
        }
        if let Some(error) = cause.downcast_ref::<SessionError>() {
            return Some(class_of_session(error));
        }
        if cause.is::<BundleError>() {
            return Some("BundleError");
        }
        if cause.is::<CompositionError>() {
            return Some("CompositionError");
        }
        if cause.is::<TokenizerError>() {
            return Some("TokenizerError");
        }
        let is_file = cause.is::<FileError>() || cause.is::<GgufError>();
        (is_file || cause.is::<std::io::Error>()).then_some("FileError")
    };
    error.chain().find_map(class).unwrap_or("TandemError")
}

/// An error with what it comes from.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> PyErr {
        let (class, text) = match &failure {
            Failure::Engine(error) => (class_of(error), with_causes(error)),
            Failure::Work(error) => (class_of_work(error), format!("{error:#}")),
            Failure::Argument(text) => ("ArgumentError", text.clone()),
            Failure::Forked => (
                "ForkedError",
                "this was made before the process was forked, and its threads are not here: make another"
                    .to_string(),
            ),
            Failure::Raised(_) => ("", String::new()),
        };
        if let Failure::Raised(error) = failure {
            return error;
        }
        Python::attach(|py| {
            let error = py
                .import("tandem.errors")
                .and_then(|module| module.getattr(class)?.call1((text,)));
            error.map_or_else(|error| error, PyErr::from_value)
        })
    }
}

//! Failures as C is told them: a code, and a message kept for the thread.

use std::cell::RefCell;
use std::error::Error as StdError;
use std::ffi::{CStr, CString, c_char};
use std::string::{String, ToString};

use tandem_formats::{BundleError, FileError};

use super::tandem_status;
use crate::chat::PromptError;
use crate::constraint::GrammarError;
use crate::tokenizer::TokenizerError;
use crate::{CompositionError, Error, ModelError, SessionError};

/// Why a call failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub status: tandem_status,
    pub message: String,
}

impl Failure {
    pub(super) fn new(status: tandem_status, message: impl ToString) -> Failure {
        Failure {
            status,
            message: message.to_string(),
        }
    }

    /// An error with all its causes.
    pub(super) fn of(status: tandem_status, error: &dyn StdError) -> Failure {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            message.push_str(": ");
            message.push_str(&error.to_string());
            cause = error.source();
        }
        Failure { status, message }
    }

    /// With `what` before its message.
    pub(super) fn within(self, what: &str) -> Failure {
        let message = std::format!("{what}: {}", self.message);
        Failure { message, ..self }
    }

    /// Keeps the message for [`message`] and gives the code.
    pub(super) fn keep(self) -> tandem_status {
        // A message cannot have zeros in it: it may quote a file.
        let text = self.message.replace('\0', "\u{fffd}");
        let text = CString::new(text).unwrap_or_default();
        // Where the thread is about to end, nobody will ask.
        let _ = MESSAGE.try_with(|message| message.replace(text));
        self.status
    }
}

std::thread_local! {
    static MESSAGE: RefCell<CString> = RefCell::default();
}

/// The message of the last failure on this thread; it stays until the next one.
pub(super) fn message() -> *const c_char {
    let message = MESSAGE.try_with(|message| message.borrow().as_ptr());
    message.unwrap_or(CStr::as_ptr(c""))
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        let status = match error {
            FileError::Io { .. } => tandem_status::TANDEM_IO,
            _ => tandem_status::TANDEM_MODEL,
        };
        Failure::of(status, &error)
    }
}

impl From<SessionError> for Failure {
    fn from(error: SessionError) -> Self {
        let status = match error {
            SessionError::OutOfMemory { .. } | SessionError::TooLarge { .. } => {
                tandem_status::TANDEM_MEMORY
            }
            SessionError::ContextFull { .. } | SessionError::PromptTooLong { .. } => {
                tandem_status::TANDEM_CONTEXT
            }
            _ => tandem_status::TANDEM_ARGUMENT,
        };
        Failure::of(status, &error)
    }
}

macro_rules! failures {
    ($($error:ident is $status:ident;)*) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Failure::of(tandem_status::$status, &error)
            }
        }
    )*};
}
failures! {
    ModelError is TANDEM_MODEL;
    BundleError is TANDEM_BUNDLE;
    CompositionError is TANDEM_BUNDLE;
    PromptError is TANDEM_TEXT;
    TokenizerError is TANDEM_TEXT;
    GrammarError is TANDEM_ARGUMENT;
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::File(error) => error.into(),
            Error::Model(error) => error.into(),
            Error::Bundle(error) => error.into(),
            Error::Composition(error) => error.into(),
            Error::Session(error) => error.into(),
            Error::Prompt(error) => error.into(),
            Error::Tokenizer(error) => error.into(),
            Error::Grammar(error) => error.into(),
        }
    }
}

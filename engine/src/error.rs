//! What can be wrong with a model, and with a request to run it.

use alloc::string::String;
use core::fmt;

use tandem_formats::{DType, GgufError};

/// Why a file's model cannot be run.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum ModelError {
    /// The file's metadata could not be read.
    Gguf(GgufError),
    /// The file is something else than a language model, or of an architecture that is not
    /// supported.
    Architecture {
        /// `general.architecture` as it stands in the file.
        found: String,
    },
    /// A metadata key that the model needs is missing.
    MissingKey {
        /// The key.
        key: String,
    },
    /// A metadata value makes no sense, by itself or with others.
    Value {
        /// The key.
        key: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A tensor that the model needs is missing.
    MissingTensor {
        /// The tensor's name.
        name: String,
    },
    /// A tensor has another shape than the metadata asks for.
    Shape {
        /// The tensor's name.
        name: String,
        /// Rows and columns wanted.
        wanted: (usize, usize),
        /// Rows and columns found.
        found: (usize, usize),
    },
    /// A tensor has a type that its role does not allow.
    Type {
        /// The tensor's name.
        name: String,
        /// Its type.
        found: DType,
    },
    /// The file has a tensor that this engine would not use: it needs something unsupported, and
    /// running without it would give wrong results.
    UnusedTensor {
        /// The tensor's name.
        name: String,
    },
    /// The model needs a feature that is not supported.
    Unsupported {
        /// What it is.
        feature: &'static str,
    },
}

impl From<GgufError> for ModelError {
    fn from(error: GgufError) -> Self {
        ModelError::Gguf(error)
    }
}

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelError::Gguf(_) => write!(f, "the model's metadata cannot be read"),
            ModelError::Architecture { found } => write!(
                f,
                "architecture {found:?} is not supported (supported: llama, qwen2, qwen3, \
                 stablelm, gemma3, phi3)"
            ),
            ModelError::MissingKey { key } => write!(f, "metadata key {key} is missing"),
            ModelError::Value { key, reason } => write!(f, "metadata key {key}: {reason}"),
            ModelError::MissingTensor { name } => write!(f, "tensor {name} is missing"),
            ModelError::Shape {
                name,
                wanted,
                found,
            } => write!(
                f,
                "tensor {name} has {} rows of {} elements, the metadata asks for {} of {}",
                found.0, found.1, wanted.0, wanted.1
            ),
            ModelError::Type { name, found } => {
                write!(
                    f,
                    "tensor {name} is of type {found}, which its role does not allow"
                )
            }
            ModelError::UnusedTensor { name } => write!(
                f,
                "tensor {name} belongs to a feature that is not supported; running without it \
                 would give wrong results"
            ),
            ModelError::Unsupported { feature } => {
                write!(f, "the model needs {feature}, which is not supported")
            }
        }
    }
}

impl core::error::Error for ModelError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            ModelError::Gguf(error) => Some(error),
            _ => None,
        }
    }
}

/// Why tokens cannot be evaluated, or a session not be made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionError {
    /// The session's options make no sense for the model.
    Options {
        /// What is wrong.
        reason: &'static str,
    },
    /// There is no memory for the session's buffers.
    OutOfMemory {
        /// Bytes that were asked for at once.
        n_bytes: usize,
    },
    /// The machine has less free memory than the session would take.
    TooLarge {
        /// Positions of the context.
        n_ctx: usize,
        /// Bytes that it would take.
        needed: usize,
        /// Bytes that are free.
        free: usize,
    },
    /// No tokens were given.
    Empty,
    /// The tokens do not fit into the context any more.
    ContextFull {
        /// Positions of the context.
        n_ctx: usize,
        /// Positions already taken.
        n_past: usize,
        /// Tokens that were to be added.
        n_new: usize,
    },
    /// A token id outside the vocabulary.
    Token {
        /// The id.
        id: u32,
        /// Tokens in the vocabulary.
        n_vocab: usize,
    },
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SessionError::Options { reason } => f.write_str(reason),
            SessionError::OutOfMemory { n_bytes } => {
                write!(f, "cannot allocate {n_bytes} bytes for the session")
            }
            SessionError::TooLarge {
                n_ctx,
                needed,
                free,
            } => write!(
                f,
                "a context of {n_ctx} tokens needs {} MB, of which {} MB are free",
                needed / 1_000_000,
                free / 1_000_000
            ),
            SessionError::Empty => write!(f, "there are no tokens to evaluate"),
            SessionError::ContextFull {
                n_ctx,
                n_past,
                n_new,
            } => write!(
                f,
                "the context of {n_ctx} tokens is full: it holds {n_past}, {n_new} more do not fit"
            ),
            SessionError::Token { id, n_vocab } => {
                write!(f, "token id {id} is outside the vocabulary of {n_vocab}")
            }
        }
    }
}

impl core::error::Error for SessionError {}

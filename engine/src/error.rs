//! What can be wrong with a model, and with a request to run it.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use tandem_formats::{BundleError, DType, GgufError};

use crate::CompositionError;
use crate::chat::PromptError;
use crate::exec::MAX_SPANS;
use crate::model::Architecture;
use crate::tokenizer::TokenizerError;

/// Why a file's model cannot be run.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum ModelError {
    /// The vocabulary has not as many tokens as the embeddings have rows.
    Vocabulary {
        /// Tokens in the vocabulary.
        n_tokens: usize,
        /// Rows of `token_embd.weight`.
        n_rows: usize,
    },
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
            ModelError::Vocabulary { n_tokens, n_rows } => write!(
                f,
                "the vocabulary has {n_tokens} tokens, but the embeddings have {n_rows} rows"
            ),
            ModelError::Architecture { found } => write!(
                f,
                "architecture {found:?} is not supported (supported: {})",
                Architecture::names().collect::<Vec<_>>().join(", ")
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
    /// The prompt has more tokens than the context.
    PromptTooLong {
        /// Tokens of the prompt.
        n_prompt: usize,
        /// Positions of the context.
        n_ctx: usize,
    },
    /// More sequences or tokens than one pass takes.
    Batch {
        /// Sequences given.
        n_sequences: usize,
        /// Tokens given, of all sequences.
        n_tokens: usize,
        /// The most tokens of a pass.
        max_tokens: usize,
    },
    /// A saved sequence that cannot be used.
    Saved {
        /// Why.
        reason: &'static str,
    },
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
    /// Somebody interrupted the pass between two layers, see [`Worker::set_interrupt`](crate::Worker::set_interrupt).
    Interrupted,
    /// A [`TokenFilter`](crate::TokenFilter) cannot follow its form any more.
    Filter {
        /// Why.
        reason: String,
    },
    /// Logits that are no finite numbers: weights are broken, or activations overflow.
    NotFinite {
        /// The tensor whose weights are no finite numbers, if there is one.
        tensor: Option<String>,
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
            SessionError::PromptTooLong { n_prompt, n_ctx } => write!(
                f,
                "the context of {n_ctx} tokens is full: the prompt alone has {n_prompt}"
            ),
            SessionError::Batch {
                n_sequences,
                n_tokens,
                max_tokens,
            } => write!(
                f,
                "{n_tokens} tokens of {n_sequences} sequences are too many for one pass, which \
                 takes {max_tokens} of {MAX_SPANS}"
            ),
            SessionError::Saved { reason } => f.write_str(reason),
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
            SessionError::Interrupted => f.write_str("the evaluation was interrupted"),
            SessionError::Filter { reason } => {
                write!(f, "the answer cannot be held to its form: {reason}")
            }
            SessionError::NotFinite { tensor: Some(name) } => write!(
                f,
                "the logits are no finite numbers (NaN or infinite), as the weights of {name} are not"
            ),
            SessionError::NotFinite { tensor: None } => f.write_str(
                "the logits are no finite numbers (NaN or infinite), though all weights are: \
                 activations overflow, or an adapter is broken",
            ),
        }
    }
}

impl core::error::Error for SessionError {}

/// Whatever can go wrong, as the functions give it that do several things at once.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be opened, or is not a model.
    #[cfg(feature = "std")]
    File(tandem_formats::FileError),
    /// A model cannot be run.
    Model(ModelError),
    /// A bundle is damaged, or not for the model.
    Bundle(BundleError),
    /// Adapters cannot be used with the model.
    Composition(CompositionError),
    /// Tokens cannot be evaluated.
    Session(SessionError),
    /// A text cannot be turned into a prompt.
    Prompt(PromptError),
    /// The vocabulary cannot be used, or not express a text.
    Tokenizer(TokenizerError),
    /// An answer cannot be held to a form.
    #[cfg(feature = "constraint")]
    Grammar(crate::constraint::GrammarError),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            #[cfg(feature = "std")]
            Error::File(error) => error.fmt(f),
            Error::Model(error) => error.fmt(f),
            Error::Bundle(error) => error.fmt(f),
            Error::Composition(error) => error.fmt(f),
            Error::Session(error) => error.fmt(f),
            Error::Prompt(error) => error.fmt(f),
            Error::Tokenizer(error) => error.fmt(f),
            #[cfg(feature = "constraint")]
            Error::Grammar(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for Error {
    // Displayed as the error inside: its own source follows.
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            #[cfg(feature = "std")]
            Error::File(error) => error.source(),
            Error::Model(error) => error.source(),
            Error::Bundle(error) => error.source(),
            Error::Composition(error) => error.source(),
            Error::Session(error) => error.source(),
            Error::Prompt(error) => error.source(),
            Error::Tokenizer(error) => error.source(),
            #[cfg(feature = "constraint")]
            Error::Grammar(error) => error.source(),
        }
    }
}

#[cfg(feature = "std")]
impl From<tandem_formats::FileError> for Error {
    fn from(error: tandem_formats::FileError) -> Self {
        Error::File(error)
    }
}

impl From<ModelError> for Error {
    fn from(error: ModelError) -> Self {
        Error::Model(error)
    }
}

impl From<BundleError> for Error {
    fn from(error: BundleError) -> Self {
        Error::Bundle(error)
    }
}

impl From<CompositionError> for Error {
    fn from(error: CompositionError) -> Self {
        Error::Composition(error)
    }
}

impl From<SessionError> for Error {
    fn from(error: SessionError) -> Self {
        Error::Session(error)
    }
}

impl From<PromptError> for Error {
    fn from(error: PromptError) -> Self {
        Error::Prompt(error)
    }
}

impl From<TokenizerError> for Error {
    fn from(error: TokenizerError) -> Self {
        Error::Tokenizer(error)
    }
}

#[cfg(feature = "constraint")]
impl From<crate::constraint::GrammarError> for Error {
    fn from(error: crate::constraint::GrammarError) -> Self {
        Error::Grammar(error)
    }
}

//! What can be wrong with an adapter or a calibration.

use alloc::string::String;
use core::fmt;

use crate::GgufError;

/// Why an adapter's or calibration's file was refused.
///
/// Names are those of the file; [`Display`](fmt::Display) prints them escaped, as they are not
/// trusted.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum AdapterError {
    /// The GGUF file could not be read.
    Gguf(GgufError),
    /// The safetensors file's frame is broken: its length field, header or end.
    Safetensors {
        /// What is wrong.
        reason: &'static str,
    },
    /// A JSON text is invalid, or not of the form that it must have.
    Json {
        /// Which text.
        what: &'static str,
        /// What the JSON reader says, with line and column.
        reason: String,
    },
    /// A tensor's data does not lie where it must, directly after the last one's.
    Offsets {
        /// The tensor's name.
        name: String,
    },
    /// A name that occurs twice.
    Duplicate {
        /// The name.
        name: String,
    },
    /// A tensor of a type that adapters are not stored in.
    Type {
        /// The tensor's name.
        name: String,
        /// Its type, as the file names it.
        found: String,
    },
    /// A tensor that is no matrix, or no vector where one is wanted.
    Dimensions {
        /// The tensor's name.
        name: String,
        /// Dimensions wanted.
        wanted: usize,
        /// Dimensions found.
        found: usize,
    },
    /// Two factors that do not fit each other, or are empty.
    Ranks {
        /// The first factor's name.
        a: String,
        /// The second factor's name.
        b: String,
        /// Rows and columns of each.
        found: ((usize, usize), (usize, usize)),
    },
    /// A rank that the configuration gives otherwise.
    Rank {
        /// The module's name.
        module: String,
        /// The rank by the configuration.
        wanted: usize,
        /// The rank of its factors.
        found: usize,
    },
    /// A key of the configuration or metadata is missing or has a value that makes no sense.
    Key {
        /// The key.
        key: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The adapter uses a feature that is not supported.
    Unsupported {
        /// The key that asks for it, or its name.
        feature: String,
    },
    /// A tensor that is no part of a supported adapter or calibration.
    UnknownTensor {
        /// The tensor's name.
        name: String,
    },
    /// A tensor that must be there and is not.
    MissingTensor {
        /// The tensor's name.
        name: String,
    },
    /// Infinities or values that are no numbers, in a tensor or a scale.
    NotFinite {
        /// The tensor's or module's name.
        name: String,
    },
}

impl From<GgufError> for AdapterError {
    fn from(error: GgufError) -> Self {
        AdapterError::Gguf(error)
    }
}

impl fmt::Display for AdapterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use AdapterError::*;
        match self {
            Gguf(_) => write!(f, "the adapter's GGUF file cannot be read"),
            Safetensors { reason } => write!(f, "no valid safetensors file: {reason}"),
            Json { what, reason } => write!(f, "{what}: {}", reason.escape_debug()),
            Offsets { name } => write!(
                f,
                "tensor {name:?}: its data does not follow that of the tensor before, or is not \
                 of its shape's size"
            ),
            Duplicate { name } => write!(f, "{name:?} occurs twice"),
            Type { name, found } => write!(
                f,
                "tensor {name:?} is of type {found:?}; adapters may be F32, F16 and BF16, in GGUF \
                 files also Q8_0"
            ),
            Dimensions {
                name,
                wanted,
                found,
            } => write!(f, "tensor {name:?} has {found} dimensions, not {wanted}"),
            Ranks { a, b, found } => write!(
                f,
                "the factors {a:?} {:?} and {b:?} {:?} do not fit each other",
                found.0, found.1
            ),
            Rank {
                module,
                wanted,
                found,
            } => write!(
                f,
                "module {module:?} has factors of rank {found}, its configuration says {wanted}"
            ),
            Key { key, reason } => write!(f, "{key:?} {reason}"),
            Unsupported { feature } => write!(
                f,
                "the adapter uses {feature:?}, which is not supported; running without it would \
                 give wrong results"
            ),
            UnknownTensor { name } => write!(
                f,
                "tensor {name:?} belongs to nothing that is supported; running without it would \
                 give wrong results"
            ),
            MissingTensor { name } => write!(f, "tensor {name:?} is missing"),
            NotFinite { name } => {
                write!(f, "{name:?} holds values that are infinite or no numbers")
            }
        }
    }
}

impl core::error::Error for AdapterError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            AdapterError::Gguf(error) => Some(error),
            _ => None,
        }
    }
}

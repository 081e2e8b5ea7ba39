//! What can be wrong with an adapter on a base model, with a merge or a composition.

use alloc::string::String;
use core::fmt;

use tandem_formats::AdapterError;

/// Why adapters cannot be used with a model, merged or composed.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum CompositionError {
    /// The adapter's or calibration's file cannot be read.
    File(AdapterError),
    /// The path leads to no adapter.
    NoAdapter,
    /// The adapter's weights are a Python pickle.
    Pickle,
    /// An adapter of Apple's MLX.
    Mlx,
    /// A whole model's checkpoint, not an adapter.
    FullModel,
    /// A safetensors file instead of the folder that it is in.
    NotTheFolder,
    /// The adapter is for another architecture.
    Architecture {
        /// The adapter's.
        adapter: String,
        /// The base model's.
        base: &'static str,
    },
    /// The adapter changes something that this base model lacks, or that adapters cannot change.
    UnknownModule {
        /// The module or tensor, as the file names it.
        name: String,
    },
    /// Factors of another shape than the base's weights.
    Shape {
        /// The module or tensor.
        name: String,
        /// Outputs and inputs wanted.
        wanted: (usize, usize),
        /// Outputs and inputs found.
        found: (usize, usize),
    },
    /// The merge needs factors of equal ranks.
    Ranks {
        /// The base's tensor.
        name: String,
        /// Two ranks that differ.
        found: (usize, usize),
    },
    /// An option makes no sense, by itself or for these adapters.
    Option {
        /// What is wrong.
        reason: &'static str,
    },
    /// The calibration lacks what its kind needs.
    Calibration {
        /// The module.
        name: String,
        /// What is missing or does not fit.
        reason: &'static str,
    },
    /// A result that is infinite or no number.
    NotFinite {
        /// The base's tensor.
        name: String,
    },
}

impl From<AdapterError> for CompositionError {
    fn from(error: AdapterError) -> Self {
        CompositionError::File(error)
    }
}

impl fmt::Display for CompositionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use CompositionError::*;
        match self {
            File(error) => error.fmt(f),
            Mlx => f.write_str(
                "it is an adapter of MLX (adapters.safetensors, lora_a and lora_b), which is not read: \
                 convert it to PEFT's form",
            ),
            FullModel => f.write_str(
                "it is a whole model's checkpoint, not an adapter: there is no adapter_model.safetensors",
            ),
            NotTheFolder => f.write_str(
                "it is a safetensors file: name the folder that it is in, with its adapter_config.json",
            ),
            NoAdapter => f.write_str("it is neither a PEFT directory nor a GGUF file"),
            Pickle => {
                f.write_str("its weights are a Python pickle; save the adapter as safetensors")
            }
            Architecture { adapter, base } => write!(
                f,
                "the adapter is for the architecture {adapter:?}, the model is of {base:?}"
            ),
            UnknownModule { name } => write!(
                f,
                "the adapter changes {name:?}, which the model lacks or which adapters cannot \
                 change; running without it would give wrong results"
            ),
            Shape {
                name,
                wanted,
                found,
            } => write!(
                f,
                "{name:?} maps {} inputs to {} outputs in the adapter, {} to {} in the model",
                found.1, found.0, wanted.1, wanted.0
            ),
            Ranks { name, found } => write!(
                f,
                "{name:?} has factors of ranks {} and {}; this merge needs equal ranks (`cat` and \
                 `svd` do not)",
                found.0, found.1
            ),
            Option { reason } => f.write_str(reason),
            Calibration { name, reason } => {
                write!(f, "the calibration of {name:?} {reason}")
            }
            NotFinite { name } => write!(f, "{name:?} gets values that are infinite or no numbers"),
        }
    }
}

impl core::error::Error for CompositionError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            // Displayed as it is: its own source follows.
            CompositionError::File(error) => error.source(),
            _ => None,
        }
    }
}

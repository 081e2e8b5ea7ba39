//! GGUF versions 2 and 3: the container of ggml's models.
//!
//! A file is, all little-endian: `GGUF`, the version (u32), the number of tensors and of metadata
//! entries (u64 each); the metadata entries (key, value type, value); the tensors' entries (name,
//! number of dimensions, dimensions, type, data offset); padding to the alignment; the tensors'
//! data, each at a multiple of the alignment. Strings are a length (u64) and as many bytes.
//! Versions 2 and 3 differ only in that version 3 allows big-endian files, which are not read here.
//!
//! The format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod cursor;
mod error;
pub mod limits;
mod read;
mod tensor;
mod value;
mod write;

pub use error::GgufError;
pub use read::Gguf;
pub use tensor::Tensor;
pub use value::{Array, Value, ValueType};
#[cfg(feature = "std")]
pub use write::DataWriter;
pub use write::{Element, Writer};

/// The metadata key of the alignment of the tensor data, in bytes, a U32.
pub const ALIGNMENT_KEY: &str = "general.alignment";
/// The alignment of files that do not give one, in bytes.
pub const DEFAULT_ALIGNMENT: u32 = 32;

const MAGIC: [u8; 4] = *b"GGUF";

/// The alignment that a `general.alignment` of `value` asks for.
fn check_alignment(value: &Value<'_>) -> Result<usize, GgufError> {
    match *value {
        Value::U32(found) => usize::try_from(found)
            .ok()
            .filter(|a| a.is_power_of_two())
            .ok_or(GgufError::Alignment { found }),
        _ => Err(GgufError::AlignmentType {
            found: value.value_type(),
        }),
    }
}

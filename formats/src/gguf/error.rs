//! Everything that can be wrong with a GGUF file.

use alloc::string::String;
use core::fmt;

use super::value::ValueType;
use tandem_kernels::DType;

/// Why a GGUF file was refused, by the reader or by the writer.
///
/// Offsets are in bytes from the start of the file (of the part, in a split model). Names and keys
/// are those of the file; [`Display`](fmt::Display) prints them escaped, as they are not trusted.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum GgufError {
    /// The first four bytes are not `GGUF`.
    Magic {
        /// The bytes found.
        found: [u8; 4],
    },
    /// The version field reads as a known version once its bytes are swapped: a big-endian file.
    BigEndian,
    /// GGUF version 1, which counted with 32 bits and is no longer written by anything.
    Version1,
    /// A version other than 2 or 3.
    Version {
        /// The version found.
        found: u32,
    },
    /// The file ends before something that it announces.
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where it begins.
        offset: usize,
        /// Bytes it needs from there, at least.
        needed: u64,
        /// Bytes that are left from there.
        left: usize,
    },
    /// A count or length above the reader's limit, see [`limits`](super::limits).
    TooMany {
        /// What is counted.
        what: &'static str,
        /// Where the count stands.
        offset: usize,
        /// The count found.
        found: u64,
        /// The largest count accepted.
        max: u64,
    },
    /// A key, tensor name or string value that is not UTF-8.
    Utf8 {
        /// What was being read.
        what: &'static str,
        /// Where its first invalid byte stands.
        offset: usize,
    },
    /// A key or tensor name of no characters.
    EmptyName {
        /// What was being read.
        what: &'static str,
        /// Where it stands.
        offset: usize,
    },
    /// A metadata value, or the elements of an array, of a type GGUF does not have.
    UnknownValueType {
        /// The value's key.
        key: String,
        /// Where the type's number stands.
        offset: usize,
        /// The number found.
        found: u32,
    },
    /// An array of arrays. GGUF allows them, nothing writes them, and this reader refuses them.
    NestedArray {
        /// The value's key.
        key: String,
        /// Where the element type's number stands.
        offset: usize,
    },
    /// A boolean whose byte is neither 0 nor 1.
    Bool {
        /// The value's key.
        key: String,
        /// Where the byte stands.
        offset: usize,
        /// The byte found.
        found: u8,
    },
    /// Two metadata entries with one key.
    DuplicateKey {
        /// The key.
        key: String,
        /// Where its later entry stands.
        offset: usize,
    },
    /// `general.alignment` is not a U32.
    AlignmentType {
        /// The type found.
        found: ValueType,
    },
    /// `general.alignment` is zero or not a power of two.
    Alignment {
        /// The alignment found, in bytes.
        found: u32,
    },
    /// A tensor of no dimensions or of more than four.
    TensorDims {
        /// The tensor's name.
        name: String,
        /// Where its number of dimensions stands.
        offset: usize,
        /// The number found.
        found: u64,
    },
    /// A tensor with a dimension of zero.
    ZeroDim {
        /// The tensor's name.
        name: String,
        /// Where the dimension stands.
        offset: usize,
    },
    /// A tensor whose number of elements or bytes overflows.
    TensorSize {
        /// The tensor's name.
        name: String,
        /// Where its dimensions stand.
        offset: usize,
    },
    /// A tensor of a type that is unknown or retired.
    UnknownTensorType {
        /// The tensor's name.
        name: String,
        /// Where the type's number stands.
        offset: usize,
        /// The number found.
        found: u32,
    },
    /// A tensor whose rows are not a whole number of its type's blocks.
    PartialBlock {
        /// The tensor's name.
        name: String,
        /// Where its first dimension stands.
        offset: usize,
        /// The tensor's type.
        dtype: DType,
        /// Elements in a row.
        n_cols: usize,
    },
    /// Two tensors with one name, in one file or in two parts of a split model.
    DuplicateTensor {
        /// The name.
        name: String,
        /// Where the later tensor's entry stands; 0 where the two are in different parts.
        offset: usize,
    },
    /// A tensor whose data does not begin at a multiple of the alignment.
    Misaligned {
        /// The tensor's name.
        name: String,
        /// Where its data would begin, relative to the start of the tensor data.
        data_offset: u64,
        /// The file's alignment, in bytes.
        alignment: usize,
    },
    /// A tensor whose data reaches past the end of the file.
    OutOfFile {
        /// The tensor's name.
        name: String,
        /// Where its data would begin, relative to the start of the tensor data.
        data_offset: u64,
        /// Bytes of its data.
        n_bytes: usize,
        /// Bytes of tensor data that the file has.
        available: usize,
    },
    /// Two tensors that share bytes.
    Overlap {
        /// The tensor that begins first.
        first: String,
        /// The one that begins before the first ends.
        second: String,
        /// Where the second begins.
        offset: usize,
    },
    /// A string that its reader needs and that is not UTF-8.
    ValueUtf8 {
        /// The key.
        key: String,
    },
    /// A metadata value of another type than its reader needs.
    WrongType {
        /// The key.
        key: String,
        /// What was asked for.
        wanted: &'static str,
        /// The type in the file.
        found: ValueType,
    },
    /// An integer that does not fit the type its reader needs.
    OutOfRange {
        /// The key.
        key: String,
        /// What was asked for.
        wanted: &'static str,
        /// The value in the file.
        found: i128,
    },
    /// A part of a split model whose `split.*` metadata does not agree with the set of parts.
    Split {
        /// The part, counted from 0.
        part: usize,
        /// The key that disagrees.
        key: &'static str,
        /// The value that the other parts call for.
        wanted: u64,
        /// The value found, `None` where the key is absent.
        found: Option<u64>,
    },
    /// Raw array bytes that are longer than their elements.
    ArraySize {
        /// Bytes given.
        found: usize,
        /// Bytes that the elements take.
        wanted: usize,
    },
    /// Data given to the writer for another tensor than the one that is due.
    TensorOrder {
        /// The tensor that is due, `None` when all are written.
        wanted: Option<String>,
        /// The one given.
        found: String,
    },
    /// Data given to the writer that is longer or shorter than its tensor.
    DataSize {
        /// The tensor's name.
        name: String,
        /// Bytes that its dimensions and type call for.
        wanted: usize,
        /// Bytes given.
        found: usize,
    },
}

impl fmt::Display for GgufError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use GgufError::*;
        match self {
            Magic { found } => write!(
                f,
                "not a GGUF file: it begins with \"{}\" instead of \"GGUF\"",
                found.escape_ascii()
            ),
            BigEndian => f.write_str("a big-endian GGUF file; only little-endian ones are read"),
            Version1 => f.write_str("GGUF version 1; versions 2 and 3 are read"),
            Version { found } => write!(f, "GGUF version {found}; versions 2 and 3 are read"),
            Truncated {
                what,
                offset,
                needed,
                left,
            } => write!(
                f,
                "file truncated: {what} at offset {offset} needs at least {needed} bytes, {left} are left"
            ),
            TooMany {
                what,
                offset,
                found,
                max,
            } => write!(
                f,
                "{what} at offset {offset} is {found}; at most {max} is accepted"
            ),
            Utf8 { what, offset } => write!(f, "{what} is not UTF-8 at offset {offset}"),
            EmptyName { what, offset } => write!(f, "{what} at offset {offset} is empty"),
            UnknownValueType { key, offset, found } => write!(
                f,
                "key {key:?} has unknown value type {found} at offset {offset}"
            ),
            NestedArray { key, offset } => write!(
                f,
                "key {key:?} is an array of arrays at offset {offset}, which is not supported"
            ),
            Bool { key, offset, found } => write!(
                f,
                "key {key:?} has a boolean of byte {found} at offset {offset}; 0 and 1 are valid"
            ),
            DuplicateKey { key, offset } => {
                write!(f, "key {key:?} occurs a second time at offset {offset}")
            }
            AlignmentType { found } => {
                write!(f, "general.alignment has type {found}; it must be u32")
            }
            Alignment { found } => {
                write!(f, "general.alignment is {found}; it must be a power of two")
            }
            TensorDims {
                name,
                offset,
                found,
            } => write!(
                f,
                "tensor {name:?} has {found} dimensions at offset {offset}; 1 to 4 are valid"
            ),
            ZeroDim { name, offset } => {
                write!(f, "tensor {name:?} has a zero dimension at offset {offset}")
            }
            TensorSize { name, offset } => write!(
                f,
                "tensor {name:?} has dimensions at offset {offset} whose product overflows"
            ),
            UnknownTensorType {
                name,
                offset,
                found,
            } => write!(
                f,
                "tensor {name:?} has unknown type {found} at offset {offset}"
            ),
            PartialBlock {
                name,
                offset,
                dtype,
                n_cols,
            } => write!(
                f,
                "tensor {name:?} has rows of {n_cols} elements at offset {offset}, not a whole number of {dtype} blocks of {}",
                dtype.block_len()
            ),
            DuplicateTensor { name, offset } => {
                write!(f, "tensor {name:?} occurs a second time")?;
                if *offset != 0 {
                    write!(f, " at offset {offset}")?;
                }
                Ok(())
            }
            Misaligned {
                name,
                data_offset,
                alignment,
            } => write!(
                f,
                "tensor {name:?} has data offset {data_offset}, not a multiple of the alignment {alignment}"
            ),
            OutOfFile {
                name,
                data_offset,
                n_bytes,
                available,
            } => write!(
                f,
                "tensor {name:?} has {n_bytes} bytes at data offset {data_offset}, but the file has {available} bytes of tensor data"
            ),
            Overlap {
                first,
                second,
                offset,
            } => write!(
                f,
                "tensors {first:?} and {second:?} overlap at offset {offset}"
            ),
            ValueUtf8 { key } => write!(f, "the string of key {key:?} is not UTF-8"),
            WrongType { key, wanted, found } => {
                write!(f, "key {key:?} has type {found}; {wanted} is needed")
            }
            OutOfRange { key, wanted, found } => {
                write!(f, "key {key:?} is {found}, which does not fit {wanted}")
            }
            Split {
                part,
                key,
                wanted,
                found,
            } => {
                write!(f, "part {} of the split model has ", part.saturating_add(1))?;
                match found {
                    Some(v) => write!(f, "{key} = {v}")?,
                    None => write!(f, "no {key}")?,
                }
                write!(f, "; {wanted} is needed")
            }
            ArraySize { found, wanted } => {
                write!(f, "array of {found} bytes, but its elements take {wanted}")
            }
            TensorOrder { wanted, found } => match wanted {
                Some(w) => write!(f, "data of tensor {found:?} given where {w:?} is due"),
                None => write!(f, "data of tensor {found:?} given after the last tensor"),
            },
            DataSize {
                name,
                wanted,
                found,
            } => write!(
                f,
                "tensor {name:?} takes {wanted} bytes of data, {found} were given"
            ),
        }
    }
}

impl core::error::Error for GgufError {}

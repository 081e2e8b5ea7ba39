//! The writer.

use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::error::GgufError;
use super::limits;
use super::tensor::Shape;
use super::value::{Array, Value, ValueType};
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, check_alignment};
use tandem_kernels::DType;

/// Bytes before the first metadata entry: magic, version and the two counts.
const HEADER_BYTES: usize = 4 + 4 + 8 + 8;
const VERSION: u32 = 3;

/// Writes a GGUF file of version 3: first the metadata and the tensors' names and shapes are
/// declared, then the data is streamed (`Writer::start`, with the feature `std`) or put together
/// in memory ([`Writer::to_vec`]).
///
/// ```
/// use tandem_formats::{DType, Gguf, Value, Writer};
///
/// let mut w = Writer::new();
/// w.add("general.architecture", Value::Str("llama"))?;
/// w.add_array("example.numbers", &[1.0f32, 2.0])?;
/// w.add_tensor("weight", &[3, 2], DType::I8)?;
/// let file = w.to_vec(&[&[1, 2, 3, 4, 5, 6]])?;
/// assert_eq!(Gguf::parse(&file)?.tensors()[0].shape(), [3, 2]);
/// # Ok::<(), tandem_formats::GgufError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Writer {
    // The encoded metadata entries.
    metadata: Vec<u8>,
    keys: BTreeSet<String>,
    alignment: usize,
    tensors: Vec<Declared>,
    names: BTreeSet<String>,
}

#[derive(Clone, Debug)]
struct Declared {
    name: String,
    dtype: DType,
    shape: Shape,
}

impl Default for Writer {
    fn default() -> Self {
        Writer::new()
    }
}

impl Writer {
    /// A file without metadata and tensors.
    pub fn new() -> Writer {
        Writer {
            metadata: Vec::new(),
            keys: BTreeSet::new(),
            alignment: DEFAULT_ALIGNMENT as usize,
            tensors: Vec::new(),
            names: BTreeSet::new(),
        }
    }

    /// Adds a metadata entry; a value of another file is copied as it is there, arrays included.
    /// `general.alignment` sets the alignment of the tensor data.
    ///
    /// # Errors
    /// As the reader's for such an entry: [`GgufError::DuplicateKey`], [`GgufError::EmptyName`],
    /// [`GgufError::TooMany`] above a [limit](super::limits), [`GgufError::Alignment`] and
    /// [`GgufError::AlignmentType`]. The file is then as before.
    pub fn add(&mut self, key: &str, value: Value<'_>) -> Result<(), GgufError> {
        let offset = self.check_key(key)?;
        let n_bytes = match value {
            Value::Str(s) => s.len(),
            Value::Bytes(bytes) => bytes.len(),
            _ => 0,
        };
        check_length("string value", n_bytes, limits::MAX_STRING_BYTES, offset)?;
        if key == ALIGNMENT_KEY {
            self.alignment = check_alignment(&value)?;
        }
        self.put_key(key, value.value_type());
        let out = &mut self.metadata;
        match value {
            Value::U8(v) => v.put(out),
            Value::I8(v) => v.put(out),
            Value::U16(v) => v.put(out),
            Value::I16(v) => v.put(out),
            Value::U32(v) => v.put(out),
            Value::I32(v) => v.put(out),
            Value::F32(v) => v.put(out),
            Value::Bool(v) => v.put(out),
            Value::Str(s) => put_str(out, s.as_bytes()),
            Value::Bytes(bytes) => put_str(out, bytes),
            Value::U64(v) => v.put(out),
            Value::I64(v) => v.put(out),
            Value::F64(v) => v.put(out),
            Value::Array(a) => {
                (a.element_type() as u32).put(out);
                (a.len() as u64).put(out);
                out.extend_from_slice(a.as_bytes());
            }
        }
        Ok(())
    }

    /// Adds an array of numbers or booleans.
    ///
    /// # Errors
    /// As [`Writer::add`].
    pub fn add_array<T: Element>(&mut self, key: &str, values: &[T]) -> Result<(), GgufError> {
        let mut bytes = Vec::with_capacity(size_of_val(values));
        for v in values {
            v.put(&mut bytes);
        }
        let array = Array::from_bytes(T::TYPE, values.len(), &bytes)?;
        self.add(key, Value::Array(array))
    }

    /// Adds an array of strings, which need not be UTF-8.
    ///
    /// # Errors
    /// As [`Writer::add`].
    pub fn add_strings<S: AsRef<[u8]>>(
        &mut self,
        key: &str,
        values: impl IntoIterator<Item = S>,
    ) -> Result<(), GgufError> {
        let mut bytes = Vec::new();
        let mut len = 0;
        for v in values {
            put_str(&mut bytes, v.as_ref());
            len += 1;
        }
        let array = Array::from_bytes(ValueType::Str, len, &bytes)?;
        self.add(key, Value::Array(array))
    }

    /// Declares the next tensor. `shape` is in ggml's order, as in
    /// [`Tensor::shape`](super::Tensor::shape).
    ///
    /// # Errors
    /// As the reader's for such a tensor: [`GgufError::DuplicateTensor`], [`GgufError::TensorDims`],
    /// [`GgufError::ZeroDim`], [`GgufError::PartialBlock`], [`GgufError::TensorSize`],
    /// [`GgufError::EmptyName`], [`GgufError::TooMany`]. The file is then as before. The offsets in
    /// them are 0, as nothing has a place in the file yet.
    pub fn add_tensor(
        &mut self,
        name: &str,
        shape: &[usize],
        dtype: DType,
    ) -> Result<(), GgufError> {
        check_name("tensor name", name, limits::MAX_NAME_BYTES, 0)?;
        let count = self.tensors.len() + 1;
        check_length("number of tensors", count, limits::MAX_TENSORS, 0)?;
        let dims: Vec<u64> = shape.iter().map(|d| *d as u64).collect();
        let shape = Shape::new(name, &dims, dtype, 0)?;
        if !self.names.insert(name.to_string()) {
            let name = name.to_string();
            return Err(GgufError::DuplicateTensor { name, offset: 0 });
        }
        self.tensors.push(Declared {
            name: name.to_string(),
            dtype,
            shape,
        });
        Ok(())
    }

    /// Puts the file together in memory; `data` holds each tensor's bytes, in the order of their
    /// declaration.
    ///
    /// # Errors
    /// [`GgufError::DataSize`] where a tensor's bytes are missing, more or fewer than its shape and
    /// type call for; [`GgufError::TensorOrder`] for bytes after the last tensor;
    /// [`GgufError::TensorSize`] where all tensors together overflow an offset.
    pub fn to_vec(&self, data: &[&[u8]]) -> Result<Vec<u8>, GgufError> {
        if data.len() > self.tensors.len() {
            return Err(GgufError::TensorOrder {
                wanted: None,
                found: String::new(),
            });
        }
        let mut out = self.header()?;
        for (i, t) in self.tensors.iter().enumerate() {
            let bytes = data.get(i).copied().unwrap_or_default();
            if bytes.len() != t.shape.n_bytes {
                return Err(t.data_size(bytes.len()));
            }
            out.extend_from_slice(bytes);
            // The header ends at a multiple of the alignment, so that this aligns in the file.
            out.resize(out.len().next_multiple_of(self.alignment), 0);
        }
        Ok(out)
    }

    /// Everything before the tensors' data, padded to the alignment if there are tensors.
    pub(crate) fn header(&self) -> Result<Vec<u8>, GgufError> {
        let mut out = Vec::with_capacity(HEADER_BYTES + self.metadata.len());
        out.extend_from_slice(&MAGIC);
        VERSION.put(&mut out);
        (self.tensors.len() as u64).put(&mut out);
        (self.keys.len() as u64).put(&mut out);
        out.extend_from_slice(&self.metadata);
        let mut data_offset = 0usize;
        for t in &self.tensors {
            put_str(&mut out, t.name.as_bytes());
            (t.shape.dims().len() as u32).put(&mut out);
            for dim in t.shape.dims() {
                (*dim as u64).put(&mut out);
            }
            (t.dtype as u32).put(&mut out);
            (data_offset as u64).put(&mut out);
            data_offset = data_offset
                .checked_add(t.shape.n_bytes)
                .and_then(|end| end.checked_next_multiple_of(self.alignment))
                .ok_or_else(|| GgufError::TensorSize {
                    name: t.name.clone(),
                    offset: out.len(),
                })?;
        }
        if !self.tensors.is_empty() {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
        }
        Ok(out)
    }

    /// Checks a new key and returns where its entry will stand.
    fn check_key(&self, key: &str) -> Result<usize, GgufError> {
        let offset = HEADER_BYTES + self.metadata.len();
        check_name("key", key, limits::MAX_KEY_BYTES, offset)?;
        let count = self.keys.len() + 1;
        check_length("number of keys", count, limits::MAX_KEYS, offset)?;
        if self.keys.contains(key) {
            let key = key.to_string();
            return Err(GgufError::DuplicateKey { key, offset });
        }
        Ok(offset)
    }

    fn put_key(&mut self, key: &str, ty: ValueType) {
        self.keys.insert(key.to_string());
        put_str(&mut self.metadata, key.as_bytes());
        (ty as u32).put(&mut self.metadata);
    }
}

impl Declared {
    fn data_size(&self, found: usize) -> GgufError {
        GgufError::DataSize {
            name: self.name.clone(),
            wanted: self.shape.n_bytes,
            found,
        }
    }
}

fn check_name(what: &'static str, name: &str, max: usize, offset: usize) -> Result<(), GgufError> {
    if name.is_empty() {
        return Err(GgufError::EmptyName { what, offset });
    }
    check_length(what, name.len(), max, offset)
}

fn check_length(
    what: &'static str,
    found: usize,
    max: usize,
    offset: usize,
) -> Result<(), GgufError> {
    if found > max {
        return Err(GgufError::TooMany {
            what,
            offset,
            found: found as u64,
            max: max as u64,
        });
    }
    Ok(())
}

fn put_str(out: &mut Vec<u8>, s: &[u8]) {
    (s.len() as u64).put(out);
    out.extend_from_slice(s);
}

mod sealed {
    pub trait Put {
        /// Appends the value as GGUF stores it.
        fn put(&self, out: &mut alloc::vec::Vec<u8>);
    }
}
use sealed::Put;

/// The Rust types of the fixed-size value types, for [`Writer::add_array`].
pub trait Element: Put {
    /// The value type of `Self`.
    const TYPE: ValueType;
}

impl Put for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl Element for bool {
    const TYPE: ValueType = ValueType::Bool;
}

macro_rules! element {
    ($($rust:ty => $value_type:ident),*) => {$(
        impl Put for $rust {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        }
        impl Element for $rust {
            const TYPE: ValueType = ValueType::$value_type;
        }
    )*};
}
element!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64,
    f32 => F32, f64 => F64);

#[cfg(feature = "std")]
pub use stream::DataWriter;

#[cfg(feature = "std")]
mod stream {
    use std::io;

    use super::{GgufError, String, Writer};

    impl Writer {
        /// Writes everything before the tensors' data to `out` and returns the writer of the data,
        /// of which nothing is kept in memory. `out` is written in pieces as small as the caller's:
        /// buffer it.
        ///
        /// # Errors
        /// Those of `out`, and [`GgufError::TensorSize`] (as
        /// [`InvalidInput`](io::ErrorKind::InvalidInput)) where all tensors together overflow.
        pub fn start<W: io::Write>(self, mut out: W) -> io::Result<DataWriter<W>> {
            out.write_all(&self.header().map_err(invalid)?)?;
            Ok(DataWriter {
                file: self,
                out,
                tensor: 0,
                n_written: 0,
            })
        }
    }

    /// Writes the tensors' data, one tensor after the other; made by [`Writer::start`].
    #[derive(Debug)]
    pub struct DataWriter<W> {
        file: Writer,
        out: W,
        // The tensor that is due, and how many of its bytes are written.
        tensor: usize,
        n_written: usize,
    }

    impl<W: io::Write> DataWriter<W> {
        /// Writes the next bytes of tensor `name`, all of them or any part: a row, a chunk. After
        /// its last byte the next tensor in the order of their declaration is due.
        ///
        /// # Errors
        /// Those of the output; as [`InvalidInput`](io::ErrorKind::InvalidInput)
        /// [`GgufError::TensorOrder`] where another tensor is due, [`GgufError::DataSize`] for more
        /// bytes than the tensor has. Nothing is written then.
        pub fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
            let due = self.file.tensors.get(self.tensor);
            let Some(tensor) = due.filter(|t| t.name == name) else {
                return Err(invalid(GgufError::TensorOrder {
                    wanted: due.map(|t| t.name.clone()),
                    found: String::from(name),
                }));
            };
            let n_written = self.n_written.saturating_add(bytes.len());
            if n_written > tensor.shape.n_bytes {
                return Err(invalid(tensor.data_size(n_written)));
            }
            self.out.write_all(bytes)?;
            self.n_written = n_written;
            if n_written == tensor.shape.n_bytes {
                let mut n_padding = n_written.next_multiple_of(self.file.alignment) - n_written;
                while n_padding > 0 {
                    let n = n_padding.min(ZEROS.len());
                    self.out.write_all(ZEROS.get(..n).unwrap_or(&ZEROS))?;
                    n_padding -= n;
                }
                self.tensor += 1;
                self.n_written = 0;
            }
            Ok(())
        }

        /// Flushes and returns the output.
        ///
        /// # Errors
        /// Those of the output; [`GgufError::DataSize`] (as
        /// [`InvalidInput`](io::ErrorKind::InvalidInput)) for the first tensor that is not complete.
        pub fn finish(mut self) -> io::Result<W> {
            if let Some(tensor) = self.file.tensors.get(self.tensor) {
                return Err(invalid(tensor.data_size(self.n_written)));
            }
            self.out.flush()?;
            Ok(self.out)
        }
    }

    const ZEROS: [u8; 64] = [0; 64];

    fn invalid(e: GgufError) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidInput, e)
    }
}

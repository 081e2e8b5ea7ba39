//! The reader.

use alloc::string::ToString;
use alloc::vec::Vec;

use super::cursor::Cursor;
use super::error::GgufError;
use super::limits;
use super::tensor::{Shape, Tensor};
use super::value::{Array, Value, read_value_type};
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, check_alignment};
use tandem_kernels::DType;

/// A GGUF file, read in place: names, strings, arrays and tensor data borrow the file's bytes;
/// only the two lists are allocated.
///
/// What exists is valid: every value decodes, every tensor's data is all there, names are unique,
/// and no two tensors share bytes.
#[derive(Clone, Debug)]
pub struct Gguf<'a> {
    version: u32,
    alignment: usize,
    metadata: Vec<(&'a str, Value<'a>)>,
    tensors: Vec<Tensor<'a>>,
    // Indices into `metadata` and `tensors`, sorted by key and by name.
    by_key: Vec<u32>,
    by_name: Vec<u32>,
}

/// A tensor's entry, before it is known where the data begins.
struct Entry<'a> {
    name: &'a str,
    dtype: DType,
    shape: Shape,
    // Relative to the start of the tensor data.
    data_offset: u64,
    // Of the entry itself, in the file.
    offset: usize,
}

impl<'a> Gguf<'a> {
    /// Reads a whole file. Takes time in the order of the metadata; tensor data is not touched.
    ///
    /// A part of a split model parses on its own; [`Gguf::join`] makes them one.
    ///
    /// # Errors
    /// A [`GgufError`] for whatever the file has wrong. Allocations are bounded by the size of
    /// `bytes`, whatever the counts in it say.
    pub fn parse(bytes: &'a [u8]) -> Result<Gguf<'a>, GgufError> {
        let mut c = Cursor::new(bytes);
        let version = read_version(&mut c)?;
        let tensors_offset = c.pos();
        let n_tensors = c.u64("number of tensors")?;
        // A key of one byte and a value of one; then a name of one byte and one dimension.
        let n_keys = c.count("number of keys", limits::MAX_KEYS, 8 + 1 + 4 + 1)?;
        let n_tensors = c.check_count(
            "number of tensors",
            tensors_offset,
            n_tensors,
            limits::MAX_TENSORS,
            8 + 1 + 4 + 8 + 4 + 8,
        )?;

        let mut metadata = Vec::with_capacity(n_keys);
        let mut offsets = Vec::with_capacity(n_keys);
        for _ in 0..n_keys {
            offsets.push(c.pos());
            let key = c.name("key", limits::MAX_KEY_BYTES)?;
            let ty = read_value_type(&mut c, key)?;
            metadata.push((key, Value::read(&mut c, key, ty)?));
        }
        let by_key = sorted_index(
            &metadata,
            |m| m.0,
            |key, i| GgufError::DuplicateKey {
                key: key.to_string(),
                offset: offsets.get(i).copied().unwrap_or_default(),
            },
        )?;

        let mut file = Gguf {
            version,
            alignment: DEFAULT_ALIGNMENT as usize,
            metadata,
            tensors: Vec::new(),
            by_key,
            by_name: Vec::new(),
        };
        if let Some(value) = file.get(ALIGNMENT_KEY) {
            file.alignment = check_alignment(value)?;
        }

        let mut entries = Vec::with_capacity(n_tensors);
        for _ in 0..n_tensors {
            entries.push(read_entry(&mut c)?);
        }
        file.by_name = sorted_index(
            &entries,
            |e| e.name,
            |name, i| GgufError::DuplicateTensor {
                name: name.to_string(),
                offset: entries.get(i).map(|e| e.offset).unwrap_or_default(),
            },
        )?;
        // A file without tensors may end before the data would begin.
        let data_start = c.pos().checked_next_multiple_of(file.alignment);
        let data = data_start.and_then(|s| bytes.get(s..)).unwrap_or_default();
        file.tensors = place(&entries, data, file.alignment)?;
        check_overlap(&entries, data_start.unwrap_or(bytes.len()))?;
        Ok(file)
    }

    /// Makes one model of the parts of a split one, in order: the metadata of the first, without
    /// its `split.*` keys, and the tensors of all. A model that is not split is a single part.
    ///
    /// # Errors
    /// [`GgufError::Split`] unless each part has the `split.no`, `split.count` and
    /// `split.tensors.count` of its place; [`GgufError::DuplicateTensor`] for a name that two parts
    /// have; [`GgufError::TooMany`]. No parts at all are [`GgufError::Truncated`].
    pub fn join(parts: Vec<Gguf<'a>>) -> Result<Gguf<'a>, GgufError> {
        let n_parts = parts.len() as u64;
        let n_tensors = parts.iter().map(|p| p.tensors.len() as u64).sum::<u64>();
        if n_tensors > limits::MAX_TENSORS as u64 {
            return Err(GgufError::TooMany {
                what: "number of tensors of all parts",
                offset: 0,
                found: n_tensors,
                max: limits::MAX_TENSORS as u64,
            });
        }
        for (part, file) in parts.iter().enumerate() {
            for (key, wanted) in [
                ("split.no", part as u64),
                ("split.count", n_parts),
                ("split.tensors.count", n_tensors),
            ] {
                let found = file.get_u64(key)?;
                // A model that is not split need not say so.
                if found != Some(wanted) && !(n_parts == 1 && found.is_none()) {
                    return Err(GgufError::Split {
                        part,
                        key,
                        wanted,
                        found,
                    });
                }
            }
        }
        let mut parts = parts.into_iter();
        let mut all = parts.next().ok_or(GgufError::Truncated {
            what: "split model",
            offset: 0,
            needed: 1,
            left: 0,
        })?;
        for part in parts {
            all.tensors.extend(part.tensors);
        }
        // These describe the one file, not the model; a copy with them would claim to be a part.
        all.metadata.retain(|(key, _)| !key.starts_with("split."));
        all.by_key = sorted_index(
            &all.metadata,
            |m| m.0,
            |key, _| GgufError::DuplicateKey {
                key: key.to_string(),
                offset: 0,
            },
        )?;
        all.by_name = sorted_index(
            &all.tensors,
            |t| t.name,
            |name, _| GgufError::DuplicateTensor {
                name: name.to_string(),
                offset: 0,
            },
        )?;
        Ok(all)
    }

    /// The format's version: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The alignment of the tensor data in the file, in bytes: a power of two.
    pub fn alignment(&self) -> usize {
        self.alignment
    }

    /// Keys and values in the file's order.
    pub fn metadata(&self) -> impl ExactSizeIterator<Item = (&'a str, &Value<'a>)> {
        self.metadata.iter().map(|(k, v)| (*k, v))
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value<'a>> {
        find(&self.by_key, &self.metadata, |m| m.0, key).map(|m| &m.1)
    }

    /// The tensors in the file's order.
    pub fn tensors(&self) -> &[Tensor<'a>] {
        &self.tensors
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&Tensor<'a>> {
        find(&self.by_name, &self.tensors, |t| t.name, name)
    }

    /// The value of `key`, of any integer type; `None` where the file has no such key.
    ///
    /// # Errors
    /// [`GgufError::WrongType`] for other types, [`GgufError::OutOfRange`] where it does not fit.
    pub fn get_u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.integer(key, "u32")
    }

    /// As [`Gguf::get_u32`].
    ///
    /// # Errors
    /// As [`Gguf::get_u32`].
    pub fn get_i32(&self, key: &str) -> Result<Option<i32>, GgufError> {
        self.integer(key, "i32")
    }

    /// As [`Gguf::get_u32`].
    ///
    /// # Errors
    /// As [`Gguf::get_u32`].
    pub fn get_u64(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.integer(key, "u64")
    }

    /// The value of `key`, of type F32 or F64 (rounded); `None` where the file has no such key.
    ///
    /// # Errors
    /// [`GgufError::WrongType`] for other types.
    pub fn get_f32(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.typed(key, "f32 or f64", Value::as_f32)
    }

    /// The value of `key`, a boolean; `None` where the file has no such key.
    ///
    /// # Errors
    /// [`GgufError::WrongType`] for other types.
    pub fn get_bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.typed(key, "bool", |v| match v {
            Value::Bool(b) => Some(*b),
            _ => None,
        })
    }

    /// The value of `key`, a string; `None` where the file has no such key.
    ///
    /// # Errors
    /// [`GgufError::WrongType`] for other types, [`GgufError::ValueUtf8`].
    pub fn get_str(&self, key: &str) -> Result<Option<&'a str>, GgufError> {
        if let Some(Value::Bytes(_)) = self.get(key) {
            return Err(GgufError::ValueUtf8 { key: key.into() });
        }
        self.typed(key, "str", |v| match v {
            Value::Str(s) => Some(*s),
            _ => None,
        })
    }

    /// The value of `key`, an array; `None` where the file has no such key.
    ///
    /// # Errors
    /// [`GgufError::WrongType`] for other types.
    pub fn get_array(&self, key: &str) -> Result<Option<&Array<'a>>, GgufError> {
        self.typed(key, "array", |v| match v {
            Value::Array(a) => Some(a),
            _ => None,
        })
    }

    fn typed<'s, T>(
        &'s self,
        key: &str,
        wanted: &'static str,
        convert: impl FnOnce(&'s Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match convert(value) {
            Some(v) => Ok(Some(v)),
            None => Err(GgufError::WrongType {
                key: key.to_string(),
                wanted,
                found: value.value_type(),
            }),
        }
    }

    fn integer<T: TryFrom<i128>>(
        &self,
        key: &str,
        wanted: &'static str,
    ) -> Result<Option<T>, GgufError> {
        let Some(found) = self.typed(key, wanted, Value::as_integer)? else {
            return Ok(None);
        };
        match T::try_from(found) {
            Ok(v) => Ok(Some(v)),
            Err(_) => Err(GgufError::OutOfRange {
                key: key.to_string(),
                wanted,
                found,
            }),
        }
    }
}

fn read_version(c: &mut Cursor<'_>) -> Result<u32, GgufError> {
    let found = c.array("magic")?;
    if found != MAGIC {
        return Err(GgufError::Magic { found });
    }
    match c.u32("version")? {
        v @ (2 | 3) => Ok(v),
        1 => Err(GgufError::Version1),
        v if (1..=3).contains(&v.swap_bytes()) => Err(GgufError::BigEndian),
        found => Err(GgufError::Version { found }),
    }
}

fn read_entry<'a>(c: &mut Cursor<'a>) -> Result<Entry<'a>, GgufError> {
    let offset = c.pos();
    let name = c.name("tensor name", limits::MAX_NAME_BYTES)?;
    let dims_offset = c.pos();
    let n_dims = c.u32("number of dimensions")?;
    let mut dims = [0u64; limits::MAX_DIMS];
    let dims = usize::try_from(n_dims)
        .ok()
        .and_then(|n| dims.get_mut(..n))
        .ok_or_else(|| GgufError::TensorDims {
            name: name.to_string(),
            offset: dims_offset,
            found: n_dims.into(),
        })?;
    for dim in dims.iter_mut() {
        *dim = c.u64("dimension")?;
    }
    let type_offset = c.pos();
    let id = c.u32("tensor type")?;
    let dtype = DType::from_ggml_id(id).ok_or_else(|| GgufError::UnknownTensorType {
        name: name.to_string(),
        offset: type_offset,
        found: id,
    })?;
    Ok(Entry {
        name,
        dtype,
        shape: Shape::new(name, dims, dtype, dims_offset + 4)?,
        data_offset: c.u64("data offset")?,
        offset,
    })
}

/// Gives each entry its bytes of the tensor data.
fn place<'a>(
    entries: &[Entry<'a>],
    data: &'a [u8],
    alignment: usize,
) -> Result<Vec<Tensor<'a>>, GgufError> {
    let mut tensors = Vec::with_capacity(entries.len());
    for e in entries {
        if !e.data_offset.is_multiple_of(alignment as u64) {
            return Err(GgufError::Misaligned {
                name: e.name.to_string(),
                data_offset: e.data_offset,
                alignment,
            });
        }
        let bytes = usize::try_from(e.data_offset)
            .ok()
            .and_then(|start| data.get(start..))
            .and_then(|rest| rest.get(..e.shape.n_bytes))
            .ok_or_else(|| GgufError::OutOfFile {
                name: e.name.to_string(),
                data_offset: e.data_offset,
                n_bytes: e.shape.n_bytes,
                available: data.len(),
            })?;
        tensors.push(Tensor {
            name: e.name,
            dtype: e.dtype,
            data: bytes,
            shape: e.shape,
        });
    }
    Ok(tensors)
}

/// Refuses entries that share bytes; all of them have been placed within the file.
fn check_overlap(entries: &[Entry<'_>], data_start: usize) -> Result<(), GgufError> {
    let mut order: Vec<&Entry<'_>> = entries.iter().collect();
    order.sort_unstable_by_key(|e| e.data_offset);
    for pair in order.windows(2) {
        if let [a, b] = pair
            && b.data_offset - a.data_offset < a.shape.n_bytes as u64
        {
            return Err(GgufError::Overlap {
                first: a.name.to_string(),
                second: b.name.to_string(),
                offset: data_start.saturating_add(b.data_offset as usize),
            });
        }
    }
    Ok(())
}

/// The indices of `items`, sorted by name. `duplicate` makes the error for a name that occurs
/// again at an index. The limits on counts keep every index within 32 bits.
fn sorted_index<'a, T>(
    items: &[T],
    name: impl Fn(&T) -> &'a str,
    duplicate: impl FnOnce(&'a str, usize) -> GgufError,
) -> Result<Vec<u32>, GgufError> {
    let at = |i: u32| items.get(i as usize).map(&name).unwrap_or_default();
    let mut index: Vec<u32> = (0..items.len() as u32).collect();
    // Among equal names the index decides, so that the error is the same every time.
    index.sort_unstable_by_key(|i| (at(*i), *i));
    for pair in index.windows(2) {
        if let [a, b] = *pair
            && at(a) == at(b)
        {
            return Err(duplicate(at(b), b as usize));
        }
    }
    Ok(index)
}

fn find<'s, 'a, T>(
    index: &[u32],
    items: &'s [T],
    name: impl Fn(&T) -> &'a str,
    wanted: &str,
) -> Option<&'s T> {
    let at = |i: &u32| items.get(*i as usize).map(&name).unwrap_or_default();
    let i = index.binary_search_by(|i| at(i).cmp(wanted)).ok()?;
    items.get(*index.get(i)? as usize)
}

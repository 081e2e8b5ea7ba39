//! The safetensors container: a length (u64, little-endian), a JSON header of as many bytes that
//! gives each tensor's type, shape and place, and the tensors' data without gaps.
//!
//! The format: <https://huggingface.co/docs/safetensors>. The `safetensors` crate is not used as
//! its sum of file sizes may overflow, which panics in builds with overflow checks.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use tandem_kernels::DType;

use super::{AdapterError, Floats, floats};

/// The longest header: room for tens of thousands of tensors.
const MAX_HEADER_BYTES: u64 = 8 << 20;

struct Entries<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object<T>(core::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<T> {
            type Value = Entries<T>;

            fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries<T>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Object(core::marker::PhantomData))
    }
}

/// Reads a JSON object: its entries in their order, duplicates kept.
pub(super) fn json_object<T: DeserializeOwned>(
    what: &'static str,
    bytes: &[u8],
) -> Result<Vec<(String, T)>, AdapterError> {
    let entries: Entries<T> =
        serde_json::from_slice(bytes).map_err(|error| AdapterError::Json {
            what,
            reason: error.to_string(),
        })?;
    Ok(entries.0)
}

/// A tensor's type, shape and bytes, of the size that these ask for.
struct View<'a> {
    dtype: &'static str,
    shape: Vec<usize>,
    data: &'a [u8],
    float: Option<DType>,
}

/// The tensors of a file, by name.
pub(super) struct Safetensors<'a> {
    tensors: BTreeMap<String, View<'a>>,
}

/// Types and the bits of an element; those of which it is not a whole byte are left out.
const TYPES: [(&str, usize, Option<DType>); 17] = [
    ("BOOL", 1, None),
    ("U8", 1, None),
    ("I8", 1, None),
    ("F8_E5M2", 1, None),
    ("F8_E4M3", 1, None),
    ("F8_E5M2FNUZ", 1, None),
    ("F8_E4M3FNUZ", 1, None),
    ("F8_E8M0", 1, None),
    ("I16", 2, None),
    ("U16", 2, None),
    ("F16", 2, Some(DType::F16)),
    ("BF16", 2, Some(DType::BF16)),
    ("I32", 4, None),
    ("U32", 4, None),
    ("F32", 4, Some(DType::F32)),
    ("F64", 8, Some(DType::F64)),
    ("I64", 8, None),
];

impl<'a> Safetensors<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Safetensors<'a>, AdapterError> {
        let broken = |reason| AdapterError::Safetensors { reason };
        let (n_header, rest) = bytes
            .split_first_chunk()
            .ok_or(broken("it is shorter than 8 bytes"))?;
        let n_header = u64::from_le_bytes(*n_header);
        if n_header > MAX_HEADER_BYTES {
            return Err(broken("its header is longer than 8 MiB"));
        }
        let (header, data) = rest
            .split_at_checked(n_header as usize)
            .ok_or(broken("it ends inside its header"))?;
        let mut entries = Vec::new();
        for (name, info) in json_object::<Value>("the safetensors header", header)? {
            // Free text about the file.
            if name != "__metadata__" {
                let (range, view) = entry(&name, &info)?;
                entries.push((range, name, view));
            }
        }
        // The data lies in the order of the offsets, without gaps or overlaps.
        entries.sort_by_key(|(range, ..)| *range);
        let mut end = 0;
        let mut tensors = BTreeMap::new();
        for (range, name, mut view) in entries {
            let data = data.get(range.0..range.1);
            let data = data.filter(|_| range.0 == end);
            view.data = data.ok_or_else(|| AdapterError::Offsets { name: name.clone() })?;
            end = range.1;
            let element = TYPES.iter().find(|t| t.0 == view.dtype).map_or(1, |t| t.1);
            let n_bytes = view
                .shape
                .iter()
                .try_fold(element, |n, dim| n.checked_mul(*dim));
            if n_bytes != Some(view.data.len()) {
                return Err(AdapterError::Offsets { name });
            }
            if tensors.insert(name.clone(), view).is_some() {
                return Err(AdapterError::Duplicate { name });
            }
        }
        match end == data.len() {
            true => Ok(Safetensors { tensors }),
            false => Err(broken("it has bytes after its last tensor")),
        }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A float tensor of `n_dims` dimensions, 1 or 2.
    pub(super) fn floats(&self, name: &str, n_dims: usize) -> Result<Floats, AdapterError> {
        let view = self
            .tensors
            .get(name)
            .ok_or_else(|| AdapterError::MissingTensor {
                name: name.to_string(),
            })?;
        let dtype = view.float.ok_or_else(|| AdapterError::Type {
            name: name.to_string(),
            found: view.dtype.to_string(),
        })?;
        let (n_rows, n_cols) = match view.shape[..] {
            [n] if n_dims == 1 => (n, 1),
            [n_rows, n_cols] if n_dims == 2 => (n_rows, n_cols),
            _ => {
                return Err(AdapterError::Dimensions {
                    name: name.to_string(),
                    wanted: n_dims,
                    found: view.shape.len(),
                });
            }
        };
        floats(name, dtype, n_rows, n_cols, view.data)
    }
}

/// Reads a tensor's entry in the header: where its data lies, and a view still without it.
fn entry<'a>(name: &str, info: &Value) -> Result<((usize, usize), View<'a>), AdapterError> {
    let malformed = || AdapterError::Json {
        what: "the safetensors header",
        reason: alloc::format!("tensor {name} is described in a way that is not known"),
    };
    let numbers = |key: &str| -> Option<Vec<usize>> {
        let numbers = info.get(key)?.as_array()?.iter();
        numbers.map(|n| usize::try_from(n.as_u64()?).ok()).collect()
    };
    let dtype = info.get("dtype").and_then(Value::as_str);
    let dtype = dtype.ok_or_else(malformed)?;
    let (dtype, _, float) =
        TYPES
            .iter()
            .find(|t| t.0 == dtype)
            .ok_or_else(|| AdapterError::Type {
                name: name.to_string(),
                found: dtype.to_string(),
            })?;
    let shape = numbers("shape").ok_or_else(malformed)?;
    let [start, end] = numbers("data_offsets").ok_or_else(malformed)?[..] else {
        return Err(malformed());
    };
    let view = View {
        dtype,
        shape,
        data: &[],
        float: *float,
    };
    Ok(((start, end), view))
}

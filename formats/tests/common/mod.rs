//! Helpers of the tests: files put together byte by byte, and a small random generator.
#![allow(dead_code, unreachable_pub)] // each test binary uses some of them

pub mod bundle;

use std::path::PathBuf;

use tandem_formats::{Gguf, GgufError};

/// A GGUF file under construction, not checked by anything.
#[derive(Clone, Default)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    /// A header of version 3 with these counts.
    pub fn header(n_tensors: u64, n_keys: u64) -> Bytes {
        Bytes::default()
            .raw(b"GGUF")
            .u32(3)
            .u64(n_tensors)
            .u64(n_keys)
    }

    pub fn raw(mut self, bytes: &[u8]) -> Bytes {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn u32(self, v: u32) -> Bytes {
        self.raw(&v.to_le_bytes())
    }

    pub fn u64(self, v: u64) -> Bytes {
        self.raw(&v.to_le_bytes())
    }

    pub fn str(self, s: &[u8]) -> Bytes {
        self.u64(s.len() as u64).raw(s)
    }

    /// A metadata entry up to its value.
    pub fn key(self, key: &str, value_type: u32) -> Bytes {
        self.str(key.as_bytes()).u32(value_type)
    }

    /// A tensor's entry.
    pub fn tensor(mut self, name: &str, dims: &[u64], dtype: u32, data_offset: u64) -> Bytes {
        self = self.str(name.as_bytes()).u32(dims.len() as u32);
        for d in dims {
            self = self.u64(*d);
        }
        self.u32(dtype).u64(data_offset)
    }

    /// Padding to a multiple of 32 and `n` bytes of tensor data.
    pub fn data(mut self, n: usize) -> Bytes {
        self.0.resize(self.0.len().next_multiple_of(32) + n, 0xAB);
        self
    }

    pub fn parse(&self) -> Result<Gguf<'_>, GgufError> {
        Gguf::parse(&self.0)
    }

    pub fn error(&self) -> GgufError {
        let e = self.parse().expect_err("the file must be refused");
        assert!(!e.to_string().is_empty());
        e
    }
}

/// The repository's shared folder, `None` (said on stderr) where it is missing.
pub fn shared(path: &str) -> Option<PathBuf> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")).join(path);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {} is not here", path.display());
    None
}

/// The GGUF files of a shared folder, sorted.
pub fn shared_gguf(folder: &str) -> Vec<PathBuf> {
    let Some(folder) = shared(folder) else {
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "gguf"))
        .collect();
    files.sort();
    files
}

/// SplitMix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// Reads every value, element and tensor.
pub fn walk(file: &Gguf<'_>) -> u64 {
    let mut sum = 0u64;
    let mut add = |v: usize| sum = sum.wrapping_add(v as u64);
    for (key, value) in file.metadata() {
        assert_eq!(
            file.get(key).map(|v| v.value_type()),
            Some(value.value_type())
        );
        add(value.value_type() as usize);
        if let tandem_formats::Value::Array(a) = value {
            if let Some(strings) = a.iter_str() {
                assert_eq!(strings.clone().count(), a.len());
                strings.for_each(|s| add(s.len()));
            }
            if let Some(values) = a.iter_values() {
                assert_eq!(values.count(), a.len());
                assert_eq!(a.get(0).is_none(), a.is_empty());
            }
            add(a.iter_i64().map_or(0, |i| i.count()));
            add(a.iter_u32().map_or(0, |i| i.count()));
            add(a.iter_f32().map_or(0, |i| i.count()));
            add(a.iter_bool().map_or(0, |i| i.count()));
        }
    }
    for t in file.tensors() {
        assert_eq!(file.tensor(t.name).map(|t| t.name), Some(t.name));
        assert_eq!(t.shape().iter().product::<usize>(), t.n_elements());
        assert_eq!(t.n_rows() * t.n_cols(), t.n_elements());
        assert_eq!(t.dtype.row_bytes(t.n_elements()), Some(t.data.len()));
        t.data.iter().for_each(|b| add(*b as usize));
    }
    sum
}

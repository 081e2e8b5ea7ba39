//! A sample bundle, and files like it with something wrong and checksums that are right.

use tandem_formats::bundle::{
    Adapter, BaseFingerprint, Calibration, CalibrationKind, Composition, Contents, Correction,
    Factors, Matrix, Member, Merge, MergeMethod, MergedFactors,
};
use tandem_formats::{Array, BundleError, DType, Gguf, Value, ValueType, Writer, bundle::Bundle};
use xxhash_rust::xxh3::xxh3_128;

use super::Rng;

pub fn factors(linear: &str, dtype: DType, rank: usize, n_in: usize, n_out: usize) -> Factors {
    let mut f = Factors {
        linear: linear.into(),
        rank,
        n_in,
        n_out,
        scale: 2.0,
        b_scale: 0.25,
        a: Vec::new().into(),
        b: Vec::new().into(),
    };
    let (n_a, n_b) = f.n_bytes(dtype).expect("whole blocks");
    let mut rng = Rng(rank as u64 + n_in as u64);
    let mut bytes = |n| (0..n).map(|_| rng.next() as u8).collect::<Vec<u8>>();
    f.a = bytes(n_a).into();
    f.b = bytes(n_b).into();
    f
}

fn adapter(name: &str, dtype: DType) -> Adapter {
    Adapter {
        name: name.into(),
        origin: "made for a test".into(),
        dtype,
        factors: vec![
            factors("blk.0.attn_q", dtype, 3, 32, 18),
            factors("blk.1.ffn_up", dtype, 5, 64, 16),
        ],
    }
}

fn matrix(n_rows: usize, n_cols: usize, dtype: DType) -> Matrix {
    Matrix {
        n_rows,
        n_cols,
        dtype,
        data: vec![7; n_rows * dtype.row_bytes(n_cols).unwrap()].into(),
    }
}

fn correction(module: &str, matrices: Vec<Matrix>) -> Correction {
    Correction {
        module: module.into(),
        matrices,
    }
}

fn calibration(name: &str, kind: CalibrationKind, corrections: Vec<Correction>) -> Calibration {
    Calibration {
        name: name.into(),
        kind,
        corrections,
    }
}

/// Every type, kind and property once.
pub fn sample() -> Contents {
    let members = |names: &[&'static str]| {
        let member = |name: &&'static str| Member {
            adapter: (*name).into(),
            weight: 0.5,
        };
        names.iter().map(member).collect()
    };
    let plain = Composition {
        name: "one-plain".into(),
        members: members(&["one"]),
        merge: Merge {
            method: MergeMethod::Cat,
            density: None,
            rank: None,
            seed: None,
        },
        calibration: None,
        prompt: None,
        description: None,
        merged: None,
    };
    Contents {
        name: "sample".into(),
        architecture: "llama".into(),
        base_name: Some("tiny".into()),
        base: BaseFingerprint {
            structure: 1,
            vectors: 2 << 100,
            content: u128::MAX,
        },
        adapters: vec![
            adapter("one", DType::Q8_0),
            adapter("two", DType::Q4_0),
            adapter("three", DType::F16),
            adapter("four", DType::F32),
        ],
        calibrations: vec![
            calibration(
                "lc",
                CalibrationKind::OutputBias,
                vec![correction("attn_q", vec![matrix(1, 18, DType::F16)])],
            ),
            calibration(
                "lc-weight",
                CalibrationKind::WeightBias,
                vec![correction("blk.1.ffn_up", vec![matrix(1, 16, DType::F32)])],
            ),
            calibration(
                "lcpp",
                CalibrationKind::LowRank,
                vec![correction(
                    "attn_q",
                    vec![matrix(4, 32, DType::F16), matrix(18, 4, DType::F16)],
                )],
            ),
            calibration(
                "project",
                CalibrationKind::Projection,
                vec![correction("blk.0.attn_q", vec![matrix(6, 6, DType::F32)])],
            ),
        ],
        compositions: vec![
            plain.clone(),
            Composition {
                name: "both".into(),
                members: members(&["one", "two"]),
                calibration: Some("lcpp".into()),
                prompt: Some("{{ input }}\n=> ".into()),
                description: Some("Both at once".into()),
                ..plain.clone()
            },
            Composition {
                name: "projected".into(),
                members: members(&["one", "two"]),
                calibration: Some("project".into()),
                ..plain.clone()
            },
            Composition {
                name: "dare".into(),
                members: members(&["three", "four"]),
                merge: Merge {
                    method: MergeMethod::DareTiesSvd,
                    density: Some(0.7),
                    rank: Some(2),
                    seed: Some(u64::MAX),
                },
                calibration: Some("lc".into()),
                merged: Some(MergedFactors {
                    dtype: DType::Q8_0,
                    factors: vec![factors("blk.0.attn_q", DType::Q8_0, 2, 32, 18)],
                }),
                ..plain.clone()
            },
        ],
    }
}

/// A tensor of a file that is taken apart.
#[derive(Clone)]
pub struct RawTensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: DType,
    pub data: Vec<u8>,
}

/// A bundle's file taken apart: anything may be changed, the checksums are made new.
#[derive(Clone)]
pub struct Raw {
    pub metadata: Vec<(String, Value<'static>)>,
    pub tensors: Vec<RawTensor>,
}

fn leak<T>(value: Vec<T>) -> &'static [T] {
    Vec::leak(value)
}

pub fn strings(values: &[&str]) -> Value<'static> {
    let mut bytes = Vec::new();
    for v in values {
        bytes.extend((v.len() as u64).to_le_bytes());
        bytes.extend(v.as_bytes());
    }
    Value::Array(Array::from_bytes(ValueType::Str, values.len(), leak(bytes)).unwrap())
}

pub fn floats(values: &[f32]) -> Value<'static> {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Value::Array(Array::from_bytes(ValueType::F32, values.len(), leak(bytes)).unwrap())
}

impl Raw {
    pub fn sample() -> Raw {
        let file = Gguf::parse(leak(sample().to_vec().unwrap())).unwrap();
        let raw = |t: &tandem_formats::Tensor<'_>| RawTensor {
            name: t.name.to_string(),
            shape: t.shape().to_vec(),
            dtype: t.dtype,
            data: t.data.to_vec(),
        };
        Raw {
            metadata: file.metadata().map(|(k, v)| (k.to_string(), *v)).collect(),
            tensors: file.tensors().iter().map(raw).collect(),
        }
    }

    pub fn set(mut self, key: &str, value: Value<'static>) -> Raw {
        match self.metadata.iter_mut().find(|(k, _)| k == key) {
            Some(entry) => entry.1 = value,
            None => self.metadata.push((key.to_string(), value)),
        }
        self
    }

    pub fn text(self, key: &str, value: &'static str) -> Raw {
        self.set(key, Value::Str(value))
    }

    pub fn without(mut self, key: &str) -> Raw {
        let n = self.metadata.len();
        self.metadata.retain(|(k, _)| k != key);
        assert_eq!(self.metadata.len(), n - 1, "{key}");
        self
    }

    pub fn tensor(mut self, name: &str, change: impl FnOnce(&mut RawTensor)) -> Raw {
        let found = self.tensors.iter_mut().find(|t| t.name == name);
        change(found.unwrap_or_else(|| panic!("{name}")));
        self
    }

    pub fn without_tensor(mut self, name: &str) -> Raw {
        let n = self.tensors.len();
        self.tensors.retain(|t| t.name != name);
        assert_eq!(self.tensors.len(), n - 1, "{name}");
        self
    }

    /// The file. Sections are told by the first two parts of tensors' names.
    pub fn to_vec(&self) -> Vec<u8> {
        let write = |checksums: &[u8]| {
            let mut w = Writer::new();
            for (key, value) in &self.metadata {
                w.add(key, *value).unwrap();
            }
            for t in &self.tensors {
                let shape = match t.name == "bundle.checksums" {
                    true => vec![16, checksums.len() / 16],
                    false => t.shape.clone(),
                };
                w.add_tensor(&t.name, &shape, t.dtype).unwrap();
            }
            let data: Vec<&[u8]> = self
                .tensors
                .iter()
                .map(|t| match t.name == "bundle.checksums" {
                    true => checksums,
                    false => &t.data,
                })
                .collect();
            w.to_vec(&data).unwrap()
        };
        let section =
            |name: &str| -> String { name.splitn(3, '.').take(2).collect::<Vec<_>>().join(".") };
        let mut sections: Vec<String> = self.tensors.iter().map(|t| section(&t.name)).collect();
        sections.dedup();
        let n_hashes = sections.iter().filter(|s| *s != "bundle.checksums").count() + 1;
        let draft = write(&vec![0; 16 * n_hashes]);
        let file = Gguf::parse(&draft).unwrap();
        let start =
            |t: &tandem_formats::Tensor<'_>| t.data.as_ptr() as usize - draft.as_ptr() as usize;
        let mut starts: Vec<usize> = Vec::new();
        let mut last = String::new();
        for t in file.tensors() {
            if section(t.name) != last {
                last = section(t.name);
                starts.push(start(t));
            }
        }
        let mut checksums = Vec::new();
        let first = starts.first().copied().unwrap_or(draft.len());
        checksums.extend(xxh3_128(&draft[..first]).to_be_bytes());
        for range in starts.windows(2) {
            checksums.extend(xxh3_128(&draft[range[0]..range[1]]).to_be_bytes());
        }
        checksums.resize(16 * n_hashes, 0);
        write(&checksums)
    }

    pub fn error(&self) -> BundleError {
        let file = self.to_vec();
        let e = Bundle::parse(file.clone()).expect_err("the file must be refused");
        assert!(!e.to_string().is_empty());
        e
    }
}

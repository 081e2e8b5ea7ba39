//! The reader.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use bytes::Bytes;
use tandem_kernels::DType;

use super::check::{check_count, check_name};
use super::contents::{
    Adapter, Calibration, CalibrationKind, Composition, Contents, Correction, Factors, Matrix,
    Member, Merge, MergeMethod, MergedFactors, packed_shape,
};
use super::verify::{Section, State, hash};
use super::{
    BaseFingerprint, BundleError, CHECKSUMS, GENERAL_TYPE, VERSION, key, limits, tensor_name,
};
use crate::{Array, Gguf, Tensor};

/// An open bundle. It holds on to the file's bytes, in which the matrices stay.
///
/// What exists is valid but for the data of adapters, calibrations and stored merges, whose
/// checksums are compared when they are asked for: [`Bundle::parts`], [`Bundle::adapter`],
/// [`Bundle::calibration`], or all together by [`Bundle::verify`].
#[derive(Clone, Debug)]
pub struct Bundle {
    pub(super) contents: Contents,
    // After the header, in the order of the file.
    pub(super) sections: Vec<Section>,
    n_bytes: usize,
}

impl Bundle {
    /// Reads a whole bundle. Takes time in the order of the metadata; the matrices are not touched.
    ///
    /// # Errors
    /// A [`BundleError`] for whatever the file has wrong. Allocations are bounded by the size of
    /// `bytes`, whatever the counts in it say.
    pub fn parse(bytes: impl Into<Bytes>) -> Result<Bundle, BundleError> {
        let bytes = bytes.into();
        let gguf = Gguf::parse(&bytes)?;
        match gguf.get_str("general.type")? {
            Some(GENERAL_TYPE) => {}
            found => {
                return Err(BundleError::NotABundle {
                    found: found.map(ToString::to_string),
                });
            }
        }
        // Before anything that another version might have otherwise.
        match gguf.get_u32("bundle.version")? {
            Some(VERSION) => {}
            Some(found) => return Err(BundleError::Version { found }),
            None => {
                return Err(BundleError::MissingKey {
                    key: "bundle.version".to_string(),
                });
            }
        }
        check_header(&bytes, &gguf)?;

        let mut reader = Reader {
            bytes: &bytes,
            gguf: &gguf,
            keys: BTreeSet::new(),
            tensors: BTreeMap::new(),
            names: Vec::new(),
        };
        for known in ["general.type", "general.alignment", "bundle.version"] {
            reader.keys.insert(known.to_string());
        }
        let contents = reader.contents()?;
        reader.refuse_unknown()?;
        contents.check()?;
        let sections = reader.sections()?;
        Ok(Bundle {
            contents,
            sections,
            n_bytes: bytes.len(),
        })
    }

    /// Bytes of the file.
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// What the bundle holds. The data in it is not checked against the checksums.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }
}

/// Where data borrowed from `bytes` begins in them.
fn offset_in(bytes: &[u8], data: &[u8]) -> usize {
    (data.as_ptr() as usize).saturating_sub(bytes.as_ptr() as usize)
}

/// The hashes of the header and of the sections, in that order.
fn checksums<'a>(gguf: &Gguf<'a>) -> Result<impl Iterator<Item = u128> + use<'a>, BundleError> {
    let table = gguf
        .tensor(CHECKSUMS)
        .ok_or_else(|| BundleError::MissingTensor {
            name: CHECKSUMS.to_string(),
        })?;
    check_type(table, table.dtype == DType::I8, "I8")?;
    check_shape(table, [16, 0])?;
    Ok(table.data.chunks_exact(16).map(|bytes| {
        let mut hash = [0; 16];
        hash.copy_from_slice(bytes);
        u128::from_be_bytes(hash)
    }))
}

/// Checks the bytes before the first tensor's data against their checksum.
fn check_header(bytes: &[u8], gguf: &Gguf<'_>) -> Result<(), BundleError> {
    let first = gguf.tensors().first();
    let n_header = first.map_or(bytes.len(), |t| offset_in(bytes, t.data));
    let header = bytes.get(..n_header).unwrap_or_default();
    if checksums(gguf)?.next() != Some(hash(header)) {
        return Err(BundleError::Damaged {
            what: "header",
            name: String::new(),
        });
    }
    Ok(())
}

/// Reads keys and tensors, and notes which, so that none is passed over.
struct Reader<'g, 'a> {
    bytes: &'g Bytes,
    gguf: &'g Gguf<'a>,
    keys: BTreeSet<String>,
    /// The section of each tensor that was read, and its place among all that were.
    tensors: BTreeMap<&'a str, (usize, usize)>,
    /// The sections begun: kind and name.
    names: Vec<(&'static str, &'a str)>,
}

impl<'g, 'a> Reader<'g, 'a> {
    fn contents(&mut self) -> Result<Contents, BundleError> {
        let contents = Contents {
            name: self.text("general.name")?.into(),
            architecture: self.text("general.architecture")?.into(),
            base_name: self.optional_text("bundle.base.name")?.map(String::from),
            base: BaseFingerprint {
                structure: self.hash("bundle.base.structure")?,
                vectors: self.hash("bundle.base.vectors")?,
                content: self.hash("bundle.base.content")?,
            },
            adapters: Vec::new(),
            calibrations: Vec::new(),
            compositions: Vec::new(),
        };
        let adapters = self.names("adapter", "bundle.adapters", limits::MAX_ADAPTERS)?;
        let calibrations = self.names(
            "calibration",
            "bundle.calibrations",
            limits::MAX_CALIBRATIONS,
        )?;
        let compositions = self.names(
            "composition",
            "bundle.compositions",
            limits::MAX_COMPOSITIONS,
        )?;
        Ok(Contents {
            adapters: adapters
                .into_iter()
                .map(|name| self.adapter(name))
                .collect::<Result<_, _>>()?,
            calibrations: calibrations
                .into_iter()
                .map(|name| self.calibration(name))
                .collect::<Result<_, _>>()?,
            compositions: compositions
                .into_iter()
                .map(|name| self.composition(name))
                .collect::<Result<_, _>>()?,
            ..contents
        })
    }

    fn adapter(&mut self, name: &'a str) -> Result<Adapter, BundleError> {
        let origin = self.text(&key("adapter", name, "origin"))?.into();
        let (dtype, factors) = self.factors("adapter", "adapter", name)?;
        Ok(Adapter {
            name: name.into(),
            origin,
            dtype,
            factors,
        })
    }

    /// The factors of adapter `name`, or of what the merge of composition `name` gives. Their
    /// tensors are called `prefix.name.LINEAR.lora_a` and `.lora_b`.
    fn factors(
        &mut self,
        what: &'static str,
        prefix: &str,
        name: &'a str,
    ) -> Result<(DType, Vec<Factors>), BundleError> {
        self.names.push((what, name));
        let type_key = key(what, name, "type");
        let type_name = self.text(&type_key)?;
        let dtype = super::FACTOR_TYPES
            .into_iter()
            .find(|t| t.name().eq_ignore_ascii_case(type_name))
            .ok_or_else(|| wrong(&type_key, type_name, "f32, f16, q8_0 or q4_0"))?;

        let linears = self.linears(&key(what, name, "linears"))?;
        let scales = self.floats(&key(what, name, "scales"), linears.len())?;
        let b_scales = self.floats(&key(what, name, "b_scales"), linears.len())?;
        let n_outs_key = key(what, name, "n_out");
        let n_outs = self.array(&n_outs_key)?;
        let n_outs: Vec<u32> = n_outs
            .iter_u32()
            .ok_or_else(|| wrong(&n_outs_key, "", "an array of u32"))?
            .collect();
        if n_outs.len() != linears.len() {
            return Err(BundleError::Lengths {
                key: n_outs_key,
                found: n_outs.len(),
                wanted: linears.len(),
            });
        }

        let mut factors = Vec::with_capacity(linears.len());
        let scales = scales.into_iter().zip(b_scales);
        for ((linear, (scale, b_scale)), n_out) in linears.into_iter().zip(scales).zip(n_outs) {
            let n_out = n_out as usize;
            let a = self.tensor(tensor_name(prefix, name, linear, "lora_a"))?;
            check_type(a, a.dtype == dtype, dtype.name())?;
            check_shape(a, [0, 0])?;
            let (n_in, rank) = (a.n_cols(), a.n_rows());
            check_count("ranks", name, rank, limits::MAX_RANK)?;
            let b = self.tensor(tensor_name(prefix, name, linear, "lora_b"))?;
            match packed_shape(dtype, n_out, rank) {
                Some((tile_bytes, n_tiles)) => {
                    check_type(b, b.dtype == DType::I8, "I8")?;
                    check_shape(b, [tile_bytes, n_tiles])?;
                }
                None => {
                    check_type(b, b.dtype == dtype, dtype.name())?;
                    check_shape(b, [rank, n_out])?;
                }
            }
            factors.push(Factors {
                linear: linear.into(),
                rank,
                n_in,
                n_out,
                scale,
                b_scale,
                a: self.bytes.slice_ref(a.data),
                b: self.bytes.slice_ref(b.data),
            });
        }
        Ok((dtype, factors))
    }

    fn calibration(&mut self, name: &'a str) -> Result<Calibration, BundleError> {
        self.names.push(("calibration", name));
        let kind_key = key("calibration", name, "kind");
        let kind_name = self.text(&kind_key)?;
        let kind = CalibrationKind::from_name(kind_name).ok_or_else(|| {
            let wanted = "output_bias, weight_bias, low_rank or projection";
            wrong(&kind_key, kind_name, wanted)
        })?;
        let mut corrections = Vec::new();
        for module in self.linears(&key("calibration", name, "modules"))? {
            let mut matrices = Vec::new();
            for tensor in kind.tensors() {
                let t = self.tensor(tensor_name("calibration", name, module, tensor))?;
                let wanted = match kind.stores(tensor, DType::Q8_0) {
                    true => "F32, F16 or Q8_0",
                    false => "F32 or F16",
                };
                check_type(t, kind.stores(tensor, t.dtype), wanted)?;
                check_shape(t, [0, 0])?;
                matrices.push(Matrix {
                    n_rows: t.n_rows(),
                    n_cols: t.n_cols(),
                    dtype: t.dtype,
                    data: self.bytes.slice_ref(t.data),
                });
            }
            corrections.push(Correction {
                module: module.into(),
                matrices,
            });
        }
        Ok(Calibration {
            name: name.into(),
            kind,
            corrections,
        })
    }

    fn composition(&mut self, name: &'a str) -> Result<Composition, BundleError> {
        let what = "composition";
        let key = |property| key(what, name, property);
        let adapters = self.strings(&key("adapters"), limits::MAX_MEMBERS)?;
        let weights = self.floats(&key("weights"), adapters.len())?;
        let method = self.text(&key("merge"))?;
        let merge = Merge {
            method: MergeMethod::from_name(method)
                .ok_or_else(|| wrong(&key("merge"), method, "a method of the format"))?,
            density: self.optional(&key("density"), Gguf::get_f32)?,
            rank: self.optional(&key("rank"), Gguf::get_u32)?,
            seed: self.optional(&key("seed"), Gguf::get_u64)?,
        };
        let calibration = self.optional_text(&key("calibration"))?;
        let prompt = self.optional_text(&key("prompt"))?;
        let description = self.optional_text(&key("description"))?;
        // A stored merge has its type here, as an adapter has.
        let merged = match self.gguf.get(&key("type")) {
            Some(_) => {
                let (dtype, factors) = self.factors(what, "merged", name)?;
                Some(MergedFactors { dtype, factors })
            }
            None => None,
        };
        let members = adapters.into_iter().zip(weights);
        Ok(Composition {
            name: name.into(),
            members: members
                .map(|(adapter, weight)| Member {
                    adapter: adapter.into(),
                    weight,
                })
                .collect(),
            merge,
            calibration: calibration.map(String::from),
            prompt: prompt.map(String::from),
            description: description.map(String::from),
            merged,
        })
    }

    /// The value of a key that need not be there.
    fn optional<T>(
        &mut self,
        key: &str,
        get: impl FnOnce(&'g Gguf<'a>, &str) -> Result<Option<T>, crate::GgufError>,
    ) -> Result<Option<T>, BundleError> {
        self.keys.insert(key.to_string());
        Ok(get(self.gguf, key)?)
    }

    fn optional_text(&mut self, key: &str) -> Result<Option<&'a str>, BundleError> {
        self.optional(key, Gguf::get_str)
    }

    fn text(&mut self, key: &str) -> Result<&'a str, BundleError> {
        self.optional_text(key)?.ok_or_else(|| missing(key))
    }

    fn array(&mut self, key: &str) -> Result<&'g Array<'a>, BundleError> {
        self.optional(key, Gguf::get_array)?
            .ok_or_else(|| missing(key))
    }

    /// 128 bits in hexadecimal.
    fn hash(&mut self, key: &str) -> Result<u128, BundleError> {
        let found = self.text(key)?;
        let is_digit = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        let well_formed = found.len() == 32 && found.bytes().all(is_digit);
        let value = u128::from_str_radix(found, 16).ok();
        value
            .filter(|_| well_formed)
            .ok_or_else(|| wrong(key, found, "32 hexadecimal digits"))
    }

    /// An array of `wanted` numbers.
    fn floats(&mut self, key: &str, wanted: usize) -> Result<Vec<f32>, BundleError> {
        let array = self.array(key)?;
        let floats = array
            .iter_f32()
            .ok_or_else(|| wrong(key, "", "an array of f32"))?;
        if array.len() != wanted {
            return Err(BundleError::Lengths {
                key: key.to_string(),
                found: array.len(),
                wanted,
            });
        }
        Ok(floats.collect())
    }

    fn strings(&mut self, key: &str, max: usize) -> Result<Vec<&'a str>, BundleError> {
        let array = self.array(key)?;
        check_count("names", key, array.len(), max)?;
        let strings = array
            .iter_str()
            .ok_or_else(|| wrong(key, "", "an array of strings"))?;
        strings
            .map(|bytes| {
                core::str::from_utf8(bytes)
                    .map_err(|_| wrong(key, &String::from_utf8_lossy(bytes), "UTF-8"))
            })
            .collect()
    }

    fn linears(&mut self, key: &str) -> Result<Vec<&'a str>, BundleError> {
        self.strings(key, limits::MAX_LINEARS)
    }

    /// The names of all adapters, calibrations or compositions: checked here, as keys and tensors
    /// are then called after them.
    fn names(
        &mut self,
        what: &'static str,
        key: &str,
        max: usize,
    ) -> Result<Vec<&'a str>, BundleError> {
        let names = self.strings(key, max)?;
        let mut seen = BTreeSet::new();
        for name in &names {
            check_name(what, name)?;
            if !seen.insert(*name) {
                return Err(BundleError::Duplicate {
                    what,
                    name: name.to_string(),
                    within: String::new(),
                });
            }
        }
        Ok(names)
    }

    /// A tensor of the section that was begun last.
    fn tensor(&mut self, name: String) -> Result<&'g Tensor<'a>, BundleError> {
        let tensor = self
            .gguf
            .tensor(&name)
            .ok_or(BundleError::MissingTensor { name })?;
        let place = (self.names.len().saturating_sub(1), self.tensors.len());
        self.tensors.insert(tensor.name, place);
        Ok(tensor)
    }

    fn refuse_unknown(&self) -> Result<(), BundleError> {
        for (key, _) in self.gguf.metadata() {
            if !self.keys.contains(key) {
                let key = key.to_string();
                return Err(BundleError::UnknownKey { key });
            }
        }
        for t in self.gguf.tensors() {
            if !self.tensors.contains_key(t.name) && t.name != CHECKSUMS {
                let name = t.name.to_string();
                return Err(BundleError::UnknownTensor { name });
            }
        }
        Ok(())
    }

    /// The sections' bytes: from a section's first tensor to the next section's, the last one to
    /// the checksums, padding included, so that together they are the whole file.
    fn sections(&self) -> Result<Vec<Section>, BundleError> {
        let bytes = self.bytes;
        let mut starts = Vec::with_capacity(self.names.len() + 1);
        let mut last_end = 0;
        for (i, t) in self.gguf.tensors().iter().enumerate() {
            let start = offset_in(bytes, t.data);
            let last = (self.names.len(), self.tensors.len());
            let (section, place) = self.tensors.get(t.name).copied().unwrap_or(last);
            // Each section begins once, after the one before it. Its checksum stands for its
            // tensors, so their order and places follow from the keys.
            if section == starts.len() {
                starts.push(start);
            }
            let gap = start.checked_sub(last_end).filter(|_| i > 0);
            let is_next = i == 0 || gap.is_some_and(|gap| gap < self.gguf.alignment());
            if !is_next || place != i || section.saturating_add(1) != starts.len() {
                let name = t.name.to_string();
                return Err(BundleError::TensorOrder { name });
            }
            last_end = start.saturating_add(t.data.len());
        }
        let padding = bytes.get(last_end..).unwrap_or_default();
        if padding.len() >= self.gguf.alignment() || padding.iter().any(|b| *b != 0) {
            return Err(BundleError::Trailing { offset: last_end });
        }
        let mut hashes = checksums(self.gguf)?.skip(1);
        let mut sections = Vec::with_capacity(self.names.len());
        for ((what, name), ends) in self.names.iter().zip(starts.windows(2)) {
            let range = ends.first().copied().zip(ends.last().copied());
            let range = range.filter(|(start, end)| start <= end && *end <= bytes.len());
            let bytes = range.map(|(start, end)| bytes.slice(start..end));
            let lengths = |found| BundleError::Lengths {
                key: CHECKSUMS.to_string(),
                found,
                wanted: self.names.len() + 1,
            };
            sections.push(Section {
                what,
                name: (*name).into(),
                bytes: bytes.unwrap_or_default(),
                hash: hashes.next().ok_or_else(|| lengths(sections.len() + 1))?,
                state: State::default(),
            });
        }
        match hashes.count() {
            0 => Ok(sections),
            more => Err(BundleError::Lengths {
                key: CHECKSUMS.to_string(),
                found: self.names.len() + 1 + more,
                wanted: self.names.len() + 1,
            }),
        }
    }
}

fn missing(key: &str) -> BundleError {
    BundleError::MissingKey {
        key: key.to_string(),
    }
}

fn wrong(key: &str, found: &str, wanted: &'static str) -> BundleError {
    BundleError::Value {
        key: key.to_string(),
        // An error need not carry a novel.
        found: found.chars().take(64).collect(),
        wanted,
    }
}

fn check_type(t: &Tensor<'_>, fits: bool, wanted: &'static str) -> Result<(), BundleError> {
    if !fits {
        return Err(BundleError::TensorType {
            name: t.name.to_string(),
            found: t.dtype,
            wanted,
        });
    }
    Ok(())
}

/// Whether a tensor has two dimensions, and these where they are not 0.
fn check_shape(t: &Tensor<'_>, wanted: [usize; 2]) -> Result<(), BundleError> {
    let found = match *t.shape() {
        [cols, rows] => [cols, rows],
        _ => [t.n_cols(), 0],
    };
    let fits = |(found, wanted): (&usize, &usize)| *wanted == 0 || found == wanted;
    if t.shape().len() != 2 || !found.iter().zip(&wanted).all(fits) {
        return Err(BundleError::TensorShape {
            name: t.name.to_string(),
            found,
            wanted,
        });
    }
    Ok(())
}

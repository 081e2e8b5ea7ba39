//! The writer.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use tandem_kernels::DType;
use xxhash_rust::xxh3::Xxh3;

use super::contents::{Calibration, Composition, Contents, Factors, packed_shape};
use super::verify::hash;
use super::{ALIGNMENT, BundleError, CHECKSUMS, GENERAL_TYPE, VERSION, key, tensor_name};
use crate::gguf::ALIGNMENT_KEY;
use crate::{Value, Writer};

impl Contents {
    /// The bundle as a file, put together in memory.
    ///
    /// # Errors
    /// Those of [`Contents::check`]; [`BundleError::Gguf`] where the container cannot hold it.
    pub fn to_vec(&self) -> Result<Vec<u8>, BundleError> {
        let layout = self.layout()?;
        let mut data: Vec<&[u8]> = layout.tensors.iter().map(|t| t.1).collect();
        data.push(&layout.checksums);
        Ok(layout.writer.to_vec(&data)?)
    }

    /// Writes the bundle to `out`. To replace a file, give this the output of
    /// [`write_atomically`](crate::write_atomically).
    ///
    /// # Errors
    /// Those of the output; a [`BundleError`] as in [`Contents::to_vec`] is given as
    /// [`InvalidInput`](std::io::ErrorKind::InvalidInput), before anything is written.
    #[cfg(feature = "std")]
    pub fn write_to<W: std::io::Write>(&self, out: W) -> std::io::Result<()> {
        let layout = self
            .layout()
            .map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidInput, e))?;
        let mut data = layout.writer.start(out)?;
        for (name, bytes) in &layout.tensors {
            data.write(name, bytes)?;
        }
        data.write(CHECKSUMS, &layout.checksums)?;
        data.finish()?;
        Ok(())
    }

    fn layout(&self) -> Result<Layout<'_>, BundleError> {
        self.check()?;
        let mut w = Writer::new();
        w.add("general.type", Value::Str(GENERAL_TYPE))?;
        w.add("general.architecture", Value::Str(&self.architecture))?;
        w.add("general.name", Value::Str(&self.name))?;
        w.add(ALIGNMENT_KEY, Value::U32(ALIGNMENT))?;
        w.add("bundle.version", Value::U32(VERSION))?;
        if let Some(name) = &self.base_name {
            w.add("bundle.base.name", Value::Str(name))?;
        }
        for (property, hash) in [
            ("structure", self.base.structure),
            ("vectors", self.base.vectors),
            ("content", self.base.content),
        ] {
            let digits = format!("{hash:032x}");
            w.add(&format!("bundle.base.{property}"), Value::Str(&digits))?;
        }
        w.add_strings("bundle.adapters", self.adapters.iter().map(|a| &*a.name))?;
        let names = self.calibrations.iter().map(|c| &*c.name);
        w.add_strings("bundle.calibrations", names)?;
        let names = self.compositions.iter().map(|c| &*c.name);
        w.add_strings("bundle.compositions", names)?;

        let mut file = Sections {
            writer: w,
            tensors: Vec::new(),
            ends: Vec::new(),
        };
        for adapter in &self.adapters {
            let origin = key("adapter", &adapter.name, "origin");
            file.writer.add(&origin, Value::Str(&adapter.origin))?;
            let prefix = "adapter";
            file.factors(
                prefix,
                prefix,
                &adapter.name,
                adapter.dtype,
                &adapter.factors,
            )?;
        }
        for calibration in &self.calibrations {
            file.calibration(calibration)?;
        }
        for composition in &self.compositions {
            file.composition(composition)?;
        }
        file.finish()
    }
}

/// What pads a tensor's data to the alignment.
const ZEROS: [u8; ALIGNMENT as usize] = [0; ALIGNMENT as usize];

/// A bundle of which everything is known.
struct Layout<'c> {
    writer: Writer,
    tensors: Vec<(String, &'c [u8])>,
    /// The data of the last tensor.
    checksums: Vec<u8>,
}

/// A bundle under construction.
struct Sections<'c> {
    writer: Writer,
    tensors: Vec<(String, &'c [u8])>,
    /// How many tensors there were at the end of each section.
    ends: Vec<usize>,
}

impl<'c> Sections<'c> {
    fn factors(
        &mut self,
        what: &str,
        prefix: &str,
        name: &str,
        dtype: DType,
        factors: &'c [Factors],
    ) -> Result<(), BundleError> {
        let w = &mut self.writer;
        let type_name = dtype.name().to_lowercase();
        w.add(&key(what, name, "type"), Value::Str(&type_name))?;
        let linears = factors.iter().map(|f| &*f.linear);
        w.add_strings(&key(what, name, "linears"), linears)?;
        let scales: Vec<f32> = factors.iter().map(|f| f.scale).collect();
        w.add_array(&key(what, name, "scales"), &scales)?;
        let b_scales: Vec<f32> = factors.iter().map(|f| f.b_scale).collect();
        w.add_array(&key(what, name, "b_scales"), &b_scales)?;
        let mut n_outs = Vec::with_capacity(factors.len());
        for f in factors {
            let n_out = u32::try_from(f.n_out).map_err(|_| BundleError::FactorShape {
                name: name.to_string(),
                linear: f.linear.to_string(),
            })?;
            n_outs.push(n_out);
        }
        w.add_array(&key(what, name, "n_out"), &n_outs)?;

        for f in factors {
            let a = tensor_name(prefix, name, &f.linear, "lora_a");
            self.tensor(a, [f.n_in, f.rank], dtype, &f.a)?;
            let b = tensor_name(prefix, name, &f.linear, "lora_b");
            match packed_shape(dtype, f.n_out, f.rank) {
                Some((tile_bytes, n_tiles)) => {
                    self.tensor(b, [tile_bytes, n_tiles], DType::I8, &f.b)?;
                }
                None => self.tensor(b, [f.rank, f.n_out], dtype, &f.b)?,
            }
        }
        self.ends.push(self.tensors.len());
        Ok(())
    }

    fn calibration(&mut self, calibration: &'c Calibration) -> Result<(), BundleError> {
        let name = &*calibration.name;
        let kind = key("calibration", name, "kind");
        self.writer
            .add(&kind, Value::Str(calibration.kind.name()))?;
        let modules = calibration.corrections.iter().map(|c| &*c.module);
        self.writer
            .add_strings(&key("calibration", name, "modules"), modules)?;
        for correction in &calibration.corrections {
            for (tensor, m) in calibration.kind.tensors().iter().zip(&correction.matrices) {
                let tensor = tensor_name("calibration", name, &correction.module, tensor);
                self.tensor(tensor, [m.n_cols, m.n_rows], m.dtype, &m.data)?;
            }
        }
        self.ends.push(self.tensors.len());
        Ok(())
    }

    fn composition(&mut self, composition: &'c Composition) -> Result<(), BundleError> {
        let name = &*composition.name;
        let key = |property| key("composition", name, property);
        let w = &mut self.writer;
        let adapters = composition.members.iter().map(|m| &*m.adapter);
        w.add_strings(&key("adapters"), adapters)?;
        let weights: Vec<f32> = composition.members.iter().map(|m| m.weight).collect();
        w.add_array(&key("weights"), &weights)?;
        let merge = &composition.merge;
        w.add(&key("merge"), Value::Str(merge.method.name()))?;
        for (property, value) in [
            ("density", merge.density.map(Value::F32)),
            ("rank", merge.rank.map(Value::U32)),
            ("seed", merge.seed.map(Value::U64)),
            (
                "calibration",
                composition.calibration.as_deref().map(Value::Str),
            ),
            ("prompt", composition.prompt.as_deref().map(Value::Str)),
            (
                "description",
                composition.description.as_deref().map(Value::Str),
            ),
        ] {
            if let Some(value) = value {
                w.add(&key(property), value)?;
            }
        }
        match &composition.merged {
            Some(m) => self.factors("composition", "merged", name, m.dtype, &m.factors),
            None => Ok(()),
        }
    }

    fn tensor(
        &mut self,
        name: String,
        shape: [usize; 2],
        dtype: DType,
        data: &'c [u8],
    ) -> Result<(), BundleError> {
        self.writer.add_tensor(&name, &shape, dtype)?;
        self.tensors.push((name, data));
        Ok(())
    }

    /// Declares the checksums and computes them: of the header, then of each section.
    fn finish(mut self) -> Result<Layout<'c>, BundleError> {
        let n_hashes = self.ends.len() + 1;
        self.writer
            .add_tensor(CHECKSUMS, &[16, n_hashes], DType::I8)?;
        let mut checksums = Vec::with_capacity(16 * n_hashes);
        checksums.extend(hash(&self.writer.header()?).to_be_bytes());
        let mut start = 0;
        for end in &self.ends {
            let mut section = Xxh3::new();
            for (_, data) in self.tensors.get(start..*end).unwrap_or_default() {
                section.update(data);
                let n_padding = data.len().next_multiple_of(ZEROS.len()) - data.len();
                section.update(ZEROS.get(..n_padding).unwrap_or_default());
            }
            checksums.extend(section.digest128().to_be_bytes());
            start = *end;
        }
        Ok(Layout {
            writer: self.writer,
            tensors: self.tensors,
            checksums,
        })
    }
}

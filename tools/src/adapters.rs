//! Adapters and calibrations from files, as several subcommands take them.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use tandem_engine::adapters::calibration::{self, Kind};
use tandem_engine::adapters::{Workers, from_bundle, from_bundled_adapter};
use tandem_engine::{Adapter, AdapterType, Composition, Config, Model, PackedAdapter, Pool};
use tandem_formats::bundle::{BaseMatch, Bundle};
use tandem_formats::{Gguf, Mapping};

use crate::args::{AdapterArgs, BundleArgs, SessionArgs};

/// A mapped bundle, and the composition that is wanted of it.
pub(crate) struct Chosen<'f> {
    path: &'f Path,
    mapping: Mapping,
    composition: &'f str,
}

impl BundleArgs {
    /// Maps the bundle that the flags name, if they do.
    pub(crate) fn open(&self) -> Result<Option<Chosen<'_>>> {
        let (Some(path), Some(composition)) = (&self.bundle, &self.compose) else {
            return Ok(None);
        };
        Ok(Some(Chosen {
            path,
            mapping: crate::bundle::map(path)?,
            composition,
        }))
    }
}

impl Chosen<'_> {
    /// The bundle. Nothing of one runs that is damaged or for another base.
    pub(crate) fn bundle(&self, base: &Gguf<'_>) -> Result<Bundle<'_>> {
        bundle_for(self.path, &self.mapping, base)
    }

    /// The composition's parts, used where they lie in the file.
    fn parts(
        &self,
        base: &Gguf<'_>,
        config: &Config,
        adapter_type: AdapterType,
        workers: Workers<'_>,
    ) -> Result<Parts<'_>> {
        let bundle = self.bundle(base)?;
        Parts::of_bundle(&bundle, self.composition, config, adapter_type, workers)
            .with_context(|| format!("cannot use {}", self.path.display()))
    }
}

/// A mapped bundle that is for this base. Nothing runs of one that is for another.
pub(crate) fn bundle_for<'a>(
    path: &Path,
    mapping: &'a Mapping,
    base: &Gguf<'_>,
) -> Result<Bundle<'a>> {
    let bundle = crate::bundle::parse(path, mapping)?;
    let fit = bundle.contents().check_base(base);
    if fit.with_context(|| format!("cannot use {}", path.display()))? == BaseMatch::OtherBytes {
        tell!("note: this is not the very base that the bundle was made with, but fits it");
    }
    Ok(bundle)
}

/// Adapters and a calibration, packed, each with its weight.
#[derive(Default)]
pub(crate) struct Parts<'a> {
    packed: Vec<(PackedAdapter<'a>, f32)>,
    /// The text that the composition wants to be asked with.
    pub prompt: Option<String>,
}

impl<'a> Parts<'a> {
    /// Those of a bundle's composition; a merge that is not stored is computed.
    pub(crate) fn of_bundle(
        bundle: &Bundle<'a>,
        composition: &str,
        base: &Config,
        adapter_type: AdapterType,
        workers: Workers<'_>,
    ) -> Result<Parts<'a>> {
        let parts = bundle.parts(composition)?;
        Ok(Parts {
            packed: from_bundle(base, &parts, adapter_type, workers)?,
            prompt: parts.composition.prompt.as_deref().map(str::to_string),
        })
    }

    /// Loads what the flags name, for a model that is run as they say.
    pub(crate) fn load(
        args: &AdapterArgs,
        chosen: Option<&'a Chosen<'_>>,
        session: &SessionArgs,
        pool: &dyn Pool,
        gguf: &Gguf<'_>,
        model: &Model<'_>,
    ) -> Result<Parts<'a>> {
        let adapter_type = session.adapter_type(model);
        if let Some(chosen) = chosen {
            return chosen.parts(gguf, &model.config, adapter_type, session.workers(pool));
        }
        let adapters = read_all(args, &model.config)?;
        Parts::new(args, &model.config, adapters, adapter_type)
    }

    /// Packs adapters that were read, in the order of the flags, and the calibration.
    pub(crate) fn new(
        args: &AdapterArgs,
        base: &Config,
        adapters: Vec<Adapter>,
        adapter_type: AdapterType,
    ) -> Result<Parts<'a>> {
        let mut parts = Vec::new();
        let weights: Vec<f32> = args.lora.iter().map(|lora| lora.scale).collect();
        let is_projection = args.kind == Some(Kind::Projection);
        if !is_projection {
            for (adapter, weight) in adapters.iter().zip(&weights) {
                parts.push((PackedAdapter::pack(base, adapter, adapter_type)?, *weight));
            }
        }
        if let (Some(path), Some(kind)) = (&args.calibration, args.kind) {
            let name = || format!("cannot use the calibration {}", path.display());
            let bytes = std::fs::read(path).with_context(name)?;
            let file = tandem_formats::adapter::calibration::read(&bytes).with_context(name)?;
            // It is small: there is nothing to be saved by fewer bits.
            let kept_type = match adapter_type {
                AdapterType::Q4 => AdapterType::Q8,
                other => other,
            };
            let packed = if is_projection {
                let adapters: Vec<&Adapter> = adapters.iter().collect();
                let projected = calibration::project(base, &file, &adapters, &weights);
                PackedAdapter::pack(base, &projected.with_context(name)?, adapter_type)?
            } else {
                calibration::pack(base, &file, kind, kept_type).with_context(name)?
            };
            parts.push((packed, 1.0));
        }
        Ok(Parts {
            packed: parts,
            prompt: None,
        })
    }

    /// An adapter of a bundle alone.
    pub(crate) fn of_bundled_adapter(
        bundle: &Bundle<'a>,
        adapter: &str,
        config: &Config,
    ) -> Result<Parts<'a>> {
        let (adapter, checksum) = bundle.adapter(adapter)?;
        let packed = from_bundled_adapter(config, adapter, checksum)?;
        Ok(Parts {
            packed: vec![(packed, 1.0)],
            prompt: None,
        })
    }

    /// Of one adapter alone.
    pub(crate) fn of(base: &Config, adapter: &Adapter) -> Result<Parts<'a>> {
        let packed = PackedAdapter::pack(base, adapter, AdapterType::F32)?;
        Ok(Parts {
            packed: vec![(packed, 1.0)],
            prompt: None,
        })
    }

    /// The sum of all; `None` where there is nothing to add.
    pub(crate) fn composition(&self, base: &Config) -> Result<Option<Composition<'_>>> {
        if self.packed.is_empty() {
            return Ok(None);
        }
        let parts: Vec<_> = self
            .packed
            .iter()
            .map(|(part, weight)| (part, *weight))
            .collect();
        Ok(Some(Composition::new(base, &parts)?))
    }
}

/// The adapters that the flags name, in their order.
pub(crate) fn read_all(args: &AdapterArgs, base: &Config) -> Result<Vec<Adapter>> {
    let read = |path: &Path| {
        read(path, base).with_context(|| format!("cannot use the adapter {}", path.display()))
    };
    args.lora.iter().map(|lora| read(&lora.path)).collect()
}

/// Reads a PEFT directory or llama.cpp's LoRA file.
pub(crate) fn read(path: &Path, base: &Config) -> Result<Adapter> {
    if !path.is_dir() {
        let mapping = Mapping::open(path)?;
        if !mapping.starts_with(b"GGUF") {
            bail!("it is neither a PEFT directory nor a GGUF file");
        }
        return Ok(Adapter::from_gguf(base, &Gguf::parse(&mapping)?)?);
    }
    let file = |name: &str| {
        std::fs::read(path.join(name)).with_context(|| format!("{name} cannot be read"))
    };
    let config = file("adapter_config.json")?;
    let weights = path.join("adapter_model.safetensors");
    if !weights.exists() && path.join("adapter_model.bin").exists() {
        bail!("its weights are a Python pickle; save the adapter as safetensors");
    }
    Ok(Adapter::from_peft(
        base,
        &config,
        &file("adapter_model.safetensors")?,
    )?)
}

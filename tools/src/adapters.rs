//! Adapters and calibrations from files, as several subcommands take them.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use tandem_engine::adapters::calibration::{self, Kind};
use tandem_engine::{Adapter, AdapterType, Composition, Config, Model, PackedAdapter};
use tandem_formats::{Gguf, Mapping};

use crate::args::{AdapterArgs, SessionArgs};

/// Adapters and a calibration, packed, each with its weight.
pub(crate) struct Parts(Vec<(PackedAdapter<'static>, f32)>);

impl Parts {
    /// Loads what the flags name, for a model that is run as they say.
    pub(crate) fn load(
        args: &AdapterArgs,
        session: &SessionArgs,
        model: &Model<'_>,
    ) -> Result<Parts> {
        let default = || AdapterType::for_model(model, session.exact);
        let adapter_type = session.lora_type.unwrap_or_else(default);
        let adapters = read_all(args, &model.config)?;
        Parts::new(args, &model.config, adapters, adapter_type)
    }

    /// Packs adapters that were read, in the order of the flags, and the calibration.
    pub(crate) fn new(
        args: &AdapterArgs,
        base: &Config,
        adapters: Vec<Adapter>,
        adapter_type: AdapterType,
    ) -> Result<Parts> {
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
        Ok(Parts(parts))
    }

    /// Of one adapter alone.
    pub(crate) fn of(base: &Config, adapter: &Adapter) -> Result<Parts> {
        let packed = PackedAdapter::pack(base, adapter, AdapterType::F32)?;
        Ok(Parts(vec![(packed, 1.0)]))
    }

    /// The sum of all; `None` where there is nothing to add.
    pub(crate) fn composition(&self, base: &Config) -> Result<Option<Composition<'_>>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let parts: Vec<_> = self
            .0
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
fn read(path: &Path, base: &Config) -> Result<Adapter> {
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

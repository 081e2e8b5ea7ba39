//! Adapters and calibrations from files, as several subcommands take them.

use std::path::Path;

use anyhow::{Context as _, Result};
use tandem_engine::adapters::calibration::{self, Kind};
use tandem_engine::adapters::{from_bundle, from_bundled_adapter};
use tandem_engine::formats::bundle::BaseMatch;
use tandem_engine::{
    Adapter, AdapterType, Bundle, Composition, Compute, Error, Linears, Model, PackedAdapter,
};

use crate::args::{AdapterArgs, BundleArgs, SessionArgs};

/// Opens a bundle for a model. Nothing runs of one that is for another.
pub(crate) fn bundle_for(path: &Path, model: &Model) -> Result<Bundle> {
    let bundle = model.bundle(path).map_err(|error| match error {
        // Those name the file.
        Error::File(error) => error.into(),
        error => anyhow::Error::from(error).context(format!("cannot use {}", path.display())),
    })?;
    if bundle.base_match() == BaseMatch::OtherBytes {
        tell!("note: this is not the very base that the bundle was made with, but fits it");
    }
    Ok(bundle)
}

/// Adapters and a calibration, packed, each with its weight.
#[derive(Default)]
pub(crate) struct Parts {
    packed: Vec<(PackedAdapter, f32)>,
    /// The text that the composition wants to be asked with.
    pub prompt: Option<String>,
}

impl Parts {
    /// Those of a bundle's composition; a merge that is not stored is computed.
    pub(crate) fn of_bundle(
        bundle: &Bundle,
        composition: &str,
        adapter_type: AdapterType,
        compute: Compute<'_>,
    ) -> Result<Parts> {
        let parts = bundle.file().parts(composition)?;
        let base = bundle.model().linears();
        Ok(Parts {
            packed: from_bundle(base, &parts, adapter_type, compute)?,
            prompt: parts.composition.prompt.clone(),
        })
    }

    /// Loads what the flags name, for a model that is run as they say.
    pub(crate) fn load(
        adapters: &AdapterArgs,
        bundle: &BundleArgs,
        session: &SessionArgs,
        compute: Compute<'_>,
        model: &Model,
    ) -> Result<Parts> {
        let adapter_type = session.adapter_type(model);
        if let (Some(path), Some(composition)) = (&bundle.bundle, &bundle.compose) {
            let bundle = bundle_for(path, model)?;
            return Parts::of_bundle(&bundle, composition, adapter_type, compute)
                .with_context(|| format!("cannot use {}", path.display()));
        }
        let base = model.linears();
        Parts::new(adapters, base, read_all(adapters, base)?, adapter_type)
    }

    /// Packs adapters that were read, in the order of the flags, and the calibration.
    pub(crate) fn new(
        args: &AdapterArgs,
        base: &Linears,
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
        Ok(Parts {
            packed: parts,
            prompt: None,
        })
    }

    /// An adapter of a bundle alone.
    pub(crate) fn of_bundled_adapter(bundle: &Bundle, adapter: &str) -> Result<Parts> {
        let (adapter, checksum) = bundle.file().adapter(adapter)?;
        let packed = from_bundled_adapter(bundle.model().linears(), adapter, checksum)?;
        Ok(Parts {
            packed: vec![(packed, 1.0)],
            prompt: None,
        })
    }

    /// Of one adapter alone.
    pub(crate) fn of(base: &Linears, adapter: &Adapter) -> Result<Parts> {
        let packed = PackedAdapter::pack(base, adapter, AdapterType::F32)?;
        Ok(Parts {
            packed: vec![(packed, 1.0)],
            prompt: None,
        })
    }

    /// The sum of all; `None` where there is nothing to add.
    pub(crate) fn composition(&self, base: &Linears) -> Result<Option<Composition>> {
        if self.packed.is_empty() {
            return Ok(None);
        }
        let parts = self.packed.iter().map(|(part, weight)| (part, *weight));
        let composition = Composition::new(base, &parts.collect::<Vec<_>>())?;
        Ok(Some(composition.with_prompt(self.prompt.as_deref())))
    }
}

/// The adapters that the flags name, in their order.
pub(crate) fn read_all(args: &AdapterArgs, base: &Linears) -> Result<Vec<Adapter>> {
    let read = |path: &Path| {
        read(path, base).with_context(|| format!("cannot use the adapter {}", path.display()))
    };
    args.lora.iter().map(|lora| read(&lora.path)).collect()
}

/// Reads a PEFT directory or llama.cpp's LoRA file.
pub(crate) fn read(path: &Path, base: &Linears) -> Result<Adapter> {
    Ok(Adapter::open(base, path)?)
}

//! What was learned, written: calibrations, PEFT adapters, bundles.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use safetensors::tensor::{Dtype, TensorView, serialize};
use tandem_engine::adapters::Calibration;
use tandem_engine::adapters::calibration::Kind;
use tandem_engine::{Adapter, DType, Linears};
use tandem_formats::adapter::Floats;
use tandem_formats::bundle;
use tandem_formats::write_atomically;

/// Writes a file, all of it or nothing.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomically(path, |out| out.write_all(bytes))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The bytes of a safetensors file: names, shapes, values.
pub(super) fn safetensors(
    tensors: &[(String, Vec<usize>, &[f32])],
    text: Option<(&str, String)>,
) -> Result<Vec<u8>> {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, values)| values.iter().flat_map(|x| x.to_le_bytes()).collect())
        .collect();
    let mut views = Vec::new();
    for ((name, shape, _), bytes) in tensors.iter().zip(&bytes) {
        views.push((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?));
    }
    let metadata = text.map(|(key, text)| HashMap::from([(key.to_string(), text)]));
    Ok(serialize(views, metadata)?)
}

/// Writes a calibration as `--calibration` reads it: Hugging Face's names and order of rows.
pub(super) fn calibration(path: &Path, base: &Linears, calibration: &Calibration) -> Result<()> {
    let file = calibration.to_file(base);
    let mut tensors = Vec::new();
    for ((layer, module), parts) in &file {
        let named = [
            ("p", &parts.p),
            ("P1", &parts.p1),
            ("P2", &parts.p2),
            ("M", &parts.m),
        ];
        for (part, floats) in named {
            let Some(Floats {
                n_rows,
                n_cols,
                values,
            }) = floats
            else {
                continue;
            };
            let name = match layer {
                Some(layer) => format!("layers.{layer}.{module}.{part}"),
                None => format!("{module}.{part}"),
            };
            let shape = match part {
                "p" => vec![*n_rows],
                _ => vec![*n_rows, *n_cols],
            };
            tensors.push((name, shape, values.as_slice()));
        }
    }
    write(path, &safetensors(&tensors, None)?)
}

/// What PEFT keeps of an adapter beside its factors.
#[derive(Clone, Copy)]
pub(super) struct LoraConfig {
    pub rank: usize,
    pub alpha: f32,
}

/// Writes an adapter of one rank as PEFT does: a folder of two files.
pub(super) fn peft(
    folder: &Path,
    linears: &Linears,
    adapter: &Adapter,
    lora: LoraConfig,
    base: &Path,
) -> Result<()> {
    let loras = adapter.to_peft(linears);
    let mut tensors = Vec::new();
    let mut modules: Vec<&str> = Vec::new();
    for lora in &loras {
        modules.push(lora.module.rsplit('.').next().unwrap_or(&lora.module));
        for (name, floats) in [("lora_A", &lora.a), ("lora_B", &lora.b)] {
            let name = format!("base_model.model.{}.{name}.weight", lora.module);
            let shape = vec![floats.n_rows, floats.n_cols];
            tensors.push((name, shape, floats.values.as_slice()));
        }
    }
    modules.sort_unstable();
    modules.dedup();
    let config = serde_json::json!({
        "base_model_name_or_path": base.file_name().map(|name| name.to_string_lossy()),
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": lora.rank,
        "target_modules": modules,
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": false,
    });
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    // PEFT and the safetensors library want to know who wrote it.
    let weights = safetensors(&tensors, Some(("format", "pt".to_string())))?;
    write(&folder.join("adapter_model.safetensors"), &weights)?;
    let mut text = serde_json::to_vec_pretty(&config)?;
    text.push(b'\n');
    write(&folder.join("adapter_config.json"), &text)
}

/// Where a calibration goes in a bundle.
pub(super) struct Place<'a> {
    pub bundle: &'a Path,
    /// The composition that it was learned for.
    pub from: &'a str,
    /// The composition that gets it; made like the other where there is none of this name.
    pub to: &'a str,
    pub dtype: DType,
}

/// The type of a calibration in a bundle.
pub(super) fn dtype(quant: Option<&str>) -> Result<DType> {
    match quant {
        None | Some("f16") => Ok(DType::F16),
        Some("f32") => Ok(DType::F32),
        Some(other) => bail!("a learned calibration is stored in f16 or f32, not {other:?}"),
    }
}

/// Puts a calibration into a bundle.
pub(super) fn into_bundle(place: &Place<'_>, kind: Kind, calibration: &Calibration) -> Result<()> {
    let bundle = crate::bundle::open_file(place.bundle)?;
    // What is kept must be whole, or its damage would get a checksum that is right.
    bundle
        .verify()
        .with_context(|| format!("cannot use {}", place.bundle.display()))?;
    let mut contents = bundle.contents().clone();
    let name = format!("{}-{}", place.to, kind.name());
    let mut composition = contents.composition(place.from)?.clone();
    composition.name = place.to.to_string();
    composition.calibration = Some(name.clone());
    let mut compositions = contents.compositions.iter_mut();
    match compositions.find(|c| c.name == place.to) {
        Some(old) => {
            composition.description = old.description.take();
            *old = composition;
        }
        None => {
            composition.description = None;
            contents.compositions.push(composition);
        }
    }
    let others = contents.compositions.iter().filter(|c| c.name != place.to);
    let user = others
        .clone()
        .find(|c| c.calibration.as_deref() == Some(&name));
    ensure!(
        user.is_none(),
        "the composition {:?} uses a calibration of the name {name:?}, too",
        user.map_or("", |c| &c.name)
    );
    contents.calibrations.retain(|c| c.name != name);
    contents.calibrations.push(bundle::Calibration {
        name,
        kind,
        corrections: crate::bundle::corrections(calibration, kind, place.dtype)?,
    });
    let compositions = contents.compositions.iter();
    let used: Vec<_> = compositions.filter_map(|c| c.calibration.clone()).collect();
    contents.calibrations.retain(|c| used.contains(&c.name));
    contents.check()?;
    crate::bundle::write(place.bundle, &contents)
}

//! `tandem bundle extract`.

use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow};
use tandem_engine::DType;
use tandem_formats::bundle::Adapter;
use tandem_formats::{Value, Writer, write_atomically};

/// Write an adapter of a bundle as a LoRA file of llama.cpp
///
/// A GGUF file of float32 factors, which hold exactly what the bundle's do.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The bundle
    file: PathBuf,
    /// The adapter
    #[arg(long, value_name = "NAME")]
    adapter: String,
    /// Where to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(super) fn extract(args: &Args) -> Result<()> {
    let bundle = super::open_file(&args.file)?;
    let (adapter, _) = bundle
        .adapter(&args.adapter)
        .with_context(|| format!("cannot use {}", args.file.display()))?;
    let architecture = &bundle.contents().architecture;
    let bytes = lora_gguf(adapter, architecture)?;
    write_atomically(&args.out, |out| std::io::Write::write_all(out, &bytes))
        .with_context(|| format!("cannot write {}", args.out.display()))
}

/// The adapter as llama.cpp's file, which has one alpha for all linears and no scale of each: where
/// they have different ones, B takes its own and alpha is 0, which means a scale of 1.
fn lora_gguf(adapter: &Adapter, architecture: &str) -> Result<Vec<u8>> {
    let alphas = adapter.factors.iter().map(|f| f.scale * f.rank as f32);
    let alpha = alphas.clone().next().unwrap_or(0.0);
    // One that divides back to the very scales.
    let is_shared = alpha != 0.0
        && adapter
            .factors
            .iter()
            .all(|f| alpha / f.rank as f32 == f.scale);
    let mut writer = Writer::new();
    writer.add("general.type", Value::Str("adapter"))?;
    writer.add("general.architecture", Value::Str(architecture))?;
    writer.add("general.name", Value::Str(&adapter.name))?;
    writer.add("adapter.type", Value::Str("lora"))?;
    let alpha = if is_shared { alpha } else { 0.0 };
    writer.add("adapter.lora.alpha", Value::F32(alpha))?;
    let mut data: Vec<Vec<u8>> = Vec::new();
    for f in &adapter.factors {
        let (a, mut b) = f
            .values(adapter.dtype)
            .ok_or_else(|| anyhow!("adapter {}, {}: no valid factors", adapter.name, f.linear))?;
        if !is_shared {
            b.iter_mut().for_each(|x| *x *= f.scale);
        }
        let linear = &f.linear;
        let shape = [f.n_in, f.rank];
        writer.add_tensor(&format!("{linear}.weight.lora_a"), &shape, DType::F32)?;
        let shape = [f.rank, f.n_out];
        writer.add_tensor(&format!("{linear}.weight.lora_b"), &shape, DType::F32)?;
        data.extend([a, b].map(|x| bytemuck::cast_slice(&x).to_vec()));
    }
    let data: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
    Ok(writer.to_vec(&data)?)
}

//! `tandem synth`: models of random weights at real models' shapes, for timing.

mod plan;
mod shapes;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};
use rayon::prelude::*;
use tandem_formats::{Writer, write_atomically};
use tandem_kernels::quant;

use plan::{Planned, adapter_metadata, metadata, plan, plan_adapter};
use shapes::ShapeName;

use crate::progress::Progress;
use crate::quantize::{Target, parse_target};

/// Write a model of random weights, for timing
///
/// It has a real model's shapes and a vocabulary of the real size: as fast and as large as the real
/// one, where that cannot be had. What it generates is noise. The same shape, type and seed give
/// the same file.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where to write
    output: PathBuf,
    /// Whose shapes
    #[arg(long, value_enum)]
    shape: ShapeName,
    /// Type of the matrices; as for `tandem quantize`
    #[arg(long = "type", value_name = "TYPE", value_parser = parse_target)]
    target: Target,
    /// Seed of the random numbers
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Write a LoRA adapter of this rank for such a model instead, on all linears; types F32, F16,
    /// BF16, Q8_0
    #[arg(long, value_name = "R")]
    lora_rank: Option<NonZeroUsize>,
    /// Only the first N layers, of a model that is too large
    #[arg(long, value_name = "N")]
    layers: Option<NonZeroUsize>,
}

pub(crate) fn synth(args: &Args) -> Result<()> {
    let mut shape = args.shape.shape();
    if let Some(n) = args.layers {
        ensure!(
            n.get() <= shape.n_layer && shape.gemma4.is_none(),
            "--layers takes at most the model's {}, and none of Gemma 4's",
            shape.n_layer
        );
        shape.n_layer = n.get();
    }
    let mut writer = Writer::new();
    let tensors = match args.lora_rank {
        None => {
            metadata(&mut writer, &shape, args.target)?;
            plan(&shape, args.target)?
        }
        Some(rank) => {
            adapter_metadata(&mut writer, &shape, rank.get())?;
            plan_adapter(&shape, rank.get(), args.target)?
        }
    };
    for t in &tensors {
        writer.add_tensor(&t.name, &t.shape, t.dtype)?;
    }
    let n_elements: usize = tensors
        .iter()
        .map(|t| t.shape.iter().product::<usize>())
        .sum();
    let progress = Progress::new(n_elements as u64, "writing");
    write_atomically(&args.output, |file| -> Result<()> {
        let mut data = writer.start(file)?;
        for (i, t) in tensors.iter().enumerate() {
            let seed = args.seed.wrapping_mul(1 << 20).wrapping_add(i as u64);
            random(t, seed, |bytes| Ok(data.write(&t.name, bytes)?))?;
            progress.add(t.shape.iter().product::<usize>() as u64);
        }
        data.finish()?;
        Ok(())
    })
    .with_context(|| format!("cannot write {}", args.output.display()))
}

/// Blocks that are encoded for a tensor; its others are picked from them at random, as encoding
/// every one would take minutes for a large model.
const POOL_BLOCKS: usize = 4096;
/// Elements made at once.
const SLAB_LEN: usize = 1 << 24;

/// Gives a tensor's bytes to `write`, piece by piece.
fn random(t: &Planned, seed: u64, mut write: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let n_elements: usize = t.shape.iter().product();
    let Some(deviation) = t.deviation else {
        return write(&1.0_f32.to_le_bytes().repeat(n_elements));
    };
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let block_len = t.dtype.block_len();
    let n_bytes = t.dtype.block_bytes();
    let values: Vec<f32> = (0..POOL_BLOCKS * block_len)
        .map(|_| normal(&mut rng) * deviation)
        .collect();
    let mut pool = vec![0; POOL_BLOCKS * n_bytes];
    quant::quantize(t.dtype, &values, &mut pool);
    let n_blocks = n_elements / block_len;
    ensure!(
        n_blocks * block_len == n_elements,
        "tensor {}: partial blocks",
        t.name
    );
    let slab_blocks = SLAB_LEN / block_len;
    let mut slab = Vec::new();
    for start in (0..n_blocks).step_by(slab_blocks) {
        slab.resize(slab_blocks.min(n_blocks - start) * n_bytes, 0);
        // Each chunk has its own stream of numbers, so that the threads do not change the file.
        slab.par_chunks_mut(4096 * n_bytes)
            .enumerate()
            .for_each(|(chunk, bytes)| {
                let stream = seed ^ ((start + chunk * 4096) as u64) << 24;
                let mut rng = Xoshiro256PlusPlus::seed_from_u64(stream);
                for block in bytes.chunks_exact_mut(n_bytes) {
                    let pick = rng.next_u64() as usize % POOL_BLOCKS;
                    block.copy_from_slice(&pool[pick * n_bytes..][..n_bytes]);
                }
            });
        write(&slab)?;
    }
    Ok(())
}

/// A normal number, by the sum of twelve uniform ones (Irwin-Hall), which is near enough here.
fn normal(rng: &mut Xoshiro256PlusPlus) -> f32 {
    let uniform = |bits: u64| (bits & 0xffff) as f32 / 65536.0;
    let sum: f32 = (0..3)
        .map(|_| rng.next_u64())
        .flat_map(|x| [x, x >> 16, x >> 32, x >> 48])
        .map(uniform)
        .sum();
    sum - 6.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_numbers_have_the_deviation() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let x: Vec<f32> = (0..10_000).map(|_| normal(&mut rng)).collect();
        let mean = x.iter().sum::<f32>() / 1e4;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / 1e4;
        assert!(mean.abs() < 0.05 && (variance - 1.0).abs() < 0.05);
    }
}

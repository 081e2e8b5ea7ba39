//! `tandem merge`: a model with adapters baked into its weights.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::ops::Range;
use std::path::PathBuf;

use anyhow::{Result, anyhow, bail, ensure};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use rayon::prelude::*;
use tandem_engine::adapters::{MergeMethod, MergeOptions, merge as merge_adapters};
use tandem_engine::{Adapter, AdapterType, Composition, Compute, DType, Level, LinearId, Linears};
use tandem_formats::{Gguf, Tensor};
use tandem_kernels::quant;

use crate::adapters::{Parts, read_all};
use crate::args::AdapterArgs;
use crate::open;
use crate::progress::Progress;
use crate::quantize::{
    NewModel, NewTensor, Plan, Target, Write, convert, parse_target, refuse_input,
};
use tandem_engine::threads;

/// Bake adapters into a model's weights
///
/// The result is a model like any other, for engines that know no adapters. Weights that are
/// quantized again lose some of what the adapters add; how much is printed for each kind of module.
/// Running the model with --lora loses nothing.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The model: a GGUF file (of a split model, the first part)
    #[arg(long, short, value_name = "FILE")]
    model: PathBuf,
    #[command(flatten)]
    adapters: AdapterArgs,
    /// How to merge several adapters; all but cat, svd and slerp work on the factors
    #[arg(long, value_name = "METHOD", default_value = "cat", value_parser = methods())]
    method: MergeMethod,
    /// Merge the products of the factors, not the factors (PEFT's methods that end in _svd)
    #[arg(long)]
    dense: bool,
    /// The share of values that ties, dare_* and magnitude_prune keep
    #[arg(long, value_name = "D", default_value_t = 0.5)]
    density: f64,
    /// The rank of svd and of dense merges [default: the largest of the adapters']
    #[arg(long, value_name = "R")]
    rank: Option<usize>,
    /// Decides which values dare_* drops
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Where to write; an existing file is replaced when the new one is complete
    #[arg(long, short, value_name = "OUT.gguf")]
    out: PathBuf,
    /// Store the weights in this type, as `quantize` does [default: the types that they have]
    #[arg(long = "type", value_name = "TYPE", value_parser = parse_target)]
    target: Option<Target>,
}

fn methods() -> impl TypedValueParser<Value = MergeMethod> {
    PossibleValuesParser::new(MergeMethod::ALL.map(MergeMethod::name))
        .map(|name| MergeMethod::from_name(&name).unwrap_or(MergeMethod::Cat))
}

/// What the weights changed by, and the error that their types make of it, both squared.
#[derive(Clone, Copy, Debug, Default)]
struct Loss {
    delta: f64,
    error: f64,
}

impl Loss {
    fn add(self, other: Loss) -> Loss {
        Loss {
            delta: self.delta + other.delta,
            error: self.error + other.error,
        }
    }
}

pub(crate) fn merge(args: &Args) -> Result<()> {
    ensure!(
        !args.adapters.lora.is_empty() || args.adapters.calibration.is_some(),
        "there is nothing to merge: give --lora"
    );
    let files = open::files(&args.model)?;
    let gguf = files.parse()?;
    let model = open::model(&args.model)?;
    let base = model.linears();
    refuse_input(&files, &args.out)?;
    let parts = load(args, base)?;
    let composition = parts
        .composition(base)?
        .ok_or_else(|| anyhow!("there is nothing to merge"))?;

    let plan = args
        .target
        .map(|target| Plan::new(target, false, &gguf))
        .transpose()?;
    let mut tensors: Vec<NewTensor> = Vec::new();
    for t in gguf.tensors() {
        let dtype = plan.as_ref().map_or(Ok(t.dtype), |plan| plan.dtype(t))?;
        tensors.push((t.name.to_string(), t.shape().to_vec(), dtype));
    }
    let biases = biases(&gguf, base, &composition)?;
    for (name, bias) in &biases {
        match tensors.iter_mut().find(|(n, ..)| n == name) {
            Some(tensor) => tensor.2 = DType::F32,
            None => tensors.push((name.clone(), vec![bias.len()], DType::F32)),
        }
    }
    let mut losses: BTreeMap<String, Loss> = BTreeMap::new();
    let new = NewModel {
        gguf: &gguf,
        target: args.target,
        tensors: &tensors,
    };
    let progress = Progress::new(0, "writing");
    let advance = &mut |n_done, n| {
        progress.set(n_done, n);
        Ok(())
    };
    new.write(&args.out, advance, |i, write| {
        let (name, _, dtype) = &tensors[i];
        if let Some(bias) = biases.get(name) {
            let bytes: Vec<u8> = bias.iter().flat_map(|x| x.to_le_bytes()).collect();
            return write(&bytes);
        }
        // New tensors are biases, and stand at the end.
        let t = &gguf.tensors()[i];
        let linears = linears(base, t);
        if !linears
            .iter()
            .any(|(id, _)| composition.changes_weights(*id))
        {
            return convert(t, *dtype, write);
        }
        let loss = bake(t, *dtype, &linears, &composition, write)?;
        let all = losses.entry(module(t.name)).or_default();
        *all = all.add(loss);
        Ok(())
    })?;
    drop(progress);
    report(&losses)
}

/// Prints what rounding lost; the error of a delta that is kept whole is 0, that of one that is
/// lost is 1.
fn report(losses: &BTreeMap<String, Loss>) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "| module | relative error of what the adapters add |")?;
    writeln!(out, "|---|---:|")?;
    for (module, loss) in losses {
        let error = (loss.error / loss.delta.max(f64::MIN_POSITIVE)).sqrt();
        writeln!(out, "| {module} | {error:.4} |")?;
    }
    Ok(())
}

/// The adapters, merged into one where the method is no sum, and the calibration.
fn load(args: &Args, base: &Linears) -> Result<Parts> {
    let adapters = read_all(&args.adapters, base)?;
    if args.method == MergeMethod::Cat || adapters.is_empty() {
        return Parts::new(&args.adapters, base, adapters, AdapterType::F32);
    }
    if args.adapters.calibration.is_some() {
        bail!("a calibration goes with the method cat, on which it was learned");
    }
    let weights: Vec<f32> = args.adapters.lora.iter().map(|lora| lora.scale).collect();
    let mut options = MergeOptions::new(args.method);
    options.dense = args.dense;
    options.density = args.density;
    options.rank = args.rank;
    options.seed = args.seed;
    let adapters: Vec<&Adapter> = adapters.iter().collect();
    let pool = threads::all();
    let compute = Compute::new(Level::detect(), &pool);
    let merged = merge_adapters(base, &adapters, &weights, &options, compute)?;
    Parts::of(base, &merged)
}

/// The linears in a tensor, each with its rows; none where adapters cannot change it.
fn linears(base: &Linears, t: &Tensor<'_>) -> Vec<(LinearId, Range<usize>)> {
    let name = t.name.strip_suffix(".weight");
    let parts = name.and_then(|name| base.of_tensor(name, t.n_rows()).ok());
    parts.map_or(Vec::new(), |parts| parts.linears.clone())
}

/// A tensor's name without its layer: `attn_q`.
fn module(name: &str) -> String {
    let name = name.strip_suffix(".weight").unwrap_or(name);
    name.rsplit('.').next().unwrap_or(name).to_string()
}

/// The bias tensors that the composition adds to or makes, by name.
fn biases(
    gguf: &Gguf<'_>,
    base: &Linears,
    composition: &Composition,
) -> Result<BTreeMap<String, Vec<f32>>> {
    let tied = gguf.tensor("output.weight").is_none();
    if tied && composition.changes_weights(base.output()) {
        bail!("an adapter changes the output, which is tied to the embeddings in this model");
    }
    let mut biases = BTreeMap::new();
    for t in gguf.tensors() {
        let linears = linears(base, t);
        if linears
            .iter()
            .all(|(id, _)| composition.bias(*id).is_none())
        {
            continue;
        }
        let name = format!("{}.bias", t.name.trim_end_matches(".weight"));
        let mut sum = vec![0.0; t.n_rows()];
        if let Some(old) = gguf.tensor(&name) {
            quant::dequantize(old.dtype, old.data, &mut sum);
        }
        for (id, rows) in linears {
            let bias = composition.bias(id).unwrap_or_default();
            sum[rows].iter_mut().zip(bias).for_each(|(s, b)| *s += b);
        }
        biases.insert(name, sum);
    }
    Ok(biases)
}

/// Rows that are changed at once by one thread.
const CHUNK_ROWS: usize = 64;
/// Chunks between writes.
const SLAB_CHUNKS: usize = 64;

/// Gives a tensor's bytes with the composition's terms added to `write`.
fn bake(
    t: &Tensor<'_>,
    dtype: DType,
    linears: &[(LinearId, Range<usize>)],
    composition: &Composition,
    write: &mut Write<'_>,
) -> Result<Loss> {
    let n_cols = t.n_cols();
    let sizes = t.dtype.row_bytes(n_cols).zip(dtype.row_bytes(n_cols));
    let (in_bytes, out_bytes) =
        sizes.ok_or_else(|| anyhow!("tensor {}: rows of partial blocks", t.name))?;
    ensure!(
        quant::can_encode(dtype),
        "tensor {} is stored as {dtype}, which cannot be written: give --type",
        t.name
    );
    let mut total = Loss::default();
    let mut out = Vec::new();
    let slabs = t.data.chunks(SLAB_CHUNKS * CHUNK_ROWS * in_bytes);
    for (slab, data) in slabs.enumerate() {
        out.resize(data.len() / in_bytes * out_bytes, 0);
        let chunks = data.par_chunks(CHUNK_ROWS * in_bytes);
        let chunks = chunks.zip(out.par_chunks_mut(CHUNK_ROWS * out_bytes));
        let loss = chunks
            .enumerate()
            .map(|(chunk, (from, to))| {
                let first = (slab * SLAB_CHUNKS + chunk) * CHUNK_ROWS;
                let n_rows = from.len() / in_bytes;
                let mut before = vec![0.0; n_rows * n_cols];
                quant::dequantize(t.dtype, from, &mut before);
                let mut w = before.clone();
                for (id, rows) in linears {
                    // The rows of this chunk that belong to the linear.
                    let start = rows.start.max(first);
                    let end = rows.end.min(first + n_rows);
                    if start < end {
                        let w = &mut w[(start - first) * n_cols..(end - first) * n_cols];
                        composition.add_to_weights(*id, start - rows.start..end - rows.start, w);
                    }
                }
                quant::quantize(dtype, &w, to);
                let mut after = vec![0.0; w.len()];
                quant::dequantize(dtype, to, &mut after);
                let square = |x: f32| f64::from(x) * f64::from(x);
                let values = before.iter().zip(&w).zip(&after);
                values.fold(Loss::default(), |loss, ((before, w), after)| {
                    loss.add(Loss {
                        delta: square(w - before),
                        error: square(after - w),
                    })
                })
            })
            .reduce(Loss::default, Loss::add);
        ensure!(
            loss.error.is_finite() && loss.delta.is_finite(),
            "tensor {} holds values that are infinite or no numbers",
            t.name
        );
        total = total.add(loss);
        write(&out)?;
    }
    Ok(total)
}

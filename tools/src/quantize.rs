//! `tandem quantize`: a model's weights in another type.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rayon::prelude::*;
use tandem_engine::DType;
use tandem_formats::{Gguf, GgufFiles, Tensor, Value, Writer, write_atomically};
use tandem_kernels::quant;

use crate::open;
use crate::progress::Progress;

/// Store a model's weights in another type
///
/// Matrices are stored in the new type, vectors (norms, biases) stay as they are. Types: F32, F16,
/// BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, Q8_K, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS,
/// TQ1_0, TQ2_0; mixes that give the matrices which matter most a larger type: Q2_K_M, Q3_K_M,
/// Q3_K_L, Q4_K_S, Q4_K_M, Q5_K_S, Q5_K_M.
#[derive(clap::Args)]
pub struct Args {
    /// The model (of a split model, the first part)
    pub input: PathBuf,
    /// Where to write; an existing file is replaced when the new one is complete
    pub output: PathBuf,
    /// The type, or a mix of types
    #[arg(value_name = "TYPE", value_parser = parse_target)]
    pub target: Target,
    /// Store all matrices in this type; otherwise the output matrix is kept in Q6_K at least
    #[arg(long)]
    pub pure: bool,
}

/// What to store matrices as.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    dtype: DType,
    mix: Mix,
}

/// Which matrices get a larger type; the rules are llama.cpp's.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mix {
    Plain,
    Small,
    Medium,
    Large,
}

/// Names, types and llama.cpp's numbers for `general.file_type`; it has none for the types that it
/// does not store weights in.
const TARGETS: [(&str, DType, Mix, Option<u32>); 26] = [
    ("F32", DType::F32, Mix::Plain, Some(0)),
    ("F16", DType::F16, Mix::Plain, Some(1)),
    ("BF16", DType::BF16, Mix::Plain, Some(32)),
    ("Q4_0", DType::Q4_0, Mix::Plain, Some(2)),
    ("Q4_1", DType::Q4_1, Mix::Plain, Some(3)),
    ("Q5_0", DType::Q5_0, Mix::Plain, Some(8)),
    ("Q5_1", DType::Q5_1, Mix::Plain, Some(9)),
    ("Q8_0", DType::Q8_0, Mix::Plain, Some(7)),
    ("Q8_1", DType::Q8_1, Mix::Plain, None),
    ("Q8_K", DType::Q8_K, Mix::Plain, None),
    ("Q2_K", DType::Q2_K, Mix::Plain, Some(21)),
    ("Q2_K_M", DType::Q2_K, Mix::Medium, Some(10)),
    ("Q3_K", DType::Q3_K, Mix::Plain, Some(11)),
    ("Q3_K_M", DType::Q3_K, Mix::Medium, Some(12)),
    ("Q3_K_L", DType::Q3_K, Mix::Large, Some(13)),
    ("Q4_K", DType::Q4_K, Mix::Plain, Some(14)),
    ("Q4_K_S", DType::Q4_K, Mix::Small, Some(14)),
    ("Q4_K_M", DType::Q4_K, Mix::Medium, Some(15)),
    ("Q5_K", DType::Q5_K, Mix::Plain, Some(16)),
    ("Q5_K_S", DType::Q5_K, Mix::Small, Some(16)),
    ("Q5_K_M", DType::Q5_K, Mix::Medium, Some(17)),
    ("Q6_K", DType::Q6_K, Mix::Plain, Some(18)),
    ("IQ4_NL", DType::IQ4_NL, Mix::Plain, Some(25)),
    ("IQ4_XS", DType::IQ4_XS, Mix::Plain, Some(30)),
    ("TQ1_0", DType::TQ1_0, Mix::Plain, Some(36)),
    ("TQ2_0", DType::TQ2_0, Mix::Plain, Some(37)),
];

/// The type, or mix of types, of a name.
///
/// # Errors
///
/// No such name; the error lists them.
pub fn parse_target(name: &str) -> Result<Target, String> {
    let found = TARGETS.iter().find(|(n, ..)| n.eq_ignore_ascii_case(name));
    let (_, dtype, mix, _) = found.ok_or_else(|| {
        let names: Vec<_> = TARGETS.iter().map(|(n, ..)| *n).collect();
        format!("known types are {}", names.join(", "))
    })?;
    Ok(Target {
        dtype: *dtype,
        mix: *mix,
    })
}

impl Target {
    /// The type of most matrices.
    pub(crate) fn dtype(self) -> DType {
        self.dtype
    }

    /// The number in `general.file_type`.
    pub(crate) fn file_type(self) -> Option<u32> {
        let found = TARGETS
            .iter()
            .find(|(_, dtype, mix, _)| (*dtype, *mix) == (self.dtype, self.mix));
        found.and_then(|t| t.3)
    }
}

/// Elements converted at once: what bounds the memory this takes.
const SLAB_LEN: usize = 1 << 24;

/// What quantizing made of a model.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Quantized {
    /// Bytes of all weights.
    pub n_bytes: usize,
    /// The same before.
    pub n_bytes_before: usize,
    /// Numbers in all weights.
    pub n_elements: usize,
}

pub(crate) fn quantize_command(args: &Args) -> Result<()> {
    let progress = Progress::new(0, "writing");
    let done = quantize(args, &|note| tell!("{note}"), &mut |n_done, n| {
        progress.set(n_done, n);
        Ok(())
    })?;
    drop(progress);
    tell!(
        "{:.1} MB of weights, {:.2} bits each (were {:.1} MB)",
        done.n_bytes as f64 / 1e6,
        done.n_bytes as f64 * 8.0 / done.n_elements as f64,
        done.n_bytes_before as f64 / 1e6,
    );
    Ok(())
}

/// Is told how much is done, and of how much; an error ends the work.
pub type Advance<'a> = dyn FnMut(u64, u64) -> Result<()> + 'a;

/// Stores a model's weights in another type, as `tandem quantize` does. `note` is told before which matrices get
/// another type than was asked for, if any.
///
/// # Errors
///
/// A model that cannot be read or has no weights, rows that do not fit the type, weights that are no finite
/// numbers, an output that cannot be written or is the input; what `advance` gives.
pub fn quantize(args: &Args, note: &dyn Fn(&str), advance: &mut Advance<'_>) -> Result<Quantized> {
    let files = open::files(&args.input)?;
    let gguf = files.parse()?;
    ensure!(
        !gguf.tensors().is_empty(),
        "{} has no weights",
        args.input.display()
    );
    refuse_input(&files, &args.output)?;
    let plan = Plan::new(args.target, args.pure, &gguf)?;
    let mut tensors = Vec::new();
    for t in gguf.tensors() {
        tensors.push((t.name.to_string(), t.shape().to_vec(), plan.dtype(t)?));
    }
    if let Some(fallbacks) = fallbacks(&plan, &tensors) {
        note(&fallbacks);
    }
    let new = NewModel {
        gguf: &gguf,
        target: Some(args.target),
        tensors: &tensors,
    };
    let n_bytes = new.write(&args.output, advance, |i, write| {
        convert(&gguf.tensors()[i], tensors[i].2, write)
    })?;
    Ok(Quantized {
        n_bytes,
        n_bytes_before: gguf.tensors().iter().map(|t| t.data.len()).sum(),
        n_elements: gguf.tensors().iter().map(Tensor::n_elements).sum(),
    })
}

/// Which matrices get another type than was asked for, as their rows are no whole number of its blocks.
fn fallbacks(plan: &Plan, tensors: &[NewTensor]) -> Option<String> {
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let matrices = tensors
        .iter()
        .filter(|(name, shape, _)| is_matrix(name, shape));
    for (name, shape, dtype) in matrices {
        let wanted = plan.mixed(name);
        let n_cols = shape.first().copied().unwrap_or(0);
        if *dtype != wanted && !n_cols.is_multiple_of(wanted.block_len()) {
            *counts.entry((wanted.name(), dtype.name())).or_default() += 1;
        }
    }
    if counts.is_empty() {
        return None;
    }
    let n: usize = counts.values().sum();
    let instead = counts.iter();
    let instead = instead.map(|((wanted, got), n)| format!("{n} in {got} instead of {wanted}"));
    Some(format!(
        "{n} matrices have rows that no whole number of blocks fills, and go into types of smaller blocks, \
         which makes the file larger: {}",
        instead.collect::<Vec<_>>().join(", ")
    ))
}

/// Whether a tensor is one whose type is chosen.
fn is_matrix(name: &str, shape: &[usize]) -> bool {
    // Routers choose by small differences; convolutions, positions and Gemma 3n's other streams are added to
    // everything.
    let others = [
        "conv.weight",
        "conv1d.weight",
        "ffn_gate_inp.weight",
        "ffn_gate_inp_shexp.weight",
        "position_embd.weight",
    ];
    let parts = ["_norm", "altup_", "laurel_"];
    let is_other = parts.iter().any(|part| name.contains(part))
        || others.iter().any(|other| name.ends_with(other));
    let n_dims = if name.contains("_exps.") { 3 } else { 2 };
    shape.len() == n_dims && name.ends_with(".weight") && !is_other
}

/// An output that is one of the files being read would destroy them.
pub(crate) fn refuse_input(files: &GgufFiles, output: &Path) -> Result<()> {
    let same = |path: &Path| match (path.canonicalize(), output.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    };
    if files.paths().any(same) {
        bail!("{} is the input", output.display());
    }
    Ok(())
}

/// A tensor to be written: name, shape, type.
pub(crate) type NewTensor = (String, Vec<usize>, DType);

/// Takes bytes, piece by piece.
pub(crate) type Write<'w> = dyn FnMut(&[u8]) -> Result<()> + 'w;

/// A model with the metadata of another, and other tensors.
pub(crate) struct NewModel<'a> {
    pub gguf: &'a Gguf<'a>,
    /// Told by the metadata, where it is another than the file's.
    pub target: Option<Target>,
    pub tensors: &'a [NewTensor],
}

impl NewModel<'_> {
    /// Writes the model; `data` gives the bytes of the tensor number `i`. Returns the bytes of all tensors.
    pub(crate) fn write(
        &self,
        output: &Path,
        advance: &mut Advance<'_>,
        mut data: impl FnMut(usize, &mut Write<'_>) -> Result<()>,
    ) -> Result<usize> {
        let mut writer = Writer::new();
        for (key, value) in self.gguf.metadata() {
            let is_about_types =
                ["general.file_type", "general.quantization_version"].contains(&key);
            let is_replaced = is_about_types && self.target.is_some();
            if !key.starts_with("split.") && !is_replaced {
                writer.add(key, *value)?;
            }
        }
        if let Some(target) = self.target {
            if let Some(n) = target.file_type() {
                writer.add("general.file_type", Value::U32(n))?;
            }
            // The version of ggml's quantization formats, which has been 2 since May 2023.
            writer.add("general.quantization_version", Value::U32(2))?;
        }
        let mut n_elements = 0;
        for (name, shape, dtype) in self.tensors {
            writer.add_tensor(name, shape, *dtype)?;
            n_elements += shape.iter().product::<usize>() as u64;
        }
        write_atomically(output, |file| -> Result<usize> {
            let mut out = writer.start(file)?;
            let (mut n_written, mut n_done) = (0, 0);
            for (i, (name, shape, _)) in self.tensors.iter().enumerate() {
                data(i, &mut |bytes| {
                    n_written += bytes.len();
                    Ok(out.write(name, bytes)?)
                })?;
                n_done += shape.iter().product::<usize>() as u64;
                advance(n_done, n_elements)?;
            }
            out.finish()?;
            Ok(n_written)
        })
        .with_context(|| format!("cannot write {}", output.display()))
    }
}

/// Gives the tensor's bytes in another type to `write`.
pub(crate) fn convert(t: &Tensor<'_>, dtype: DType, write: &mut Write<'_>) -> Result<()> {
    if t.dtype == dtype {
        return write(t.data);
    }
    let n_cols = t.n_cols();
    let sizes = t.dtype.row_bytes(n_cols).zip(dtype.row_bytes(n_cols));
    let (in_bytes, out_bytes) =
        sizes.ok_or_else(|| anyhow!("tensor {}: rows of partial blocks", t.name))?;
    let slab_rows = (SLAB_LEN / n_cols).max(1);
    let mut out = Vec::new();
    for slab in t.data.chunks(slab_rows * in_bytes) {
        out.resize(slab.len() / in_bytes * out_bytes, 0);
        let rows = slab
            .par_chunks_exact(in_bytes)
            .zip(out.par_chunks_exact_mut(out_bytes));
        let finite = rows
            .map_init(
                || vec![0.0; n_cols],
                |row, (from, to)| {
                    quant::dequantize(t.dtype, from, row);
                    quant::quantize(dtype, row, to);
                    row.iter().all(|x| x.is_finite())
                },
            )
            .reduce(|| true, |a, b| a & b);
        ensure!(
            finite,
            "tensor {} holds values that are infinite or no numbers",
            t.name
        );
        write(&out)?;
    }
    Ok(())
}

/// Decides each tensor's type.
pub(crate) struct Plan {
    pub target: Target,
    pub pure: bool,
    pub n_layer: usize,
    /// Whether the embeddings are the output matrix, too.
    pub tied: bool,
    /// Whether at least four query heads share a KV head.
    pub few_kv_heads: bool,
}

impl Plan {
    pub(crate) fn new(target: Target, pure: bool, gguf: &Gguf<'_>) -> Result<Plan> {
        let arch = gguf.get_str("general.architecture")?.unwrap_or("");
        let count = |key: &str| count(gguf, &format!("{arch}.{key}"));
        let n_head = count("attention.head_count")?;
        let n_head_kv = count("attention.head_count_kv")?;
        Ok(Plan {
            target,
            pure,
            n_layer: count("block_count")? as usize,
            tied: gguf.tensor("output.weight").is_none(),
            few_kv_heads: n_head_kv > 0 && n_head / n_head_kv >= 4,
        })
    }

    pub(crate) fn dtype(&self, t: &Tensor<'_>) -> Result<DType> {
        let is_weight =
            t.dtype.is_quantized() || matches!(t.dtype, DType::F32 | DType::F16 | DType::BF16);
        if !is_matrix(t.name, t.shape()) || !is_weight {
            return Ok(t.dtype);
        }
        self.matrix_type(t.name, t.n_cols()).ok_or_else(|| {
            let wanted = self.target.dtype;
            anyhow!(
                "tensor {}: rows of {} elements are no whole number of {wanted} blocks",
                t.name,
                t.n_cols()
            )
        })
    }

    /// The type of a matrix with rows of `n_cols`; `None` where only another one would fit and
    /// that is not allowed.
    pub(crate) fn matrix_type(&self, name: &str, n_cols: usize) -> Option<DType> {
        let fits = |dtype: &DType| n_cols.is_multiple_of(dtype.block_len());
        if self.pure {
            return Some(self.target.dtype).filter(fits);
        }
        let wanted = self.mixed(name);
        [wanted, smaller_block(wanted), DType::F16]
            .into_iter()
            .find(fits)
    }

    /// The mix's type for a matrix.
    fn mixed(&self, name: &str) -> DType {
        use DType::*;
        let Target { dtype, mix } = self.target;
        let is_output = name == "output.weight" || (self.tied && name == "token_embd.weight");
        if is_output && dtype.is_quantized() && ![Q8_0, Q8_1, Q8_K].contains(&dtype) {
            return Q6_K;
        }
        // All layers' inputs hang on it, so llama.cpp leaves it as it is, too.
        if name == "per_layer_model_proj.weight" && dtype.is_quantized() {
            return F16;
        }
        let layer = name
            .strip_prefix("blk.")
            .and_then(|rest| rest.split('.').next()?.parse().ok());
        let Some(layer): Option<usize> = layer else {
            return dtype;
        };
        let n = self.n_layer;
        // The first and last eighth of the layers, and every third between them.
        let more_bits = layer < n / 8 || layer >= 7 * n / 8 || (layer - n / 8) % 3 == 2;
        let v = name.ends_with("attn_v.weight") || name.ends_with("attn_qkv.weight");
        let down = name.ends_with("ffn_down.weight") || name.ends_with("ffn_down_exps.weight");
        let o = name.ends_with("attn_output.weight");
        match (dtype, mix) {
            (Q2_K, Mix::Medium) if v && self.few_kv_heads => Q4_K,
            (Q2_K, Mix::Medium) if v || down || o => Q3_K,
            (Q3_K, Mix::Medium) if v => {
                if layer < 2 {
                    Q5_K
                } else {
                    Q4_K
                }
            }
            (Q3_K, Mix::Medium) if down => {
                if layer < n / 16 {
                    Q5_K
                } else {
                    Q4_K
                }
            }
            (Q3_K, Mix::Medium) if o => Q4_K,
            (Q3_K, Mix::Large) if v || down || o => Q5_K,
            (Q4_K, Mix::Small) if (v && layer < 4) || (down && layer < n / 8) => Q5_K,
            (Q4_K | Q5_K, Mix::Medium) if (v || down) && more_bits => Q6_K,
            _ => dtype,
        }
    }
}

/// A number of the metadata, 0 where there is none; of a list with one for each layer the largest.
fn count(gguf: &Gguf<'_>, key: &str) -> Result<u32> {
    let Some(Value::Array(values)) = gguf.get(key) else {
        return Ok(gguf.get_u32(key)?.unwrap_or(0));
    };
    let values = values.iter_values().into_iter().flatten();
    let largest = values.filter_map(|value| value.as_integer()).max();
    Ok(largest.and_then(|n| u32::try_from(n).ok()).unwrap_or(0))
}

/// A type of about the same size with blocks of 32, for rows that are no multiple of 256.
fn smaller_block(dtype: DType) -> DType {
    match dtype {
        DType::Q2_K | DType::Q3_K | DType::IQ4_XS | DType::TQ1_0 | DType::TQ2_0 => DType::IQ4_NL,
        DType::Q4_K => DType::Q5_0,
        DType::Q5_K => DType::Q5_1,
        DType::Q6_K | DType::Q8_K => DType::Q8_0,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(target: &str, tied: bool) -> Plan {
        Plan {
            target: parse_target(target).unwrap(),
            pure: false,
            n_layer: 16,
            tied,
            few_kv_heads: true,
        }
    }

    #[test]
    fn mixes_give_more_bits_to_what_matters() {
        let p = plan("q4_k_m", false);
        assert_eq!(p.mixed("blk.0.attn_v.weight"), DType::Q6_K);
        assert_eq!(p.mixed("blk.2.attn_v.weight"), DType::Q4_K);
        assert_eq!(p.mixed("blk.4.ffn_down.weight"), DType::Q6_K);
        assert_eq!(p.mixed("blk.15.ffn_down.weight"), DType::Q6_K);
        assert_eq!(p.mixed("blk.0.attn_q.weight"), DType::Q4_K);
        assert_eq!(p.mixed("output.weight"), DType::Q6_K);
        assert_eq!(p.mixed("token_embd.weight"), DType::Q4_K);
        assert_eq!(plan("Q4_0", true).mixed("token_embd.weight"), DType::Q6_K);
        assert_eq!(plan("Q8_0", true).mixed("token_embd.weight"), DType::Q8_0);
        assert_eq!(
            plan("Q3_K_L", true).mixed("blk.9.attn_output.weight"),
            DType::Q5_K
        );
        assert_eq!(
            plan("Q2_K_M", true).mixed("blk.9.attn_v.weight"),
            DType::Q4_K
        );
    }

    #[test]
    fn every_target_can_be_encoded_and_named() {
        for (name, dtype, ..) in TARGETS {
            assert!(quant::can_encode(dtype), "{name}");
            assert_eq!(parse_target(&name.to_lowercase()).unwrap().dtype, dtype);
        }
        assert!(parse_target("Q9_9").is_err());
    }
}

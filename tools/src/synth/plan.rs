//! What is in a file: its metadata and its tensors.

use anyhow::{Context as _, Result, ensure};
use tandem_engine::{Config, DType, Linears};
use tandem_formats::{Gguf, Value, Writer};

use super::shapes::{
    DELTA_HEAD_DIM, DELTA_HEADS, DELTA_TAPS, ExpertsShape, Gemma4Shape, LFM2_TAPS, MAMBA_HEAD_DIM,
    MAMBA_HEADS, MAMBA_STATE, MAMBA_TAPS, QWEN35_FULL_EVERY, Shape,
};
use crate::quantize::{self, Target};

/// One tensor to be written; its values are normal with this deviation, or all 1.
pub(super) struct Planned {
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: DType,
    pub deviation: Option<f32>,
}

impl Shape {
    /// The linears that the engine finds in the layers of such a model.
    fn linears(&self, target: Target) -> Result<Linears> {
        let mut writer = Writer::new();
        metadata(&mut writer, self, target)?;
        // A model is known by its metadata and its embeddings, of which one token's is enough here.
        writer.add_tensor("token_embd.weight", &[self.n_embd, 1], DType::F32)?;
        let embedding = vec![0; size_of::<f32>() * self.n_embd];
        let file = writer.to_vec(&[&embedding])?;
        Ok(Linears::of(&Config::from_gguf(&Gguf::parse(&file)?)?))
    }
}

pub(super) fn plan(shape: &Shape, target: Target) -> Result<Vec<Planned>> {
    let base = shape.linears(target)?;
    let types = quantize::Plan {
        target,
        pure: false,
        n_layer: shape.n_layer,
        tied: shape.tied,
        few_kv_heads: shape.n_head / shape.n_head_kv >= 4,
    };
    let mut tensors = Vec::new();
    let mut matrix = |name: String, n_out: usize, n_in: usize| -> Result<()> {
        let dtype = types.matrix_type(&name, n_in);
        let dtype = dtype.with_context(|| format!("tensor {name}: no type fits its rows"))?;
        tensors.push(Planned {
            name,
            shape: vec![n_in, n_out],
            dtype,
            deviation: Some(1.0 / (n_in as f32).sqrt()),
        });
        Ok(())
    };
    matrix("token_embd.weight".to_string(), shape.n_vocab, shape.n_embd)?;
    if !shape.tied {
        matrix("output.weight".to_string(), shape.n_vocab, shape.n_embd)?;
    }
    for linear in base.iter().filter(|linear| linear.id != base.output()) {
        // The parts of Mamba-2's projection are in one tensor.
        let whole = linear.layer.map(|i| format!("blk.{i}.ssm_in"));
        match (linear.part, whole) {
            ("ssm_in_xbc" | "ssm_in_dt", _) => {}
            ("ssm_in_z", Some(name)) => {
                let n_inner = MAMBA_HEADS * MAMBA_HEAD_DIM;
                let n_out = 2 * (n_inner + MAMBA_STATE) + MAMBA_HEADS;
                matrix(format!("{name}.weight"), n_out, linear.n_in)?;
            }
            _ => matrix(format!("{}.weight", linear.name), linear.n_out, linear.n_in)?,
        }
    }
    if let Some(gemma4) = &shape.gemma4 {
        let n = shape.n_layer * gemma4.n_input;
        matrix("per_layer_token_embd.weight".to_string(), shape.n_vocab, n)?;
    }
    if let Some(experts) = &shape.experts {
        plan_experts(experts, shape, &types, &mut tensors)?;
    }
    let is_lfm2 = shape.arch == "lfm2";
    let output_norm = if is_lfm2 {
        "token_embd_norm"
    } else {
        "output_norm"
    };
    tensors.push(ones(format!("{output_norm}.weight"), shape.n_embd));
    for i in 0..shape.n_layer {
        tensors.push(ones(format!("blk.{i}.attn_norm.weight"), shape.n_embd));
        let ffn_norm = match shape.arch {
            "qwen35" => "post_attention_norm",
            _ => "ffn_norm",
        };
        tensors.push(ones(format!("blk.{i}.{ffn_norm}.weight"), shape.n_embd));
        if shape.arch == "qwen35" {
            plan_qwen35_layer(shape, i, &mut tensors);
        }
        if shape.arch == "granitehybrid" && !shape.attention_layers.contains(&i) {
            plan_mamba_layer(i, &mut tensors);
        }
        if shape.arch == "qwen3moe" {
            plan_head_norms(shape, i, &mut tensors);
        }
        if is_lfm2 {
            plan_lfm2_layer(shape, i, &mut tensors);
        }
        if shape.arch == "qwen2" {
            for linear in base.iter().filter(|linear| linear.layer == Some(i)) {
                if matches!(linear.part, "attn_q" | "attn_k" | "attn_v") {
                    tensors.push(Planned {
                        deviation: Some(0.1),
                        ..ones(format!("{}.bias", linear.name), linear.n_out)
                    });
                }
            }
        }
    }
    if let Some(gemma4) = &shape.gemma4 {
        gemma4.plan(shape, &mut tensors);
    }
    Ok(tensors)
}

/// A vector of ones.
fn ones(name: String, n: usize) -> Planned {
    Planned {
        name,
        shape: vec![n],
        dtype: DType::F32,
        deviation: None,
    }
}

/// What layer `i` of a Qwen 3.5 has besides.
fn plan_qwen35_layer(shape: &Shape, i: usize, tensors: &mut Vec<Planned>) {
    if (i + 1).is_multiple_of(QWEN35_FULL_EVERY) {
        return plan_head_norms(shape, i, tensors);
    }
    let random = |name: &str, shape: Vec<usize>| Planned {
        name: format!("blk.{i}.{name}"),
        shape,
        dtype: DType::F32,
        deviation: Some(0.5),
    };
    let n_channels = 3 * DELTA_HEADS * DELTA_HEAD_DIM;
    tensors.push(random("ssm_conv1d.weight", vec![DELTA_TAPS, n_channels]));
    // Next to nothing is forgotten, so that nothing grows, either.
    tensors.push(Planned {
        deviation: Some(1e-4),
        ..random("ssm_a", vec![DELTA_HEADS])
    });
    tensors.push(random("ssm_dt.bias", vec![DELTA_HEADS]));
    tensors.push(ones(format!("blk.{i}.ssm_norm.weight"), DELTA_HEAD_DIM));
}

/// What layer `i` has besides where it is Mamba-2.
fn plan_mamba_layer(i: usize, tensors: &mut Vec<Planned>) {
    let random = |name: &str, shape: Vec<usize>| Planned {
        name: format!("blk.{i}.{name}"),
        shape,
        dtype: DType::F32,
        deviation: Some(0.5),
    };
    let n_inner = MAMBA_HEADS * MAMBA_HEAD_DIM;
    let n_channels = n_inner + 2 * MAMBA_STATE;
    tensors.push(random("ssm_conv1d.weight", vec![MAMBA_TAPS, n_channels]));
    tensors.push(random("ssm_conv1d.bias", vec![n_channels]));
    // Next to nothing is forgotten, and little is taken up, so that nothing grows, either.
    tensors.push(Planned {
        deviation: Some(1e-4),
        ..random("ssm_a", vec![1, MAMBA_HEADS])
    });
    tensors.push(random("ssm_d", vec![1, MAMBA_HEADS]));
    tensors.push(random("ssm_dt.bias", vec![MAMBA_HEADS]));
    tensors.push(Planned {
        shape: vec![n_inner, 1],
        ..ones(format!("blk.{i}.ssm_norm.weight"), n_inner)
    });
}

/// The norms of queries and keys of layer `i`.
fn plan_head_norms(shape: &Shape, i: usize, tensors: &mut Vec<Planned>) {
    for norm in ["attn_q_norm", "attn_k_norm"] {
        tensors.push(ones(format!("blk.{i}.{norm}.weight"), shape.head_dim));
    }
}

/// The routers and experts of all layers.
fn plan_experts(
    experts: &ExpertsShape,
    shape: &Shape,
    types: &quantize::Plan,
    tensors: &mut Vec<Planned>,
) -> Result<()> {
    let (n, n_ff, n_embd) = (experts.n_experts, experts.n_ff, shape.n_embd);
    for i in 0..shape.n_layer {
        let deviation = Some(1.0 / (n_embd as f32).sqrt());
        tensors.push(Planned {
            name: format!("blk.{i}.ffn_gate_inp.weight"),
            shape: vec![n_embd, n],
            dtype: DType::F32,
            deviation,
        });
        for (part, n_in, n_out) in [
            ("ffn_gate_exps", n_embd, n_ff),
            ("ffn_up_exps", n_embd, n_ff),
            ("ffn_down_exps", n_ff, n_embd),
        ] {
            let name = format!("blk.{i}.{part}.weight");
            let dtype = types.matrix_type(&name, n_in);
            tensors.push(Planned {
                dtype: dtype.with_context(|| format!("tensor {name}: no type fits its rows"))?,
                name,
                shape: vec![n_in, n_out, n],
                deviation: Some(1.0 / (n_in as f32).sqrt()),
            });
        }
    }
    Ok(())
}

/// What layer `i` of an LFM2 has besides.
fn plan_lfm2_layer(shape: &Shape, i: usize, tensors: &mut Vec<Planned>) {
    if shape.attention_layers.contains(&i) {
        return plan_head_norms(shape, i, tensors);
    }
    tensors.push(Planned {
        name: format!("blk.{i}.shortconv.conv.weight"),
        shape: vec![LFM2_TAPS, shape.n_embd],
        dtype: DType::F32,
        deviation: Some(0.5),
    });
}

impl Gemma4Shape {
    /// The vectors that no other architecture has.
    fn plan(&self, shape: &Shape, tensors: &mut Vec<Planned>) {
        // All of a head is turned by it, which takes no longer.
        tensors.push(ones(
            "rope_freqs.weight".to_string(),
            self.full_head_dim / 2,
        ));
        tensors.push(ones("per_layer_proj_norm.weight".to_string(), self.n_input));
        for i in 0..shape.n_layer {
            for norm in ["post_attention_norm", "post_ffw_norm", "post_norm"] {
                tensors.push(ones(format!("blk.{i}.{norm}.weight"), shape.n_embd));
            }
            tensors.push(ones(format!("blk.{i}.layer_output_scale.weight"), 1));
            let head_dim = self.head_dim(i, shape.head_dim);
            tensors.push(ones(format!("blk.{i}.attn_q_norm.weight"), head_dim));
            if i < shape.n_layer - self.n_shared_kv {
                tensors.push(ones(format!("blk.{i}.attn_k_norm.weight"), head_dim));
            }
        }
    }

    fn has_window(&self, layer: usize) -> bool {
        !(layer + 1).is_multiple_of(self.full_every)
    }

    /// Elements of a layer's heads, which are so many where there is a window.
    fn head_dim(&self, layer: usize, window_head_dim: usize) -> usize {
        match self.has_window(layer) {
            true => window_head_dim,
            false => self.full_head_dim,
        }
    }

    fn metadata(&self, w: &mut Writer, shape: &Shape) -> Result<()> {
        let count = |n: usize| Value::U32(n as u32);
        for (key, value) in [
            ("attention.key_length", count(self.full_head_dim)),
            ("attention.value_length", count(self.full_head_dim)),
            ("attention.key_length_swa", count(shape.head_dim)),
            ("attention.value_length_swa", count(shape.head_dim)),
            ("attention.sliding_window", count(self.window)),
            ("attention.shared_kv_layers", count(self.n_shared_kv)),
            ("embedding_length_per_layer_input", count(self.n_input)),
            ("final_logit_softcapping", Value::F32(30.0)),
            ("rope.dimension_count", count(self.full_head_dim)),
            ("rope.dimension_count_swa", count(shape.head_dim)),
            ("rope.freq_base_swa", Value::F32(1e4)),
        ] {
            w.add(&format!("gemma4.{key}"), value)?;
        }
        let layers = 0..shape.n_layer;
        let windows: Vec<bool> = layers.clone().map(|i| self.has_window(i)).collect();
        w.add_array("gemma4.attention.sliding_window_pattern", &windows)?;
        let n_own = shape.n_layer - self.n_shared_kv;
        let n_ffs = layers.map(|i| {
            if i < n_own {
                shape.n_ff
            } else {
                self.shared_n_ff
            }
        });
        let n_ffs: Vec<u32> = n_ffs.map(|n| n as u32).collect();
        w.add_array("gemma4.feed_forward_length", &n_ffs)?;
        Ok(())
    }
}

/// The factors of an adapter on all linears.
pub(super) fn plan_adapter(shape: &Shape, rank: usize, target: Target) -> Result<Vec<Planned>> {
    let dtype = target.dtype();
    ensure!(
        [DType::F32, DType::F16, DType::BF16, DType::Q8_0].contains(&dtype),
        "adapters are stored as F32, F16, BF16 or Q8_0, not as {dtype}"
    );
    let base = shape.linears(target)?;
    let mut tensors = Vec::new();
    for linear in base.iter().filter(|linear| linear.id != base.output()) {
        let (n_out, n_in) = (linear.n_out, linear.n_in);
        for (part, n_rows, n_cols) in [("lora_a", rank, n_in), ("lora_b", n_out, rank)] {
            let name = format!("{}.weight.{part}", linear.name);
            ensure!(
                n_cols.is_multiple_of(dtype.block_len()),
                "tensor {name}: rows of {n_cols} elements are no whole number of {dtype} blocks"
            );
            tensors.push(Planned {
                name,
                shape: vec![n_cols, n_rows],
                dtype,
                // So small that the model's activations stay in range.
                deviation: Some(0.1 / (n_cols as f32).sqrt()),
            });
        }
    }
    Ok(tensors)
}

pub(super) fn adapter_metadata(w: &mut Writer, shape: &Shape, rank: usize) -> Result<()> {
    for (key, value) in [
        ("general.type", "adapter"),
        ("general.architecture", shape.arch),
        ("general.name", "random factors"),
        ("adapter.type", "lora"),
    ] {
        w.add(key, Value::Str(value))?;
    }
    w.add("adapter.lora.alpha", Value::F32(rank as f32))?;
    Ok(())
}

pub(super) fn metadata(w: &mut Writer, shape: &Shape, target: Target) -> Result<()> {
    let count = |n: usize| Value::U32(n as u32);
    w.add("general.architecture", Value::Str(shape.arch))?;
    w.add("general.name", Value::Str("random weights"))?;
    if let Some(n) = target.file_type() {
        w.add("general.file_type", Value::U32(n))?;
    }
    w.add("general.quantization_version", Value::U32(2))?;
    for (key, value) in [
        ("context_length", Value::U32(shape.n_ctx)),
        ("embedding_length", count(shape.n_embd)),
        ("block_count", count(shape.n_layer)),
        ("attention.head_count", count(shape.n_head)),
        ("attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("rope.freq_base", Value::F32(shape.rope_base)),
        ("vocab_size", count(shape.n_vocab)),
    ] {
        w.add(&format!("{}.{key}", shape.arch), value)?;
    }
    if let Some(experts) = &shape.experts {
        for (key, n) in [
            ("expert_count", experts.n_experts),
            ("expert_used_count", experts.n_used),
            ("expert_feed_forward_length", experts.n_ff),
        ] {
            w.add(&format!("{}.{key}", shape.arch), count(n))?;
        }
    }
    if shape.arch == "qwen35" {
        for (key, n) in [
            ("full_attention_interval", QWEN35_FULL_EVERY),
            ("ssm.conv_kernel", DELTA_TAPS),
            ("ssm.state_size", DELTA_HEAD_DIM),
            ("ssm.group_count", DELTA_HEADS),
            ("ssm.time_step_rank", DELTA_HEADS),
            ("ssm.inner_size", DELTA_HEADS * DELTA_HEAD_DIM),
        ] {
            w.add(&format!("qwen35.{key}"), count(n))?;
        }
        // Positions of time, height and width, which are one for text.
        w.add_array("qwen35.rope.dimension_sections", &[11_u32, 11, 10, 0])?;
    }
    if shape.arch == "granitehybrid" {
        for (key, n) in [
            ("ssm.conv_kernel", MAMBA_TAPS),
            ("ssm.state_size", MAMBA_STATE),
            ("ssm.group_count", 1),
            ("ssm.time_step_rank", MAMBA_HEADS),
            ("ssm.inner_size", MAMBA_HEADS * MAMBA_HEAD_DIM),
        ] {
            w.add(&format!("granitehybrid.{key}"), count(n))?;
        }
        w.add("granitehybrid.rope.scaling.finetuned", Value::Bool(false))?;
        for (key, x) in [
            ("embedding_scale", 12.0),
            ("residual_scale", 0.22),
            ("attention.scale", 1.0 / 128.0),
            ("logit_scale", 6.0),
        ] {
            w.add(&format!("granitehybrid.{key}"), Value::F32(x))?;
        }
    }
    let kv_key = format!("{}.attention.head_count_kv", shape.arch);
    if shape.attention_layers.is_empty() {
        w.add(&kv_key, count(shape.n_head_kv))?;
    } else {
        let n_head_kv = |i| match shape.attention_layers.contains(&i) {
            true => shape.n_head_kv as u32,
            false => 0,
        };
        let n_heads_kv: Vec<u32> = (0..shape.n_layer).map(n_head_kv).collect();
        w.add_array(&kv_key, &n_heads_kv)?;
    }
    if shape.arch == "lfm2" {
        w.add("lfm2.shortconv.l_cache", count(LFM2_TAPS))?;
    }
    match &shape.gemma4 {
        Some(gemma4) => gemma4.metadata(w, shape)?,
        None => {
            // A quarter of Qwen 3.5's heads is turned.
            let n_rot = match shape.arch {
                "qwen35" => shape.head_dim / 4,
                _ => shape.head_dim,
            };
            for (key, n) in [
                ("feed_forward_length", shape.n_ff),
                ("attention.key_length", shape.head_dim),
                ("attention.value_length", shape.head_dim),
                ("rope.dimension_count", n_rot),
            ] {
                w.add(&format!("{}.{key}", shape.arch), count(n))?;
            }
        }
    }
    let (tokens, merges) = vocabulary(shape.n_vocab);
    w.add("tokenizer.ggml.model", Value::Str("gpt2"))?;
    w.add("tokenizer.ggml.pre", Value::Str("gpt-2"))?;
    let mut kinds = vec![1_i32; shape.n_vocab]; // normal
    if let Some(last) = kinds.last_mut() {
        *last = 3; // control
    }
    w.add_array("tokenizer.ggml.token_type", &kinds)?;
    w.add_strings("tokenizer.ggml.tokens", &tokens)?;
    w.add_strings("tokenizer.ggml.merges", &merges)?;
    w.add("tokenizer.ggml.eos_token_id", count(shape.n_vocab - 1))?;
    w.add("tokenizer.ggml.bos_token_id", count(shape.n_vocab - 1))?;
    Ok(())
}

/// A byte-level BPE vocabulary of any size: the 256 bytes, then pairs of them, then triples.
fn vocabulary(n_vocab: usize) -> (Vec<String>, Vec<String>) {
    // GPT-2 writes bytes that are no visible character as characters from 256 up.
    let is_visible = |b: u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let visible = (0..256).filter(|b| is_visible(*b));
    let n_hidden = (0..256).filter(|b| !is_visible(*b)).count() as u32;
    let bytes: Vec<char> = visible
        .chain(256..256 + n_hidden)
        .filter_map(char::from_u32)
        .collect();
    let mut tokens: Vec<String> = bytes.iter().map(char::to_string).collect();
    let mut merges = Vec::new();
    let mut first = 0;
    while tokens.len() + 1 < n_vocab {
        let left = tokens[first].clone();
        first += 1;
        for right in bytes.iter().take(n_vocab - 1 - tokens.len()) {
            merges.push(format!("{left} {right}"));
            tokens.push(format!("{left}{right}"));
        }
    }
    tokens.truncate(n_vocab - 1);
    tokens.push("<|end|>".to_string());
    (tokens, merges)
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::super::shapes::ShapeName;
    use super::*;
    use crate::quantize::parse_target;

    /// The engine reads each shape's metadata, and finds the matrices that are planned for it.
    #[test]
    fn every_shape_is_a_model_of_the_engine() {
        let target = parse_target("Q4_0").unwrap();
        for name in ShapeName::value_variants() {
            let shape = name.shape();
            let linears = shape.linears(target).unwrap();
            assert_eq!(linears.n_layer(), shape.n_layer);
            let planned = plan(&shape, target).unwrap();
            let is_planned =
                |name: &str| planned.iter().any(|t| t.name == format!("{name}.weight"));
            let mut all = linears
                .iter()
                .filter(|l| !shape.tied || l.id != linears.output());
            assert!(all.all(|linear| {
                let is_part = linear.part.starts_with("ssm_in_");
                let layer = linear.layer.unwrap_or_default();
                is_planned(&linear.name) || (is_part && is_planned(&format!("blk.{layer}.ssm_in")))
            }));
        }
    }

    #[test]
    fn vocabularies_are_of_the_size_asked_for_and_hold_no_token_twice() {
        for n in [300, 49_152, 151_936] {
            let (tokens, merges) = vocabulary(n);
            assert_eq!(tokens.len(), n);
            assert_eq!(merges.len(), n - 257);
            let unique: std::collections::HashSet<_> = tokens.iter().collect();
            assert_eq!(unique.len(), n);
        }
    }
}

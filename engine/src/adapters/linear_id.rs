//! Which linears of a model an adapter can change, and what files call them.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use super::CompositionError;
use crate::{Arch, Config};

/// The linears of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Module {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Attention's output.
    O,
    /// The gate of the feed-forward network.
    Gate,
    /// What is gated.
    Up,
    /// Back to the residual stream.
    Down,
}

impl Module {
    /// All of them, in their order.
    pub const ALL: [Module; 7] = [
        Module::Q,
        Module::K,
        Module::V,
        Module::O,
        Module::Gate,
        Module::Up,
        Module::Down,
    ];

    /// The name of the base's tensor, without layer and `.weight`.
    pub fn name(self) -> &'static str {
        match self {
            Module::Q => "attn_q",
            Module::K => "attn_k",
            Module::V => "attn_v",
            Module::O => "attn_output",
            Module::Gate => "ffn_gate",
            Module::Up => "ffn_up",
            Module::Down => "ffn_down",
        }
    }

    /// Outputs and inputs in a model.
    pub fn shape(self, config: &Config) -> (usize, usize) {
        match self {
            Module::Q => (config.n_q(), config.n_embd),
            Module::K | Module::V => (config.n_kv(), config.n_embd),
            Module::O => (config.n_embd, config.n_q()),
            Module::Gate | Module::Up => (config.n_ff, config.n_embd),
            Module::Down => (config.n_embd, config.n_ff),
        }
    }
}

/// One linear of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LinearId {
    /// Of a layer, counted from 0.
    Layer(usize, Module),
    /// The projection to logits. Where it is tied to the embeddings these do not change.
    Output,
}

impl LinearId {
    /// Outputs and inputs in a model.
    pub fn shape(self, config: &Config) -> (usize, usize) {
        match self {
            LinearId::Layer(_, module) => module.shape(config),
            LinearId::Output => (config.n_vocab, config.n_embd),
        }
    }

    /// The linears that the tensor of the base with this name (without `.weight`) and `n_out` rows
    /// consists of, each with its rows; `None` where adapters cannot change it.
    pub fn of_tensor(
        config: &Config,
        name: &str,
        n_out: usize,
    ) -> Option<Vec<(LinearId, Range<usize>)>> {
        linears(config, name, n_out).ok().map(|parts| parts.linears)
    }

    /// Whether a model has as many layers.
    pub(crate) fn is_in(self, config: &Config) -> bool {
        match self {
            LinearId::Layer(i, _) => i < config.n_layer,
            LinearId::Output => true,
        }
    }

    /// All linears of a model, the output last.
    pub(crate) fn all(config: &Config) -> impl Iterator<Item = LinearId> + use<> {
        (0..config.n_layer)
            .flat_map(|i| Module::ALL.map(|module| LinearId::Layer(i, module)))
            .chain([LinearId::Output])
    }

    /// The place in [`LinearId::all`].
    pub(crate) fn index(self, config: &Config) -> usize {
        match self {
            LinearId::Layer(i, module) => i * Module::ALL.len() + module as usize,
            LinearId::Output => config.n_layer * Module::ALL.len(),
        }
    }
}

impl fmt::Display for LinearId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinearId::Layer(i, module) => write!(f, "blk.{i}.{}", module.name()),
            LinearId::Output => f.write_str("output"),
        }
    }
}

/// Hugging Face's names of a layer's linears and those of GGUF tensors.
const NAMES: [(&str, &str); 7] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// The same for Phi 3, which has several linears in one.
const PHI3_NAMES: [(&str, &str); 4] = [
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// What files call the linears of a layer: Hugging Face's module (`self_attn.q_proj`) and the base's
/// tensor without layer and `.weight` (`attn_q`).
pub fn module_names(config: &Config) -> &'static [(&'static str, &'static str)] {
    match config.arch {
        Arch::Phi3 => &PHI3_NAMES,
        _ => &NAMES,
    }
}

/// The base's tensor (without `.weight`) that a module of Hugging Face's model became.
pub(super) fn tensor_name(config: &Config, module: &str) -> Option<String> {
    if module == "lm_head" {
        return Some("output".to_string());
    }
    let (layer, module) = module.strip_prefix("model.layers.")?.split_once('.')?;
    let (_, name) = module_names(config).iter().find(|(hf, _)| *hf == module)?;
    Some(format!("blk.{layer}.{name}"))
}

/// The base's tensor in a layer for a module's last name, such as `q_proj`.
pub(super) fn short_name(config: &Config, module: &str) -> Option<&'static str> {
    let is_last = |hf: &str| hf.split_once('.').is_some_and(|(_, last)| last == module);
    let found = module_names(config).iter().find(|(hf, _)| is_last(hf));
    found.map(|(_, name)| *name)
}

/// A tensor of the base, which may hold several linears.
pub(super) struct TensorParts {
    /// The linears, each with its rows.
    pub linears: Vec<(LinearId, Range<usize>)>,
    /// The tensor's columns.
    pub n_in: usize,
}

/// What the tensor of the base with this name (without `.weight`) and `n_out` rows consists of.
pub(super) fn linears(
    config: &Config,
    name: &str,
    n_out: usize,
) -> Result<TensorParts, CompositionError> {
    let parts = parts(config, name, n_out).ok_or_else(|| CompositionError::UnknownModule {
        name: name.to_string(),
    })?;
    let (mut end, mut n_in) = (0, 0);
    let mut linears = Vec::new();
    for id in parts {
        let (n_rows, n_cols) = id.shape(config);
        linears.push((id, end..end + n_rows));
        (end, n_in) = (end + n_rows, n_cols);
    }
    match end == n_out {
        true => Ok(TensorParts { linears, n_in }),
        false => Err(CompositionError::Shape {
            name: name.to_string(),
            wanted: (end, n_in),
            found: (n_out, n_in),
        }),
    }
}

fn parts(config: &Config, name: &str, n_out: usize) -> Option<Vec<LinearId>> {
    if name == "output" {
        return Some(vec![LinearId::Output]);
    }
    let (text, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let layer: usize = text.parse().ok()?;
    // Not `01` or `+1`: one tensor has one name.
    if layer >= config.n_layer || text != layer.to_string() {
        return None;
    }
    let modules: &[Module] = match part {
        "attn_qkv" => &[Module::Q, Module::K, Module::V],
        "ffn_up" if config.arch == Arch::Phi3 && n_out == 2 * config.n_ff => {
            &[Module::Gate, Module::Up]
        }
        _ => {
            let module = Module::ALL.into_iter().find(|m| m.name() == part)?;
            return Some(vec![LinearId::Layer(layer, module)]);
        }
    };
    Some(modules.iter().map(|m| LinearId::Layer(layer, *m)).collect())
}

/// The module of Hugging Face's model that became the base's tensor (without `.weight`).
pub(super) fn hf_name(config: &Config, tensor: &str) -> Option<String> {
    if tensor == "output" {
        return Some("lm_head".to_string());
    }
    let (layer, tensor) = tensor.strip_prefix("blk.")?.split_once('.')?;
    let (hf, _) = module_names(config).iter().find(|(_, t)| *t == tensor)?;
    Some(format!("model.layers.{layer}.{hf}"))
}

/// Puts rows of Hugging Face's order into the GGUF file's: the `llama` architecture turns elements
/// `2 j` and `2 j + 1` of a head together, where Hugging Face's has them at `j` and
/// `head_dim / 2 + j`. `rows` is `[n_out, n_cols]` of the base's tensor `name`.
pub(super) fn to_file_order(config: &Config, name: &str, rows: &mut [f32], n_cols: usize) {
    let half = config.head_dim / 2;
    reorder(config, name, rows, n_cols, |row| row % 2 * half + row / 2);
}

/// The inverse of [`to_file_order`].
pub(super) fn from_file_order(config: &Config, name: &str, rows: &mut [f32], n_cols: usize) {
    let half = config.head_dim / 2;
    reorder(config, name, rows, n_cols, |row| {
        row % half * 2 + row / half
    });
}

/// Row `row` of every head becomes what `from(row)` was, where the tensor's rows are turned at all.
fn reorder(
    config: &Config,
    name: &str,
    rows: &mut [f32],
    n_cols: usize,
    from: impl Fn(usize) -> usize,
) {
    let is_turned = name.ends_with("attn_q") || name.ends_with("attn_k");
    // A matrix without columns, which its user refuses, has nothing to turn.
    if config.arch != Arch::Llama || !is_turned || n_cols == 0 {
        return;
    }
    let mut head = vec![0.0; config.head_dim * n_cols];
    for rows in rows.chunks_exact_mut(config.head_dim * n_cols) {
        for (row, to) in head.chunks_exact_mut(n_cols).enumerate() {
            to.copy_from_slice(&rows[from(row) * n_cols..][..n_cols]);
        }
        rows.copy_from_slice(&head);
    }
}

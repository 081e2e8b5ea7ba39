//! GPT-2, and GPT-NeoX: Pythia.

use tandem_kernels::Activation;

use super::{Architecture, COMMON, ModuleName, NoRope, Parallel};
use crate::model::config::NormKind;

/// GELU by its tanh formula, as llama.cpp has it: files do not tell which one a model was trained with.
/// Pythia's was the exact one.
pub(super) const GPTNEOX: Architecture = Architecture {
    name: "gptneox",
    norm: NormKind::Layer,
    is_gated: false,
    activation: Activation::GeluTanh,
    parallel: Parallel::InFile,
    needed: &[
        "attn_q.bias",
        "attn_output.bias",
        "ffn_up.bias",
        "ffn_down.bias",
    ],
    modules: &[
        ModuleName::new("attention.query_key_value", "attn_qkv"),
        ModuleName::new("attention.dense", "attn_output"),
        ModuleName::new("mlp.dense_h_to_4h", "ffn_up"),
        ModuleName::new("mlp.dense_4h_to_h", "ffn_down"),
    ],
    ..COMMON
};

pub(super) const GPT2: Architecture = Architecture {
    name: "gpt2",
    norm: NormKind::Layer,
    is_gated: false,
    activation: Activation::GeluTanh,
    no_rope: NoRope::Everywhere,
    has_positions: true,
    needed: &[
        "attn_q.bias",
        "attn_output.bias",
        "ffn_up.bias",
        "ffn_down.bias",
    ],
    modules: &[
        ModuleName::new("attn.c_attn", "attn_qkv"),
        ModuleName::new("attn.c_proj", "attn_output"),
        ModuleName::new("mlp.c_fc", "ffn_up"),
        ModuleName::new("mlp.c_proj", "ffn_down"),
    ],
    ..COMMON
};

//! GPT-2, and GPT-NeoX: Pythia.
//!
//! Neither has names for Hugging Face's modules: there a fused projection's rows are in another order (NeoX), or
//! it is transposed (GPT-2), so PEFT's adapters are refused. llama.cpp's, by tensors, are taken.

use tandem_kernels::Activation;

use super::{Architecture, COMMON, NoRope, Parallel};
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
    modules: &[],
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
    modules: &[],
    ..COMMON
};

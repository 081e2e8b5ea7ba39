//! Llama 2 and 3, Mistral, SmolLM2, TinyLlama, and what differs little from them: Ministral 3, SmolLM3,
//! ERNIE 4.5, Arcee's AFM, Apertus.

use tandem_kernels::{Activation, RopeStyle};

use super::{Architecture, COMMON, NoRope, UNGATED};

pub(super) const LLAMA: Architecture = Architecture {
    name: "llama",
    rope_style: RopeStyle::Normal,
    turns_rows: true,
    ..COMMON
};

pub(super) const MISTRAL3: Architecture = Architecture {
    name: "mistral3",
    ..LLAMA
};

pub(super) const SMOLLM3: Architecture = Architecture {
    name: "smollm3",
    no_rope: NoRope::Every(4),
    ..LLAMA
};

pub(super) const ERNIE4_5: Architecture = Architecture {
    name: "ernie4_5",
    turns_rows: false,
    ..LLAMA
};

pub(super) const ARCEE: Architecture = Architecture {
    name: "arcee",
    is_gated: false,
    activation: Activation::ReluSquared,
    modules: UNGATED,
    ..LLAMA
};

pub(super) const APERTUS: Architecture = Architecture {
    name: "apertus",
    has_xielu: true,
    is_gated: false,
    needed: &["attn_q_norm.weight", "attn_k_norm.weight"],
    modules: UNGATED,
    ..COMMON
};

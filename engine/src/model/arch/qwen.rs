//! Qwen 2, 2.5 and 3, also with experts, and the text side of Qwen 3 VL.

use super::{Architecture, COMMON, ExpertForm};

pub(super) const QWEN2: Architecture = Architecture {
    name: "qwen2",
    needed: &["attn_q.bias", "attn_k.bias", "attn_v.bias"],
    ..COMMON
};

pub(super) const QWEN3: Architecture = Architecture {
    name: "qwen3",
    needed: &["attn_q_norm.weight", "attn_k_norm.weight"],
    ..COMMON
};

/// For text its three positions are equal, and so is its rope to the others'.
pub(super) const QWEN3VL: Architecture = Architecture {
    name: "qwen3vl",
    ..QWEN3
};

pub(super) const QWEN3MOE: Architecture = Architecture {
    name: "qwen3moe",
    experts: ExpertForm::Alone,
    ..QWEN3
};

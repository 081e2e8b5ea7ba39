//! Qwen 2, 2.5 and 3.

use super::{Architecture, COMMON};

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

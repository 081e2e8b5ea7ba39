//! Hunyuan, the dense ones.

use super::{Architecture, COMMON};

pub(super) const HUNYUAN_DENSE: Architecture = Architecture {
    name: "hunyuan-dense",
    norm_after_rope: true,
    needed: &["attn_q_norm.weight", "attn_k_norm.weight"],
    ..COMMON
};

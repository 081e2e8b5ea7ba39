//! OLMo 2.

use super::{Architecture, COMMON};

pub(super) const OLMO2: Architecture = Architecture {
    name: "olmo2",
    pre_norms: false,
    norms_rows: true,
    needed: &[
        "attn_q_norm.weight",
        "attn_k_norm.weight",
        "post_attention_norm.weight",
        "post_ffw_norm.weight",
    ],
    ..COMMON
};

//! OLMo 2, and OLMo 3, whose files have its name: it has windows.

use super::{Architecture, COMMON, OwnRope, Windows};

pub(super) const OLMO2: Architecture = Architecture {
    name: "olmo2",
    windows: Windows::AllBut {
        every: 4,
        own_rope: Some(OwnRope {
            key: "rope.freq_base_swa",
            default: None,
        }),
    },
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

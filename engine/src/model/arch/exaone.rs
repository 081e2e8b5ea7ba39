//! EXAONE 4.

use super::{Architecture, COMMON, NoRope, Windows};

pub(super) const EXAONE4: Architecture = Architecture {
    name: "exaone4",
    // The 32B model; the 1.2B has no windows.
    windows: Windows::AllBut {
        every: 4,
        own_rope: None,
    },
    no_rope: NoRope::BesideWindows,
    pre_norms: false,
    needed: &[
        "attn_q_norm.weight",
        "attn_k_norm.weight",
        "post_attention_norm.weight",
        "post_ffw_norm.weight",
    ],
    ..COMMON
};

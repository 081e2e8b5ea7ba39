//! Gemma 2, and Gemma 3, text only.

use tandem_kernels::Activation;

use super::{Architecture, COMMON, EmbeddingScale, OwnRope, Windows};

pub(super) const GEMMA2: Architecture = Architecture {
    name: "gemma2",
    activation: Activation::GeluTanh,
    embedding_scale: EmbeddingScale::RootOfWidth,
    windows: Windows::AllBut {
        every: 2,
        own_rope: None,
    },
    needed_keys: &[
        "attention.sliding_window",
        "attn_logit_softcapping",
        "final_logit_softcapping",
    ],
    // The 27B model.
    scales_by_share: Some(46),
    needed: &["post_attention_norm.weight", "post_ffw_norm.weight"],
    ..COMMON
};

pub(super) const GEMMA3: Architecture = Architecture {
    name: "gemma3",
    activation: Activation::GeluTanh,
    embedding_scale: EmbeddingScale::RootOfWidth,
    windows: Windows::AllBut {
        every: 6,
        own_rope: Some(OwnRope {
            key: "rope.freq_base_swa",
            default: Some(10000.0),
        }),
    },
    // The 27B model.
    scales_by_share: Some(62),
    needed: &[
        "attn_q_norm.weight",
        "attn_k_norm.weight",
        "post_attention_norm.weight",
        "post_ffw_norm.weight",
    ],
    ..COMMON
};

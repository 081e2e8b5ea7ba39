//! Gemma 2, and Gemma 3, text only.

use tandem_kernels::Activation;

use super::{Architecture, COMMON, EmbeddingScale, Windows};

pub(super) const GEMMA2: Architecture = Architecture {
    name: "gemma2",
    activation: Activation::GeluTanh,
    embedding_scale: EmbeddingScale::RootOfWidth,
    windows: Windows::AllBut {
        every: 2,
        rope_base: None,
    },
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
        rope_base: Some("rope.freq_base_swa"),
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

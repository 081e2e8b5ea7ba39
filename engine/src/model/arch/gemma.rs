//! Gemma 2, 3, 3n and 4, text only.

use tandem_kernels::Activation;

use super::{
    Architecture, COMMON, EmbeddingScale, ExpertForm, ModuleName, OwnRope, ScoreScale, Windows,
};

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
    score_scale: ScoreScale::OfShare { n_layer: 46 },
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
    score_scale: ScoreScale::OfShare { n_layer: 62 },
    needed: &[
        "attn_q_norm.weight",
        "attn_k_norm.weight",
        "post_attention_norm.weight",
        "post_ffw_norm.weight",
    ],
    ..COMMON
};

/// E2B and E4B.
pub(super) const GEMMA3N: Architecture = Architecture {
    name: "gemma3n",
    windows: Windows::AllBut {
        every: 5,
        own_rope: Some(OwnRope {
            key: "rope.freq_base_swa",
            default: Some(10000.0),
        }),
    },
    needed_keys: &[
        "attention.sliding_window",
        "attention.sliding_window_pattern",
        "attention.shared_kv_layers",
        "embedding_length_per_layer_input",
        "activation_sparsity_scale",
    ],
    // Published files do not have it.
    logit_softcap: Some(30.0),
    score_scale: ScoreScale::One,
    norms_values: true,
    shares_kv: true,
    has_per_layer_inputs: true,
    has_altup: true,
    modules: WITH_INPUTS,
    ..GEMMA3
};

/// E2B, E4B, 12B, 31B, and 26B-A4B with experts.
pub(super) const GEMMA4: Architecture = Architecture {
    name: "gemma4",
    windows: Windows::AllBut {
        every: 6,
        own_rope: Some(OwnRope {
            key: "rope.freq_base_swa",
            default: Some(10000.0),
        }),
    },
    needed_keys: &[
        "attention.sliding_window",
        "attention.sliding_window_pattern",
        "final_logit_softcapping",
    ],
    score_scale: ScoreScale::One,
    norms_values: true,
    values_may_be_keys: true,
    shares_kv: true,
    has_per_layer_inputs: true,
    experts: ExpertForm::BesideDense,
    needed: &[
        "attn_q_norm.weight",
        "attn_k_norm.weight",
        "post_attention_norm.weight",
        "post_ffw_norm.weight",
        "layer_output_scale.weight",
        // Of the layers that see all tokens: without it all of a head would be turned.
        "rope_freqs.weight",
        "ffn_down_exps.scale",
    ],
    modules: WITH_INPUTS,
    ..GEMMA3
};

/// Of models whose layers have inputs of their own; Gemma 4's have none of the last two.
const WITH_INPUTS: &[ModuleName] = &[
    ModuleName::new("self_attn.q_proj", "attn_q"),
    ModuleName::new("self_attn.k_proj", "attn_k"),
    ModuleName::new("self_attn.v_proj", "attn_v"),
    ModuleName::new("self_attn.o_proj", "attn_output"),
    ModuleName::new("mlp.gate_proj", "ffn_gate"),
    ModuleName::new("mlp.up_proj", "ffn_up"),
    ModuleName::new("mlp.down_proj", "ffn_down"),
    ModuleName::new("per_layer_input_gate", "inp_gate"),
    ModuleName::new("per_layer_projection", "proj"),
    ModuleName::new("laurel.linear_left", "laurel_l"),
    ModuleName::new("laurel.linear_right", "laurel_r"),
];

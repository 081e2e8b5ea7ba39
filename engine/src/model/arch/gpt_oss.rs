//! OpenAI's gpt-oss: experts, and attention with sinks.

use tandem_kernels::Activation;

use super::{Architecture, COMMON, ExpertForm, ModuleName, Windows};
use crate::blocks::Gating;

pub(super) const GPT_OSS: Architecture = Architecture {
    name: "gpt-oss",
    activation: Activation::QuickGelu,
    windows: Windows::AllBut {
        every: 2,
        own_rope: None,
    },
    experts: ExpertForm::Alone,
    gating: Gating::SoftmaxOfChosen,
    expert_bound: Some(7.0),
    has_sinks: true,
    // llama.cpp rounds them here, too; transformers, whose the model is, does not.
    yarn_whole_pairs: false,
    ffn_norm: "post_attention_norm",
    needed: &[
        "attn_q.bias",
        "attn_k.bias",
        "attn_v.bias",
        "attn_output.bias",
        "ffn_gate_inp.bias",
        "ffn_gate_exps.bias",
        "ffn_up_exps.bias",
        "ffn_down_exps.bias",
    ],
    needed_keys: &["attention.sliding_window"],
    modules: &[
        ModuleName::new("self_attn.q_proj", "attn_q"),
        ModuleName::new("self_attn.k_proj", "attn_k"),
        ModuleName::new("self_attn.v_proj", "attn_v"),
        ModuleName::new("self_attn.o_proj", "attn_output"),
    ],
    ..COMMON
};

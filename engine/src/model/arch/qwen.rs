//! Qwen 2, 2.5, 3 and 3.5, and the text side of Qwen 3 VL.

use super::{Architecture, COMMON, ExpertForm, ModuleName, SharedForm};

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

pub(super) const QWEN35: Architecture = Architecture {
    name: "qwen35",
    delta_nets: Some(4),
    gates_attention: true,
    ffn_norm: "post_attention_norm",
    modules: &[
        ModuleName::new("self_attn.q_proj", "attn_q"),
        ModuleName::new("self_attn.k_proj", "attn_k"),
        ModuleName::new("self_attn.v_proj", "attn_v"),
        ModuleName::new("self_attn.o_proj", "attn_output"),
        ModuleName::new("linear_attn.in_proj_qkv", "attn_qkv"),
        ModuleName::new("linear_attn.in_proj_z", "attn_gate"),
        ModuleName::new("linear_attn.in_proj_b", "ssm_beta"),
        ModuleName::new("linear_attn.in_proj_a", "ssm_alpha"),
        ModuleName::new("linear_attn.out_proj", "ssm_out"),
        ModuleName::new("mlp.gate_proj", "ffn_gate"),
        ModuleName::new("mlp.up_proj", "ffn_up"),
        ModuleName::new("mlp.down_proj", "ffn_down"),
        // With experts, those of the one that all tokens use.
        ModuleName::new("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
        ModuleName::new("mlp.shared_expert.up_proj", "ffn_up_shexp"),
        ModuleName::new("mlp.shared_expert.down_proj", "ffn_down_shexp"),
    ],
    ..QWEN3
};

pub(super) const QWEN35MOE: Architecture = Architecture {
    name: "qwen35moe",
    experts: ExpertForm::Alone,
    shared_expert: SharedForm::Gated,
    ..QWEN35
};

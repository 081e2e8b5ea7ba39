//! LFM2 and LFM2.5, with experts and without.

use super::{Architecture, COMMON, ExpertForm, ModuleName, WithoutKv};

pub(super) const LFM2: Architecture = Architecture {
    name: "lfm2",
    without_kv: WithoutKv::ShortConv,
    output_norm: "token_embd_norm",
    needed: &["attn_q_norm.weight", "attn_k_norm.weight"],
    modules: &[
        ModuleName::new("self_attn.q_proj", "attn_q"),
        ModuleName::new("self_attn.k_proj", "attn_k"),
        ModuleName::new("self_attn.v_proj", "attn_v"),
        ModuleName::new("self_attn.out_proj", "attn_output"),
        ModuleName::new("conv.in_proj", "shortconv.in_proj"),
        ModuleName::new("conv.out_proj", "shortconv.out_proj"),
        ModuleName::new("feed_forward.w1", "ffn_gate"),
        ModuleName::new("feed_forward.w3", "ffn_up"),
        ModuleName::new("feed_forward.w2", "ffn_down"),
    ],
    ..COMMON
};

pub(super) const LFM2MOE: Architecture = Architecture {
    name: "lfm2moe",
    experts: ExpertForm::Alone,
    needed_keys: &["expert_gating_func"],
    needed: &[
        "attn_q_norm.weight",
        "attn_k_norm.weight",
        "exp_probs_b.bias",
    ],
    ..LFM2
};

//! Nemotron and Minitron, the dense ones, and Nemotron-H.

use tandem_kernels::Activation;

use super::{Architecture, COMMON, ModuleName, NoRope, UNGATED, WithoutKv};
use crate::model::config::NormKind;

pub(super) const NEMOTRON: Architecture = Architecture {
    name: "nemotron",
    norm: NormKind::Layer,
    is_gated: false,
    activation: Activation::ReluSquared,
    modules: UNGATED,
    ..COMMON
};

pub(super) const NEMOTRON_H: Architecture = Architecture {
    name: "nemotron_h",
    hf_layers: "backbone.layers",
    eps_key: Some("attention.layer_norm_epsilon"),
    is_gated: false,
    activation: Activation::ReluSquared,
    no_rope: NoRope::Everywhere,
    without_kv: WithoutKv::Mamba,
    is_one_block: true,
    needed: &["ssm_norm.weight", "ssm_conv1d.bias"],
    modules: &[
        ModuleName::new("mixer.q_proj", "attn_q"),
        ModuleName::new("mixer.k_proj", "attn_k"),
        ModuleName::new("mixer.v_proj", "attn_v"),
        ModuleName::new("mixer.o_proj", "attn_output"),
        ModuleName::new("mixer.in_proj", "ssm_in"),
        ModuleName::new("mixer.out_proj", "ssm_out"),
        ModuleName::new("mixer.up_proj", "ffn_up"),
        ModuleName::new("mixer.down_proj", "ffn_down"),
    ],
    ..COMMON
};

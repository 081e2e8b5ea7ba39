//! Granite 3 and 4, with experts, with Mamba-2, and without.

use tandem_kernels::RopeStyle;

use super::{
    Architecture, COMMON, EmbeddingScale, ExpertForm, ModuleName, NoRope, SharedForm, WithoutKv,
};

pub(super) const GRANITE: Architecture = Architecture {
    name: "granite",
    rope_style: RopeStyle::Normal,
    turns_rows: true,
    no_rope: NoRope::InFile,
    embedding_scale: EmbeddingScale::InFile,
    // Granite 4's.
    other_names: SHARED_MLP,
    ..COMMON
};

pub(super) const GRANITEMOE: Architecture = Architecture {
    name: "granitemoe",
    experts: ExpertForm::Alone,
    shared_expert: SharedForm::InFile,
    ..GRANITE
};

pub(super) const GRANITEHYBRID: Architecture = Architecture {
    name: "granitehybrid",
    without_kv: WithoutKv::Mamba,
    needed: &["ssm_norm.weight", "ssm_conv1d.bias"],
    modules: &[
        ModuleName::new("self_attn.q_proj", "attn_q"),
        ModuleName::new("self_attn.k_proj", "attn_k"),
        ModuleName::new("self_attn.v_proj", "attn_v"),
        ModuleName::new("self_attn.o_proj", "attn_output"),
        ModuleName::new("mamba.in_proj", "ssm_in"),
        ModuleName::new("mamba.out_proj", "ssm_out"),
        SHARED_MLP[0],
        SHARED_MLP[1],
    ],
    other_names: &[],
    ..GRANITEMOE
};

const SHARED_MLP: &[ModuleName] = &[
    ModuleName::new("shared_mlp.input_linear", "ffn_up"),
    ModuleName::new("shared_mlp.output_linear", "ffn_down"),
];

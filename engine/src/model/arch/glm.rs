//! GLM 4, the dense ones.

use tandem_kernels::RopeStyle;

use super::{Architecture, COMMON, ModuleName};

pub(super) const GLM4: Architecture = Architecture {
    name: "glm4",
    rope_style: RopeStyle::Normal,
    modules: &[
        ModuleName::new("self_attn.q_proj", "attn_q"),
        ModuleName::new("self_attn.k_proj", "attn_k"),
        ModuleName::new("self_attn.v_proj", "attn_v"),
        ModuleName::new("self_attn.o_proj", "attn_output"),
        ModuleName::new("mlp.gate_up_proj", "ffn_up"),
        ModuleName::new("mlp.down_proj", "ffn_down"),
    ],
    needed: &["post_attention_norm.weight", "post_ffw_norm.weight"],
    ..COMMON
};

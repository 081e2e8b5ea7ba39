//! Phi 3 and 3.5 mini.

use super::{Architecture, COMMON, ModuleName};

pub(super) const PHI3: Architecture = Architecture {
    name: "phi3",
    modules: &[
        ModuleName::new("self_attn.qkv_proj", "attn_qkv"),
        ModuleName::new("self_attn.o_proj", "attn_output"),
        ModuleName::new("mlp.gate_up_proj", "ffn_up"),
        ModuleName::new("mlp.down_proj", "ffn_down"),
    ],
    ..COMMON
};

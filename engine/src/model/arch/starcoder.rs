//! StarCoder 2.

use tandem_kernels::Activation;

use super::{Architecture, COMMON, ModuleName};
use crate::model::config::NormKind;

pub(super) const STARCODER2: Architecture = Architecture {
    name: "starcoder2",
    norm: NormKind::Layer,
    is_gated: false,
    activation: Activation::GeluTanh,
    needed: &[
        "attn_q.bias",
        "attn_k.bias",
        "attn_v.bias",
        "attn_output.bias",
        "ffn_up.bias",
        "ffn_down.bias",
    ],
    modules: &[
        ModuleName::new("self_attn.q_proj", "attn_q"),
        ModuleName::new("self_attn.k_proj", "attn_k"),
        ModuleName::new("self_attn.v_proj", "attn_v"),
        ModuleName::new("self_attn.o_proj", "attn_output"),
        ModuleName::new("mlp.c_fc", "ffn_up"),
        ModuleName::new("mlp.c_proj", "ffn_down"),
    ],
    ..COMMON
};

//! Phi 2, and Phi 3 and 3.5 mini.

use tandem_kernels::Activation;

use super::{Architecture, COMMON, ModuleName, Parallel};
use crate::model::config::NormKind;

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

pub(super) const PHI2: Architecture = Architecture {
    name: "phi2",
    norm: NormKind::Layer,
    is_gated: false,
    activation: Activation::GeluTanh,
    parallel: Parallel::OneNorm,
    needed: &[
        "attn_q.bias",
        "attn_k.bias",
        "attn_v.bias",
        "attn_output.bias",
        "ffn_up.bias",
        "ffn_down.bias",
        "output.bias",
    ],
    modules: &[
        ModuleName::new("self_attn.q_proj", "attn_q"),
        ModuleName::new("self_attn.k_proj", "attn_k"),
        ModuleName::new("self_attn.v_proj", "attn_v"),
        ModuleName::new("self_attn.dense", "attn_output"),
        ModuleName::new("mlp.fc1", "ffn_up"),
        ModuleName::new("mlp.fc2", "ffn_down"),
    ],
    ..COMMON
};

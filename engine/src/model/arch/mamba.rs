//! Mamba-2, and Falcon-H1, which has it beside attention.

use super::{Architecture, COMMON, ModuleName, WithoutKv};

pub(super) const MAMBA2: Architecture = Architecture {
    name: "mamba2",
    hf_layers: "backbone.layers",
    without_kv: WithoutKv::Mamba,
    is_one_block: true,
    needed: &["ssm_norm.weight", "ssm_conv1d.bias"],
    modules: &[
        ModuleName::new("mixer.in_proj", "ssm_in"),
        ModuleName::new("mixer.out_proj", "ssm_out"),
    ],
    ..COMMON
};

/// No names for Hugging Face's modules: converters multiply its weights with numbers that files do not have, and
/// PEFT's adapters would want the same. llama.cpp's, by tensors, are taken.
pub(super) const FALCON_H1: Architecture = Architecture {
    name: "falcon-h1",
    has_mamba_beside: true,
    needed: &["ssm_conv1d.bias"],
    modules: &[],
    ..COMMON
};

//! Nemotron and Minitron, the dense ones.

use tandem_kernels::Activation;

use super::{Architecture, COMMON, UNGATED};
use crate::model::config::NormKind;

pub(super) const NEMOTRON: Architecture = Architecture {
    name: "nemotron",
    norm: NormKind::Layer,
    is_gated: false,
    activation: Activation::ReluSquared,
    modules: UNGATED,
    ..COMMON
};

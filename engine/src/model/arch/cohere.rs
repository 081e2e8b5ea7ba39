//! Command R7B and what is made like it.

use tandem_kernels::RopeStyle;

use super::{Architecture, COMMON, NoRope, Parallel, Windows};
use crate::model::config::NormKind;

pub(super) const COHERE2: Architecture = Architecture {
    name: "cohere2",
    norm: NormKind::Layer,
    norm_bias: false,
    parallel: Parallel::OneNorm,
    rope_style: RopeStyle::Normal,
    windows: Windows::AllBut {
        every: 4,
        own_rope: None,
    },
    no_rope: NoRope::BesideWindows,
    scales_logits: true,
    needed_keys: &["attention.sliding_window", "logit_scale"],
    ..COMMON
};

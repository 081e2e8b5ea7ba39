//! StableLM 2.

use super::{Architecture, COMMON};
use crate::model::config::NormKind;

pub(super) const STABLELM: Architecture = Architecture {
    name: "stablelm",
    norm: NormKind::Layer,
    ..COMMON
};

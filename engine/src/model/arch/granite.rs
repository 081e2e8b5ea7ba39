//! Granite 3 and 4, the dense ones.

use tandem_kernels::RopeStyle;

use super::{Architecture, COMMON, EmbeddingScale};

pub(super) const GRANITE: Architecture = Architecture {
    name: "granite",
    rope_style: RopeStyle::Normal,
    turns_rows: true,
    embedding_scale: EmbeddingScale::InFile,
    ..COMMON
};

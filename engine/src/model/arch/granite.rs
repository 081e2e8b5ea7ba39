//! Granite 3 and 4, without recurrent layers.

use tandem_kernels::RopeStyle;

use super::{Architecture, COMMON, EmbeddingScale, ExpertForm, ModuleName};

pub(super) const GRANITE: Architecture = Architecture {
    name: "granite",
    rope_style: RopeStyle::Normal,
    turns_rows: true,
    embedding_scale: EmbeddingScale::InFile,
    // Granite 4's.
    other_names: &[
        ModuleName::new("shared_mlp.input_linear", "ffn_up"),
        ModuleName::new("shared_mlp.output_linear", "ffn_down"),
    ],
    ..COMMON
};

pub(super) const GRANITEMOE: Architecture = Architecture {
    name: "granitemoe",
    experts: ExpertForm::Alone,
    ..GRANITE
};

//! Llama 2 and 3, Mistral, SmolLM2, TinyLlama.

use tandem_kernels::RopeStyle;

use super::{Architecture, COMMON};

pub(super) const LLAMA: Architecture = Architecture {
    name: "llama",
    rope_style: RopeStyle::Normal,
    turns_rows: true,
    ..COMMON
};

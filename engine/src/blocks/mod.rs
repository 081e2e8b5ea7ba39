//! The kinds of blocks that layers are made of. Each has a file: its hyperparameters, its linears, its
//! weights and how they are loaded, and what it computes.

mod altup;
mod attention;
mod conv;
mod delta_net;
mod experts;
mod gated;
mod layer;
mod mamba;
mod mlp;
mod norm;
mod per_layer;
mod short_conv;

pub(crate) use altup::MAX_STREAMS;
pub use altup::{AltUp, AltUpConfig, AltUpEnds};
pub use attention::{Attention, AttentionConfig, Temperature};
pub(crate) use conv::Conv;
pub use delta_net::{DeltaNet, DeltaNetConfig};
pub(crate) use experts::MAX_USED;
pub use experts::{
    DenseAndExperts, DenseAndExpertsConfig, Experts, ExpertsConfig, Gating, SharedExpert,
};
pub use gated::{Gated, GatedConfig};
pub(crate) use layer::{Narrow, Pass, SpanRows, layer, layer_to_narrow};
pub use mamba::{AttentionAndMamba, AttentionAndMambaConfig, Mamba, MambaConfig};
pub use mlp::{Mlp, MlpConfig};
pub(crate) use norm::RowNorm;
pub use per_layer::{PerLayer, PerLayerConfig, PerLayerEmbeddings};
pub use short_conv::{ShortConv, ShortConvConfig};

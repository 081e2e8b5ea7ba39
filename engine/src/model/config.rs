//! A model's hyperparameters: those of the whole, and of each layer.

use alloc::vec::Vec;

use tandem_formats::Gguf;
use tandem_kernels::{RopeScaling, RopeStyle};

use super::arch::{self, Architecture};
use crate::ModelError;
use crate::blocks::{
    AltUpConfig, AttentionAndMambaConfig, AttentionConfig, Conv, DeltaNetConfig,
    DenseAndExpertsConfig, ExpertsConfig, GatedConfig, MambaConfig, MlpConfig, PerLayerConfig,
    ShortConvConfig,
};

/// Which normalization stands before each block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Root mean square.
    Rms,
    /// Mean and variance, with a bias.
    Layer,
}

/// A model's hyperparameters.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The architecture.
    pub arch: &'static Architecture,
    /// Tokens the model was trained to see at once.
    pub n_ctx_train: usize,
    /// Tokens in the vocabulary.
    pub n_vocab: usize,
    /// Elements of the residual stream.
    pub n_embd: usize,
    /// Normalization before each block.
    pub norm: NormKind,
    /// Added to the variance.
    pub norm_eps: f32,
    /// The ways in which layers turn their heads; at least one where any has heads of attention.
    pub ropes: Vec<RopeConfig>,
    /// The layers, first to last.
    pub layers: Vec<LayerConfig>,
    /// Layers that the file has behind these for predicting further tokens, and that are left out.
    pub n_predict_layers: usize,
    /// What each layer gets for a token besides the layers before it.
    pub per_layer: Option<PerLayerConfig>,
    /// The residual streams, where there are several.
    pub altup: Option<AltUpConfig>,
    /// Multiplies the token embeddings.
    pub embedding_scale: f32,
    /// Whether a layer's feed-forward network sees what its mixer saw, instead of what that gave.
    pub is_parallel: bool,
    /// Multiplies what each block adds to the residual stream.
    pub residual_scale: f32,
    /// Multiplies the logits.
    pub logit_scale: f32,
    /// Where set, logits become `cap tanh(logits / cap)`.
    pub logit_softcap: Option<f32>,
}

/// One layer's hyperparameters.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LayerConfig {
    /// What mixes tokens.
    pub mixer: MixerConfig,
    /// What works on each token by itself.
    pub ffn: FfnConfig,
}

/// How a layer mixes tokens.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum MixerConfig {
    /// Attention.
    Attention(AttentionConfig),
    /// A gated short convolution.
    ShortConv(ShortConvConfig),
    /// A gated delta net.
    DeltaNet(DeltaNetConfig),
    /// Mamba-2.
    Mamba(MambaConfig),
    /// Attention and Mamba-2 beside each other.
    AttentionAndMamba(AttentionAndMambaConfig),
    /// It does not.
    None,
}

impl MixerConfig {
    /// The attention that it is or has.
    pub fn attention(&self) -> Option<&AttentionConfig> {
        match self {
            MixerConfig::Attention(attention) => Some(attention),
            MixerConfig::AttentionAndMamba(both) => Some(&both.attention),
            _ => None,
        }
    }

    /// The convolution that it is or has.
    pub(crate) fn conv(&self, n_embd: usize) -> Option<Conv> {
        match self {
            MixerConfig::ShortConv(conv) => Some(conv.conv(n_embd)),
            MixerConfig::DeltaNet(net) => Some(net.conv()),
            MixerConfig::Mamba(mamba) => Some(mamba.conv()),
            MixerConfig::AttentionAndMamba(both) => Some(both.mamba.conv()),
            MixerConfig::Attention(_) | MixerConfig::None => None,
        }
    }

    /// Elements of the matrices that a sequence has for it; `None` where that overflows.
    pub(crate) fn n_matrices(&self) -> Option<usize> {
        match self {
            MixerConfig::DeltaNet(net) => net.n_matrices(),
            MixerConfig::Mamba(mamba) => mamba.n_matrices(),
            MixerConfig::AttentionAndMamba(both) => both.mamba.n_matrices(),
            MixerConfig::Attention(_) | MixerConfig::ShortConv(_) | MixerConfig::None => Some(0),
        }
    }
}

/// A layer's feed-forward network.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum FfnConfig {
    /// A gated one.
    Gated(GatedConfig),
    /// One without a gate.
    Mlp(MlpConfig),
    /// Several gated ones, of which each token uses some.
    Experts(ExpertsConfig),
    /// A gated one and experts beside it.
    DenseAndExperts(DenseAndExpertsConfig),
    /// There is none.
    None,
}

impl FfnConfig {
    /// Elements inside, of an expert where there are such and nothing else; 0 where there is none.
    pub fn n_ff(&self) -> usize {
        match self {
            FfnConfig::Gated(config) => config.n_ff,
            FfnConfig::Mlp(config) => config.n_ff,
            FfnConfig::Experts(config) => config.n_ff,
            FfnConfig::DenseAndExperts(config) => config.dense.n_ff,
            FfnConfig::None => 0,
        }
    }
}

/// How heads are turned by their positions.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RopeConfig {
    /// Which elements of a head are turned together.
    pub style: RopeStyle,
    /// How many elements of a head are turned.
    pub n_rot: usize,
    /// Base of the frequencies.
    pub base: f32,
    /// Scaling of the frequencies.
    pub scaling: RopeScaling,
    /// Multiplies the turned vectors (LongRoPE).
    pub magnitude: f32,
    /// Whether the file's factors divide the frequencies.
    pub has_factors: bool,
    /// Context above which LongRoPE's long factors hold, in tokens.
    pub n_ctx_orig: usize,
}

impl Config {
    /// Reads and checks the hyperparameters of a model.
    ///
    /// # Errors
    ///
    /// A key that is missing, of the wrong type or out of range, or an unsupported feature.
    pub fn from_gguf(gguf: &Gguf<'_>) -> Result<Config, ModelError> {
        arch::read(gguf)
    }

    /// Whether layers remember in a form that tokens cannot be taken out of again: sequences go back in few
    /// places only, see [`Sequence::rewind`](crate::Sequence::rewind).
    pub fn is_recurrent(&self) -> bool {
        let mut layers = self.layers.iter();
        layers.any(|layer| layer.mixer.conv(self.n_embd).is_some())
    }

    /// The attention of each layer that has one.
    pub fn attentions(&self) -> impl Iterator<Item = &AttentionConfig> {
        self.layers
            .iter()
            .filter_map(|layer| layer.mixer.attention())
    }
}

//! A model's weights: layers of blocks, linears, norms.

use alloc::boxed::Box;
use alloc::vec::Vec;

use arrayvec::ArrayVec;

use super::linears::LinearId;
use super::tensor::Tensor;
use crate::blocks::{
    AltUp, Attention, AttentionAndMamba, DeltaNet, DenseAndExperts, Experts, Gated, Mamba, Mlp,
    PerLayer, ShortConv,
};

/// The weights of one layer: `x += mixer(norm(x))`, then `x += ffn(norm(x))`.
#[derive(Debug)]
#[non_exhaustive]
pub struct Layer {
    /// Before the mixer, where there is one.
    pub mixer_norm: Option<Norm>,
    /// What mixes tokens.
    pub mixer: Mixer,
    /// On the mixer's output, before it is added.
    pub post_mixer_norm: Option<Norm>,
    /// Before the feed-forward network, where there is one of its own. Of parallel blocks without one the
    /// mixer's serves both.
    pub ffn_norm: Option<Norm>,
    /// What works on each token by itself.
    pub ffn: Ffn,
    /// On the feed-forward network's output, before it is added.
    pub post_ffn_norm: Option<Norm>,
    /// What the layer's own input adds, where it has one.
    pub per_layer: Option<PerLayer>,
    /// The streams around the layer, where there are several.
    pub altup: Option<AltUp>,
    /// Multiplies the residual stream at the layer's end.
    pub output_scale: f32,
}

/// What mixes tokens.
#[derive(Debug)]
#[non_exhaustive]
pub enum Mixer {
    /// Attention.
    Attention(Box<Attention>),
    /// A gated short convolution.
    ShortConv(Box<ShortConv>),
    /// A gated delta net.
    DeltaNet(Box<DeltaNet>),
    /// Mamba-2.
    Mamba(Box<Mamba>),
    /// Attention and Mamba-2 beside each other.
    AttentionAndMamba(Box<AttentionAndMamba>),
    /// Nothing does.
    None,
}

/// What works on each token by itself.
#[derive(Debug)]
#[non_exhaustive]
pub enum Ffn {
    /// A gated feed-forward network.
    Gated(Gated),
    /// One without a gate.
    Mlp(Mlp),
    /// Several gated ones, of which each token uses some.
    Experts(Box<Experts>),
    /// A gated one and experts beside it.
    DenseAndExperts(Box<DenseAndExperts>),
    /// Nothing does.
    None,
}

/// `y = w x + bias`.
#[derive(Debug)]
#[non_exhaustive]
pub struct Linear {
    /// Which one it is.
    pub id: LinearId,
    /// `[n_out, n_in]`.
    pub w: Tensor,
    /// `[n_out]`; empty where there is none.
    pub bias: Vec<f32>,
}

/// A normalization's parameters.
#[derive(Debug)]
#[non_exhaustive]
pub struct Norm {
    /// `[n]`.
    pub weight: Vec<f32>,
    /// `[n]`; empty where there is none.
    pub bias: Vec<f32>,
}

/// Divisors of the rotary frequencies, `[n_rot / 2]` or empty where there are none.
#[derive(Debug, Default)]
pub(crate) struct RopeFactors {
    /// For contexts up to the one the model was trained on (LongRoPE), or for all (Llama 3).
    pub short: Vec<f32>,
    /// For longer contexts; empty where `short` serves all.
    pub long: Vec<f32>,
}

impl Layer {
    /// Whether sequences have a state for the layer.
    pub(crate) fn has_state(&self) -> bool {
        match &self.mixer {
            Mixer::Attention(attention) => attention.config.has_keys(),
            Mixer::ShortConv(_)
            | Mixer::DeltaNet(_)
            | Mixer::Mamba(_)
            | Mixer::AttentionAndMamba(_) => true,
            Mixer::None => false,
        }
    }

    /// The linears, in the order of their ids. What experts have is none of them: adapters cannot change it.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        let mixer: ArrayVec<&Linear, 8> = match &self.mixer {
            Mixer::Attention(attention) => attention.linears().collect(),
            Mixer::ShortConv(conv) => conv.linears().into_iter().collect(),
            Mixer::DeltaNet(net) => net.linears().into_iter().collect(),
            Mixer::Mamba(mamba) => mamba.linears().into_iter().collect(),
            Mixer::AttentionAndMamba(both) => {
                let mamba = both.mamba.linears();
                both.attention.linears().chain(mamba).collect()
            }
            Mixer::None => ArrayVec::new(),
        };
        let ffn: ArrayVec<&Linear, 3> = match &self.ffn {
            Ffn::Gated(ffn) => ffn.linears().into(),
            Ffn::Mlp(ffn) => ffn.linears().into_iter().collect(),
            Ffn::Experts(experts) => experts.linears().collect(),
            Ffn::DenseAndExperts(both) => both.dense.linears().into(),
            Ffn::None => ArrayVec::new(),
        };
        let per_layer = self.per_layer.iter().flat_map(PerLayer::linears);
        let altup = self.altup.iter().flat_map(AltUp::linears);
        mixer.into_iter().chain(ffn).chain(per_layer).chain(altup)
    }
}

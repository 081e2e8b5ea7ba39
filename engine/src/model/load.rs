//! Loading a model: every tensor that the hyperparameters ask for, of the right shape, and none
//! besides.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use tandem_formats::{DType, Gguf, Tensor as FileTensor};
use tandem_kernels::quant;

use super::bytes::ModelBytes;
use super::config::{Config, FfnConfig, MixerConfig, NormKind};
use super::linears::{LinearInfo, Linears};
use super::tensor::Tensor;
use super::weights::{Ffn, Layer, Linear, Mixer, Norm, RopeFactors};
use crate::blocks::{
    AltUp, AltUpEnds, Attention, AttentionAndMamba, DeltaNet, DenseAndExperts, Experts, Gated,
    Mamba, Mlp, PerLayer, PerLayerEmbeddings, ShortConv,
};
use crate::{CompositionError, ModelError};

/// All weights of a model.
#[derive(Debug)]
pub(super) struct Weights {
    /// `[n_vocab, n_embd]`.
    pub token_embd: Tensor,
    pub per_layer: Option<PerLayerEmbeddings>,
    pub altup: Option<AltUpEnds>,
    /// `[n_positions, n_embd]`.
    pub positions: Option<Tensor>,
    pub layers: Vec<Layer>,
    pub output_norm: Norm,
    pub output: Linear,
    pub rope_factors: RopeFactors,
}

impl Weights {
    pub(super) fn load(
        gguf: &Gguf<'_>,
        bytes: &ModelBytes,
        config: &Config,
        linears: &Linears,
    ) -> Result<Weights, ModelError> {
        let mut tensors = Tensors {
            gguf,
            bytes,
            config,
            linears,
            used: BTreeSet::new(),
        };
        let token_embd = tensors.matrix("token_embd.weight", config.n_vocab, config.n_embd)?;
        let output = match gguf.tensor("output.weight") {
            Some(_) => tensors.linear("output")?,
            None => Linear {
                id: linears.output(),
                w: token_embd.clone(),
                bias: Vec::new(),
            },
        };
        if output.bias.is_empty() && config.arch.needs("output.bias") {
            return Err(ModelError::MissingTensor {
                name: "output.bias".to_string(),
            });
        }
        let per_layer = match &config.per_layer {
            Some(c) => Some(PerLayerEmbeddings::load(c, &mut tensors)?),
            None => None,
        };
        let altup = match &config.altup {
            Some(c) => Some(AltUpEnds::load(c, &mut tensors)?),
            None => None,
        };
        let positions = match config.arch.has_positions() {
            true => {
                let n = config.n_ctx_train;
                Some(tensors.matrix("position_embd.weight", n, config.n_embd)?)
            }
            false => None,
        };
        let rope_factors = tensors.rope_factors()?;
        let layers = (0..config.layers.len()).map(|i| tensors.layer(i));
        let layers = layers.collect::<Result<_, _>>()?;
        let output_norm = tensors.norm(config.arch.output_norm())?;
        tensors.refuse_unused()?;
        Ok(Weights {
            token_embd,
            per_layer,
            altup,
            positions,
            layers,
            output_norm,
            output,
            rope_factors,
        })
    }
}

/// Looks tensors up and keeps account of those that were asked for.
pub(crate) struct Tensors<'g, 'a> {
    gguf: &'g Gguf<'a>,
    bytes: &'g ModelBytes,
    config: &'g Config,
    linears: &'g Linears,
    used: BTreeSet<&'a str>,
}

impl<'a> Tensors<'_, 'a> {
    fn layer(&mut self, i: usize) -> Result<Layer, ModelError> {
        let config = self.config;
        let layer = &config.layers[i];
        let name = |part: &str| format!("blk.{i}.{part}");
        let (ffn_norm, post_mixer_norm) = (config.arch.ffn_norm(), "post_attention_norm");
        let layer = Layer {
            mixer_norm: match layer.mixer {
                MixerConfig::None => None,
                _ => self.pre_norm(&name("attn_norm"))?,
            },
            mixer: match &layer.mixer {
                MixerConfig::Attention(c) => {
                    Mixer::Attention(Box::new(Attention::load(c, self, i)?))
                }
                MixerConfig::ShortConv(c) => {
                    Mixer::ShortConv(Box::new(ShortConv::load(c, self, i)?))
                }
                MixerConfig::DeltaNet(c) => Mixer::DeltaNet(Box::new(DeltaNet::load(c, self, i)?)),
                MixerConfig::Mamba(c) => Mixer::Mamba(Box::new(Mamba::load(c, self, i)?)),
                MixerConfig::AttentionAndMamba(c) => {
                    Mixer::AttentionAndMamba(Box::new(AttentionAndMamba::load(c, self, i)?))
                }
                MixerConfig::None => Mixer::None,
            },
            post_mixer_norm: match ffn_norm == post_mixer_norm || layer.mixer == MixerConfig::None {
                true => None,
                false => self.optional_norm(&name(post_mixer_norm))?,
            },
            ffn_norm: match (&layer.mixer, &layer.ffn) {
                _ if config.arch.shares_norm() => None,
                (_, FfnConfig::None) => None,
                // A layer of one block has one norm.
                (MixerConfig::None, _) => self.pre_norm(&name("attn_norm"))?,
                _ => self.pre_norm(&name(ffn_norm))?,
            },
            ffn: match &layer.ffn {
                FfnConfig::Gated(c) => Ffn::Gated(Gated::load(c, self, i)?),
                FfnConfig::Mlp(c) => Ffn::Mlp(Mlp::load(c, self, i)?),
                FfnConfig::Experts(c) => Ffn::Experts(Box::new(Experts::load(c, self, i)?)),
                FfnConfig::DenseAndExperts(c) => {
                    Ffn::DenseAndExperts(Box::new(DenseAndExperts::load(c, self, i)?))
                }
                FfnConfig::None => Ffn::None,
            },
            post_ffn_norm: match &layer.ffn {
                FfnConfig::None => None,
                _ => self.optional_norm(&name("post_ffw_norm"))?,
            },
            per_layer: match &config.per_layer {
                Some(c) => Some(PerLayer::load(c, self, i)?),
                None => None,
            },
            altup: match &config.altup {
                Some(c) => Some(AltUp::load(c, self, i)?),
                None => None,
            },
            output_scale: match &config.altup {
                Some(_) => 1.0,
                None => self.output_scale(i)?,
            },
        };
        for (is_there, tensor) in [
            (
                layer.post_mixer_norm.is_some(),
                "post_attention_norm.weight",
            ),
            (layer.post_ffn_norm.is_some(), "post_ffw_norm.weight"),
        ] {
            self.check_needed(i, tensor, is_there)?;
        }
        Ok(layer)
    }

    /// What multiplies the residual stream at the end of layer `i`: 1 where the file has nothing for that.
    fn output_scale(&mut self, i: usize) -> Result<f32, ModelError> {
        let tensor = "layer_output_scale.weight";
        let scale = self.vector(&format!("blk.{i}.{tensor}"), 1)?;
        self.check_needed(i, tensor, !scale.is_empty())?;
        Ok(scale.first().copied().unwrap_or(1.0))
    }

    /// Whether the file has a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.gguf.tensor(name).is_some()
    }

    pub(crate) fn n_embd(&self) -> usize {
        self.config.n_embd
    }

    pub(crate) fn norm_eps(&self) -> f32 {
        self.config.norm_eps
    }

    pub(crate) fn n_vocab(&self) -> usize {
        self.config.n_vocab
    }

    /// Takes a tensor for used that nobody reads, if it is there.
    pub(crate) fn ignore(&mut self, name: &str) {
        self.optional(name);
    }

    /// That a tensor is there which is optional in general, where the architecture needs it.
    pub(crate) fn check_needed(
        &self,
        layer: usize,
        tensor: &str,
        is_there: bool,
    ) -> Result<(), ModelError> {
        match is_there || !self.config.arch.needs(tensor) {
            true => Ok(()),
            false => Err(ModelError::MissingTensor {
                name: format!("blk.{layer}.{tensor}"),
            }),
        }
    }

    fn optional(&mut self, name: &str) -> Option<FileTensor<'a>> {
        let tensor = *self.gguf.tensor(name)?;
        self.used.insert(tensor.name);
        Some(tensor)
    }

    pub(crate) fn matrix(
        &mut self,
        name: &str,
        n_rows: usize,
        n_cols: usize,
    ) -> Result<Tensor, ModelError> {
        self.matrices(name, 1, [n_rows, n_cols])
    }

    /// `n` matrices of one tensor, one after the other, as one of `[n n_rows, n_cols]`.
    pub(crate) fn matrices(
        &mut self,
        name: &str,
        n: usize,
        [n_rows, n_cols]: [usize; 2],
    ) -> Result<Tensor, ModelError> {
        let t = self.optional(name);
        let t = t.ok_or_else(|| ModelError::MissingTensor {
            name: name.to_string(),
        })?;
        // Of one matrix the third dimension may be left out.
        let n_found = t.shape().get(2).copied().unwrap_or(1);
        let is_deeper = t.shape().iter().skip(3).any(|n| *n != 1);
        let all_rows = n_rows.saturating_mul(n);
        if n_found != n || is_deeper || t.n_rows() != all_rows || t.n_cols() != n_cols {
            return Err(shape_error(&t, all_rows, n_cols));
        }
        let data = self.bytes.keep(t.data);
        Tensor::new(t.dtype, all_rows, n_cols, data).ok_or(ModelError::Type {
            name: name.to_string(),
            found: t.dtype,
        })
    }

    /// A vector of floats `[n]`; empty where there is no such tensor.
    pub(crate) fn vector(&mut self, name: &str, n: usize) -> Result<Vec<f32>, ModelError> {
        self.floats(name, 1, n)
    }

    /// A matrix of floats `[n_rows, n_cols]` that has to be there.
    pub(crate) fn float_matrix(
        &mut self,
        name: &str,
        n_rows: usize,
        n_cols: usize,
    ) -> Result<Vec<f32>, ModelError> {
        let values = self.floats(name, n_rows, n_cols)?;
        match values.is_empty() {
            true => Err(ModelError::MissingTensor {
                name: name.to_string(),
            }),
            false => Ok(values),
        }
    }

    /// A matrix of floats `[n_rows, n_cols]`; empty where there is no such tensor.
    pub(crate) fn floats(
        &mut self,
        name: &str,
        n_rows: usize,
        n_cols: usize,
    ) -> Result<Vec<f32>, ModelError> {
        let Some(t) = self.optional(name) else {
            return Ok(Vec::new());
        };
        check_shape(&t, n_rows, n_cols)?;
        if !matches!(t.dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Err(ModelError::Type {
                name: name.to_string(),
                found: t.dtype,
            });
        }
        let mut values = vec![0.0; n_rows * n_cols];
        quant::dequantize(t.dtype, t.data, &mut values);
        Ok(values)
    }

    /// A vector of floats `[n]` that has to be there.
    pub(crate) fn needed_vector(&mut self, name: &str, n: usize) -> Result<Vec<f32>, ModelError> {
        self.float_matrix(name, 1, n)
    }

    /// The linear of this name, from a tensor of its own.
    pub(crate) fn linear(&mut self, name: &str) -> Result<Linear, ModelError> {
        let info = self.linears.by_name(name);
        let LinearInfo {
            id, n_out, n_in, ..
        } = *info.ok_or_else(|| missing(name))?;
        Ok(Linear {
            id,
            w: self.matrix(&format!("{name}.weight"), n_out, n_in)?,
            bias: self.vector(&format!("{name}.bias"), n_out)?,
        })
    }

    /// A linear of layer `i`: from its own tensor, or from the one that the file has `fused` it into
    /// with others.
    pub(crate) fn linear_of_layer(
        &mut self,
        i: usize,
        part: &str,
        fused: &str,
    ) -> Result<Linear, ModelError> {
        let (name, fused) = (format!("blk.{i}.{part}"), format!("blk.{i}.{fused}"));
        let info = self.linears.by_name(&name).ok_or_else(|| missing(&name))?;
        let whole = self.gguf.tensor(&format!("{fused}.weight"));
        // Phi 3 has the gate in `ffn_up`, before what is gated: the rows tell.
        let own = self.linears.by_name(&fused).map(|linear| linear.n_out);
        let Some(whole) = whole.filter(|t| Some(t.n_rows()) != own) else {
            return self.linear(&name);
        };
        let parts = self.linears.of_tensor(&fused, whole.n_rows());
        let parts = parts.map_err(|error| match error {
            CompositionError::Shape { wanted, .. } => ModelError::Shape {
                name: String::from(whole.name),
                wanted,
                found: (whole.n_rows(), whole.n_cols()),
            },
            _ => missing(&name),
        })?;
        let (n_out, n_in) = (parts.n_out, parts.n_in);
        let rows = parts.linears.iter().find(|(id, _)| *id == info.id);
        let rows = rows.map(|(_, rows)| rows.clone());
        let rows = rows.ok_or_else(|| missing(&name))?;
        let w = self.matrix(&format!("{fused}.weight"), n_out, n_in)?;
        let bias = self.vector(&format!("{fused}.bias"), n_out)?;
        Ok(Linear {
            id: info.id,
            w: w.rows(rows.clone()).ok_or_else(|| missing(&name))?,
            bias: bias.get(rows).unwrap_or_default().to_vec(),
        })
    }

    /// The norm before a block, where the architecture has such.
    fn pre_norm(&mut self, name: &str) -> Result<Option<Norm>, ModelError> {
        match self.config.arch.has_pre_norms() {
            true => self.norm(name).map(Some),
            false => Ok(None),
        }
    }

    pub(crate) fn norm(&mut self, name: &str) -> Result<Norm, ModelError> {
        let norm = self.optional_norm(name)?;
        norm.ok_or_else(|| missing(name))
    }

    fn optional_norm(&mut self, name: &str) -> Result<Option<Norm>, ModelError> {
        let (kind, n_embd) = (self.config.norm, self.config.n_embd);
        let mut weight = self.vector(&format!("{name}.weight"), n_embd)?;
        if weight.is_empty() {
            // Falcon-H1's files have some without the ending.
            weight = self.vector(name, n_embd)?;
        }
        let bias = match kind {
            NormKind::Rms => Vec::new(), // a bias stays unused and is refused as such
            NormKind::Layer if !self.config.arch.has_norm_bias() => Vec::new(),
            NormKind::Layer => self.vector(&format!("{name}.bias"), n_embd)?,
        };
        let needs_bias = kind == NormKind::Layer && self.config.arch.has_norm_bias();
        if needs_bias && bias.is_empty() && !weight.is_empty() {
            return Err(ModelError::MissingTensor {
                name: format!("{name}.bias"),
            });
        }
        Ok((!weight.is_empty()).then_some(Norm { weight, bias }))
    }

    fn rope_factors(&mut self) -> Result<RopeFactors, ModelError> {
        let rope = self.config.ropes.iter().find(|rope| rope.has_factors);
        let n = rope.map_or(0, |rope| rope.n_rot / 2);
        let mut factors = |name: &str| -> Result<Vec<f32>, ModelError> {
            let factors = self.vector(name, n)?;
            match factors.iter().all(|f| f.is_finite() && *f > 0.0) {
                true => Ok(factors),
                false => Err(ModelError::Value {
                    key: name.to_string(),
                    reason: "a factor is not positive and finite",
                }),
            }
        };
        let name = "rope_freqs.weight";
        let all = factors(name)?;
        let short = factors("rope_factors_short.weight")?;
        let long = factors("rope_factors_long.weight")?;
        if all.is_empty() && self.config.arch.needs(name) {
            return Err(ModelError::MissingTensor {
                name: name.to_string(),
            });
        }
        Ok(match short.is_empty() {
            true => RopeFactors { short: all, long },
            false => RopeFactors { short, long },
        })
    }

    fn refuse_unused(&self) -> Result<(), ModelError> {
        let n_layer = self.config.layers.len();
        let left_out = n_layer..n_layer + self.config.n_predict_layers;
        let is_left_out = |name: &str| {
            let layer = name
                .strip_prefix("blk.")
                .and_then(|rest| rest.split('.').next());
            let layer = layer.and_then(|layer| layer.parse().ok());
            layer.is_some_and(|layer| left_out.contains(&layer))
        };
        let mut tensors = self.gguf.tensors().iter();
        match tensors.find(|t| !self.used.contains(t.name) && !is_left_out(t.name)) {
            Some(t) => Err(ModelError::UnusedTensor {
                name: t.name.to_string(),
            }),
            None => Ok(()),
        }
    }
}

fn missing(name: &str) -> ModelError {
    ModelError::MissingTensor {
        name: format!("{name}.weight"),
    }
}

fn check_shape(t: &FileTensor<'_>, n_rows: usize, n_cols: usize) -> Result<(), ModelError> {
    let is_matrix = t.shape().iter().skip(2).all(|n| *n == 1);
    match is_matrix && t.n_rows() == n_rows && t.n_cols() == n_cols {
        true => Ok(()),
        false => Err(shape_error(t, n_rows, n_cols)),
    }
}

fn shape_error(t: &FileTensor<'_>, n_rows: usize, n_cols: usize) -> ModelError {
    ModelError::Shape {
        name: String::from(t.name),
        wanted: (n_rows, n_cols),
        found: (t.n_rows(), t.n_cols()),
    }
}

//! Each layer's feed-forward network.

use alloc::format;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use tandem_kernels::{Activation, Xielu, softplus};

use super::{Keys, MAX_DIMENSION};
use crate::ModelError;
use crate::blocks::{
    AltUpConfig, DenseAndExpertsConfig, ExpertsConfig, GatedConfig, Gating, MAX_STREAMS, MAX_USED,
    MlpConfig, PerLayerConfig,
};
use crate::model::arch::{ExpertForm, SharedForm};
use crate::model::config::FfnConfig;

/// The rank of the path beside attention in published models.
const LAUREL_RANK: usize = 64;

/// The most experts; models have up to 512.
const MAX_EXPERTS: usize = 1024;

impl Keys<'_, '_> {
    /// Each layer's feed-forward network.
    pub(super) fn ffns(&self, n_layer: usize) -> Result<Vec<FfnConfig>, ModelError> {
        let name = "feed_forward_length";
        let experts = self.experts()?;
        let activations = match self.arch.has_xielu {
            true => self.xielus(n_layer)?,
            false => vec![self.arch.activation; n_layer],
        };
        let n_ffs = match self.arch.is_one_block {
            true => self.counts_or_zeros(name, n_layer)?,
            false => self.counts(name, n_layer)?,
        };
        // Dense networks come first, or stand beside the experts.
        let n_dense = match (&experts, &self.arch.experts) {
            (None, _) | (_, ExpertForm::BesideDense) => n_layer,
            (Some(_), _) => {
                let n = self.gguf.get_u64(&self.key("leading_dense_block_count"))?;
                usize::try_from(n.unwrap_or(0))
                    .unwrap_or(usize::MAX)
                    .min(n_layer)
            }
        };
        let mut all = Vec::new();
        if n_dense > 0 {
            let n_ffs = n_ffs.ok_or_else(|| self.missing(name))?;
            let sparsities = self.sparsities(n_layer)?;
            all.extend((0..n_dense).map(|i| {
                let (n_ff, activation) = (n_ffs[i], activations[i]);
                let gated = GatedConfig {
                    n_ff,
                    activation,
                    sparsity: sparsities[i],
                    is_shared: false,
                };
                match (&experts, self.arch.is_gated) {
                    _ if n_ff == 0 => FfnConfig::None,
                    (_, false) => FfnConfig::Mlp(MlpConfig { n_ff, activation }),
                    (Some(experts), true) if self.arch.experts == ExpertForm::BesideDense => {
                        FfnConfig::DenseAndExperts(DenseAndExpertsConfig {
                            dense: gated,
                            experts: experts.clone(),
                        })
                    }
                    (_, true) => FfnConfig::Gated(gated),
                }
            }));
        }
        if let Some(experts) = experts {
            all.resize(n_layer, FfnConfig::Experts(experts));
        }
        Ok(all)
    }

    /// How far above the others of its row a gate has to be, layer by layer; converters write minus infinity where
    /// all are used as they are.
    fn sparsities(&self, n_layer: usize) -> Result<Vec<Option<f32>>, ModelError> {
        let name = "activation_sparsity_scale";
        if !self.arch.has_altup {
            return Ok(vec![None; n_layer]);
        }
        let wrong = || self.wrong(name, "a number for each layer is wanted");
        let list = self.gguf.get_array(&self.key(name))?.ok_or_else(wrong)?;
        let values = list.iter_f32().into_iter().flatten().take(n_layer + 1);
        let values: Vec<f32> = values.collect();
        let is_scale = |z: &f32| z.is_finite() || *z == f32::NEG_INFINITY;
        match values.len() == n_layer && values.iter().all(is_scale) {
            true => Ok(values
                .into_iter()
                .map(|z| Some(z).filter(|z| z.is_finite()))
                .collect()),
            false => Err(wrong()),
        }
    }

    /// The residual streams, where there are several.
    pub(super) fn altup(&self) -> Result<Option<AltUpConfig>, ModelError> {
        let (name, active_name) = ("altup.num_inputs", "altup.active_idx");
        if !self.arch.has_altup {
            return Ok(None);
        }
        // What they end with is a layer's own input.
        self.needed("embedding_length_per_layer_input")?;
        let n_streams = self.needed(name)?;
        if !(2..=MAX_STREAMS).contains(&n_streams) {
            return Err(self.wrong(name, "from 2 to 8 are supported"));
        }
        let active = self.gguf.get_u64(&self.key(active_name))?;
        let active = active.ok_or_else(|| self.missing(active_name))?;
        // No key has the rank.
        let laurel = self.gguf.tensor("blk.0.laurel_l.weight");
        let n_laurel = laurel.map_or(LAUREL_RANK, |laurel| laurel.n_rows());
        Ok(Some(AltUpConfig {
            n_streams,
            active: match usize::try_from(active) {
                Ok(active) if active < n_streams => active,
                _ => return Err(self.wrong(active_name, "there is no such stream")),
            },
            n_laurel: match (1..=MAX_DIMENSION).contains(&n_laurel) {
                true => n_laurel,
                false => {
                    return Err(ModelError::Value {
                        key: "blk.0.laurel_l.weight".to_string(),
                        reason: "it is far too wide",
                    });
                }
            },
        }))
    }

    /// Each layer's xIELU. Its keys have no prefix.
    fn xielus(&self, n_layer: usize) -> Result<Vec<Activation>, ModelError> {
        let numbers = |name: &str| {
            let key = format!("xielu.{name}");
            let Some(list) = self.gguf.get_array(&key)? else {
                return Err(ModelError::MissingKey { key });
            };
            let values: Vec<f32> = list
                .iter_f32()
                .into_iter()
                .flatten()
                .take(n_layer + 1)
                .collect();
            match values.len() == n_layer && values.iter().all(|value| value.is_finite()) {
                true => Ok(values),
                false => Err(ModelError::Value {
                    key,
                    reason: "a number for each layer is wanted",
                }),
            }
        };
        let (alpha_p, alpha_n) = (numbers("alpha_p")?, numbers("alpha_n")?);
        let (beta, eps) = (numbers("beta")?, numbers("eps")?);
        let xielu = |i: usize| {
            Activation::Xielu(Xielu {
                positive: softplus(alpha_p[i]),
                negative: beta[i] + softplus(alpha_n[i]),
                linear: beta[i],
                eps: eps[i],
            })
        };
        Ok((0..n_layer).map(xielu).collect())
    }

    /// The experts of the layers that have such.
    fn experts(&self) -> Result<Option<ExpertsConfig>, ModelError> {
        let (name, used_name) = ("expert_count", "expert_used_count");
        if self.gguf.get_u64(&self.key(name))?.unwrap_or(0) == 0 {
            return Ok(None);
        }
        let (n_experts, n_used) = (self.needed(name)?, self.needed(used_name)?);
        if n_experts > MAX_EXPERTS {
            return Err(self.wrong(name, "more than 1024 are not supported"));
        }
        if n_used > n_experts.min(MAX_USED) {
            return Err(self.wrong(used_name, "it is more than there are, or than 64"));
        }
        let n_ff = match self.count("expert_feed_forward_length")? {
            Some(n) => n,
            None => self.needed("feed_forward_length")?,
        };
        let gating = match self.gguf.get_u64(&self.key("expert_gating_func"))? {
            None | Some(0) => self.arch.gating,
            Some(1) => Gating::Softmax,
            Some(2) => Gating::Sigmoid,
            Some(3) => Gating::SoftmaxOfChosen,
            Some(_) => {
                return Err(self.wrong("expert_gating_func", "this function is not supported"));
            }
        };
        let norm = self.gguf.get_bool(&self.key("expert_weights_norm"))?;
        Ok(Some(ExpertsConfig {
            n_experts,
            n_used,
            n_ff,
            activation: self.arch.activation,
            bound: self.arch.expert_bound,
            gating,
            // A softmax over those chosen sums to 1 already.
            normalizes: norm.unwrap_or(true) && gating != Gating::SoftmaxOfChosen,
            weight_scale: self.scale("expert_weights_scale")?,
            routes_residual: self.arch.experts == ExpertForm::BesideDense,
            shared: self.shared_expert()?,
            gates_shared: self.arch.shared_expert == SharedForm::Gated,
        }))
    }

    /// The expert that all tokens use.
    fn shared_expert(&self) -> Result<Option<GatedConfig>, ModelError> {
        let name = "expert_shared_feed_forward_length";
        let n_ff = match self.arch.shared_expert {
            SharedForm::None => return Ok(None),
            SharedForm::Gated => self.needed(name)?,
            SharedForm::InFile => match self.gguf.get_u64(&self.key(name))?.unwrap_or(0) {
                0 => return Ok(None),
                _ => self.needed(name)?,
            },
        };
        Ok(Some(GatedConfig {
            n_ff,
            activation: self.arch.activation,
            sparsity: None,
            is_shared: true,
        }))
    }

    /// The inputs that layers have of their own.
    pub(super) fn per_layer(&self, n_layer: usize) -> Result<Option<PerLayerConfig>, ModelError> {
        let name = "embedding_length_per_layer_input";
        if !self.arch.has_per_layer_inputs || self.gguf.get_u64(&self.key(name))?.unwrap_or(0) == 0
        {
            return Ok(None);
        }
        let n_input = self.needed(name)?;
        if n_input.saturating_mul(n_layer) > MAX_DIMENSION {
            return Err(self.wrong(name, "the number is far too large"));
        }
        Ok(Some(PerLayerConfig {
            n_input,
            activation: self.arch.activation,
        }))
    }
}

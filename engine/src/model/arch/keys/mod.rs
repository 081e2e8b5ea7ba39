//! Reading an architecture's metadata.

mod ffns;
mod mixers;
mod ropes;

use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use tandem_formats::{Array, Gguf, Value};
use tandem_kernels::RopeStyle;

use super::{Architecture, EmbeddingScale, ExpertForm, Parallel, key};
use crate::ModelError;
use crate::blocks::AttentionConfig;
use crate::model::config::{Config, LayerConfig, MixerConfig, NormKind};

/// So that sums and products of a few dimensions do not overflow; no model comes near.
const MAX_DIMENSION: usize = 1 << 24;

/// The most layers; no model comes near.
const MAX_LAYERS: usize = 1024;

/// The attention of layers that have such.
fn attentions(mixers: &[MixerConfig]) -> impl Iterator<Item = &AttentionConfig> {
    mixers.iter().filter_map(MixerConfig::attention)
}

/// The metadata of one architecture: keys without their prefix.
pub(super) struct Keys<'g, 'a> {
    gguf: &'g Gguf<'a>,
    arch: &'static Architecture,
}

impl<'g, 'a> Keys<'g, 'a> {
    pub(super) fn new(gguf: &'g Gguf<'a>, arch: &'static Architecture) -> Keys<'g, 'a> {
        Keys { gguf, arch }
    }

    fn key(&self, name: &str) -> String {
        key(self.arch, name)
    }

    /// A count between 1 and [`MAX_DIMENSION`].
    fn count(&self, name: &str) -> Result<Option<usize>, ModelError> {
        let key = self.key(name);
        let value = match self.gguf.get(&key) {
            Some(Value::Array(values)) => self.same(name, values)?.as_integer(),
            _ => self.gguf.get_u64(&key)?.map(i128::from),
        };
        value.map(|value| self.checked(name, value)).transpose()
    }

    fn checked(&self, name: &str, value: i128) -> Result<usize, ModelError> {
        match usize::try_from(value) {
            Ok(n) if (1..=MAX_DIMENSION).contains(&n) => Ok(n),
            _ => Err(self.wrong(name, "the number is zero or far too large")),
        }
    }

    /// The count of each layer: of a list, or the same for all.
    fn counts(&self, name: &str, n_layer: usize) -> Result<Option<Vec<usize>>, ModelError> {
        let counts = self.counts_or_zeros(name, n_layer)?;
        match counts.as_ref().is_some_and(|counts| counts.contains(&0)) {
            true => Err(self.wrong(name, "the number is zero or far too large")),
            false => Ok(counts),
        }
    }

    /// The same, where some may be 0.
    fn counts_or_zeros(
        &self,
        name: &str,
        n_layer: usize,
    ) -> Result<Option<Vec<usize>>, ModelError> {
        let Some(Value::Array(values)) = self.gguf.get(&self.key(name)) else {
            let count = match self.gguf.get(&self.key(name)).map(Value::as_integer) {
                Some(Some(0)) => Some(0),
                _ => self.count(name)?,
            };
            return Ok(count.map(|n| vec![n; n_layer]));
        };
        let wanted = || self.wrong(name, "a number for each layer is wanted");
        let values = values.iter_values().into_iter().flatten();
        let counts = values.map(|value| match value.as_integer() {
            Some(0) => Ok(0),
            Some(value) => self.checked(name, value),
            None => Err(wanted()),
        });
        let counts = counts.take(n_layer + 1).collect::<Result<Vec<_>, _>>()?;
        match counts.len() == n_layer {
            true => Ok(Some(counts)),
            false => Err(wanted()),
        }
    }

    /// A yes or no for each layer, of a list; none where there is another value or nothing. A list may go on to
    /// layers that predict further tokens.
    fn flags(&self, name: &str, n_layer: usize) -> Result<Option<Vec<bool>>, ModelError> {
        let Some(Value::Array(list)) = self.gguf.get(&self.key(name)) else {
            return Ok(None);
        };
        let values = list.iter_values().into_iter().flatten().take(n_layer);
        let flags = values.map(|value| match value {
            Value::Bool(flag) => Some(flag),
            other => other.as_integer().map(|n| n != 0),
        });
        let n_layers = n_layer..=n_layer + self.n_predict_layers()?;
        let flags = flags.collect::<Option<Vec<bool>>>();
        let flags = flags.filter(|_| n_layers.contains(&list.len()));
        let wrong = || self.wrong(name, "a yes or no for each layer is wanted");
        flags.ok_or_else(wrong).map(Some)
    }

    /// The value that all layers have, of a list with one for each.
    fn same<'v>(&self, name: &str, values: &Array<'v>) -> Result<Value<'v>, ModelError> {
        let differ = || self.wrong(name, "layers that differ in it are not supported");
        let mut all = values.iter_values().into_iter().flatten();
        let first = all
            .next()
            .ok_or_else(|| self.wrong(name, "the list is empty"))?;
        match all.all(|value| value == first) {
            true => Ok(first),
            false => Err(differ()),
        }
    }

    fn needed(&self, name: &str) -> Result<usize, ModelError> {
        self.count(name)?.ok_or_else(|| self.missing(name))
    }

    fn missing(&self, name: &str) -> ModelError {
        ModelError::MissingKey {
            key: self.key(name),
        }
    }

    /// A float that is finite and positive.
    fn positive(&self, name: &str) -> Result<Option<f32>, ModelError> {
        let key = self.key(name);
        let value = match self.gguf.get(&key) {
            Some(Value::Array(values)) => self.same(name, values)?.as_f32(),
            _ => self.gguf.get_f32(&key)?,
        };
        match value {
            Some(x) if x > 0.0 && x.is_finite() => Ok(Some(x)),
            Some(_) => Err(self.wrong(name, "the number is not positive and finite")),
            None => Ok(None),
        }
    }

    fn wrong(&self, name: &str, reason: &'static str) -> ModelError {
        ModelError::Value {
            key: self.key(name),
            reason,
        }
    }

    /// All hyperparameters.
    pub(super) fn config(&self) -> Result<Config, ModelError> {
        self.refuse_unsupported()?;
        let arch = self.arch;
        let n_embd = self.needed("embedding_length")?;
        let n_predict_layers = self.n_predict_layers()?;
        let n_layer = self.needed("block_count")? - n_predict_layers;
        if n_layer > MAX_LAYERS {
            return Err(self.wrong("block_count", "more than 1024 layers are not supported"));
        }
        let globals = self.globals(n_layer)?;
        let ffns = self.ffns(n_layer)?;
        let mut mixers = self.mixers(n_embd, &globals, &ffns)?;
        let name = "token_embd.weight";
        let embeddings = self.gguf.tensor(name);
        let embeddings = embeddings.ok_or_else(|| ModelError::MissingTensor {
            name: name.to_string(),
        })?;
        let n_ctx_train = self.needed("context_length")?;
        let ropes = self.ropes(&mixers, n_ctx_train)?;
        let has_windows = attentions(&mixers).any(|attention| attention.window.is_some());
        for (i, mixer) in mixers.iter_mut().enumerate() {
            let rope = self.rope_of(i, globals[i], has_windows, ropes.len())?;
            match mixer {
                MixerConfig::Attention(attention) => attention.rope = rope,
                MixerConfig::AttentionAndMamba(both) => both.attention.rope = rope,
                _ => {}
            }
        }
        let layers = mixers.into_iter().zip(ffns);
        let layers = layers.map(|(mixer, ffn)| LayerConfig { mixer, ffn });
        Ok(Config {
            arch,
            n_ctx_train,
            n_vocab: embeddings.n_rows(),
            n_embd,
            norm: arch.norm,
            norm_eps: self.norm_eps()?,
            layers: layers.collect(),
            ropes,
            n_predict_layers,
            per_layer: self.per_layer(n_layer)?,
            altup: self.altup()?,
            embedding_scale: match arch.embedding_scale {
                EmbeddingScale::RootOfWidth => libm::sqrtf(n_embd as f32),
                EmbeddingScale::InFile => self.scale("embedding_scale")?,
                EmbeddingScale::One => 1.0,
            },
            residual_scale: match arch.embedding_scale {
                EmbeddingScale::InFile => self.scale("residual_scale")?,
                _ => 1.0,
            },
            logit_scale: match arch.embedding_scale {
                EmbeddingScale::InFile => 1.0 / self.scale("logit_scale")?,
                _ if arch.scales_logits => self.scale("logit_scale")?,
                _ => 1.0,
            },
            is_parallel: match arch.parallel {
                Parallel::No => false,
                Parallel::OneNorm => true,
                Parallel::InFile => {
                    let is_parallel = self.gguf.get_bool(&self.key("use_parallel_residual"))?;
                    is_parallel.unwrap_or(true)
                }
            },
            logit_softcap: self
                .nonzero("final_logit_softcapping")?
                .or(arch.logit_softcap),
        })
    }

    /// What is added to the variance.
    fn norm_eps(&self) -> Result<f32, ModelError> {
        let key = self.arch.eps_key.unwrap_or(match self.arch.norm {
            NormKind::Rms => "attention.layer_norm_rms_epsilon",
            NormKind::Layer => "attention.layer_norm_epsilon",
        });
        self.positive(key)?.ok_or_else(|| self.missing(key))
    }

    /// Layers behind the others that predict further tokens, fewer than there are in all.
    fn n_predict_layers(&self) -> Result<usize, ModelError> {
        let name = "nextn_predict_layers";
        let n = self.gguf.get_u64(&self.key(name))?.unwrap_or(0);
        match usize::try_from(n) {
            Ok(0) => Ok(0),
            Ok(n) if self.arch.delta_nets.is_some() && n < self.needed("block_count")? => Ok(n),
            _ => Err(self.wrong(name, "such layers are not supported here")),
        }
    }

    /// A factor; 1 where there is none, and where converters wrote 0 for that.
    fn scale(&self, name: &str) -> Result<f32, ModelError> {
        Ok(self.nonzero(name)?.unwrap_or(1.0))
    }

    /// Features that would change the result without leaving a trace in the tensors' names.
    fn refuse_unsupported(&self) -> Result<(), ModelError> {
        let unsupported = |feature| Err(ModelError::Unsupported { feature });
        if self.gguf.get_bool(&self.key("attention.causal"))? == Some(false) {
            return unsupported("attention that sees later tokens");
        }
        let n_experts = self.gguf.get_u64(&self.key("expert_count"))?.unwrap_or(0);
        if n_experts > 0 && self.arch.experts == ExpertForm::None {
            return unsupported("a mixture of experts");
        }
        if self
            .gguf
            .get_u64(&self.key("expert_group_count"))?
            .unwrap_or(0)
            > 1
        {
            return unsupported("experts in groups");
        }
        let is_parallel = self.gguf.get_bool(&self.key("use_parallel_residual"))?;
        if is_parallel == Some(true) && self.arch.parallel != Parallel::InFile {
            return unsupported("parallel residuals");
        }
        // Converters have the rows of such files in another order than those of others of its kind.
        let has_sections = match self.gguf.get(&self.key("rope.dimension_sections")) {
            Some(Value::Array(sections)) => {
                let mut all = sections.iter_values().into_iter().flatten();
                all.any(|section| section.as_integer() != Some(0))
            }
            _ => false,
        };
        if has_sections && self.arch.rope_style == RopeStyle::Normal {
            return unsupported("rotary positions in several dimensions");
        }
        for name in self.arch.needed_keys {
            if self.gguf.get(&self.key(name)).is_none() {
                return Err(self.missing(name));
            }
        }
        Ok(())
    }

    /// A positive number; converters write 0 for "none".
    fn nonzero(&self, name: &str) -> Result<Option<f32>, ModelError> {
        match self.gguf.get_f32(&self.key(name))? {
            Some(0.0) => Ok(None),
            _ => self.positive(name),
        }
    }
}

//! Reading an architecture's metadata.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use tandem_formats::{Array, Gguf, Value};
use tandem_kernels::{MAX_HEAD_DIM, MAX_QUERY_GROUP, RopeScaling, RopeStyle, SharedMatrix};

use super::{Architecture, EmbeddingScale, NoRope, Windows, key};
use crate::ModelError;
use crate::blocks::{AttentionConfig, GatedConfig, MlpConfig, Temperature};
use crate::model::config::{Config, FfnConfig, LayerConfig, MixerConfig, NormKind, RopeConfig};

/// The most KV heads: each is at least one task of an attention step.
const MAX_HEAD_KV: usize = SharedMatrix::<f32>::MAX_TILES;

/// Above this a row's buffers could overflow on 32-bit machines; no model comes near.
const MAX_DIMENSION: usize = 1 << 24;

/// The most layers; no model comes near.
const MAX_LAYERS: usize = 1024;

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
        let Some(value) = value else {
            return Ok(None);
        };
        match usize::try_from(value) {
            Ok(n) if (1..=MAX_DIMENSION).contains(&n) => Ok(Some(n)),
            _ => Err(ModelError::Value {
                key,
                reason: "the number is zero or far too large",
            }),
        }
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
        let n_layer = self.needed("block_count")?;
        if n_layer > MAX_LAYERS {
            return Err(self.wrong("block_count", "more than 1024 layers are not supported"));
        }
        let attention = self.attention(n_embd, n_layer)?;
        let (n_ff, activation) = (self.needed("feed_forward_length")?, arch.activation);
        let ffn = match arch.is_gated {
            true => FfnConfig::Gated(GatedConfig { n_ff, activation }),
            false => FfnConfig::Mlp(MlpConfig { n_ff, activation }),
        };
        let eps_key = match arch.norm {
            NormKind::Rms => "attention.layer_norm_rms_epsilon",
            NormKind::Layer => "attention.layer_norm_epsilon",
        };
        let name = "token_embd.weight";
        let embeddings = self.gguf.tensor(name);
        let embeddings = embeddings.ok_or_else(|| ModelError::MissingTensor {
            name: name.to_string(),
        })?;
        let n_ctx_train = self.needed("context_length")?;
        let ropes = self.ropes(&attention, n_ctx_train)?;
        let globals = self.globals(n_layer)?;
        let layer = |i: usize| {
            let is_global = globals[i];
            LayerConfig {
                mixer: MixerConfig::Attention(AttentionConfig {
                    window: attention.window.filter(|_| !is_global),
                    rope: self.rope_of(i, is_global, attention.window.is_some(), ropes.len()),
                    ..attention.clone()
                }),
                ffn: ffn.clone(),
            }
        };
        Ok(Config {
            arch,
            n_ctx_train,
            n_vocab: embeddings.n_rows(),
            n_embd,
            norm: arch.norm,
            norm_eps: self
                .positive(eps_key)?
                .ok_or_else(|| self.missing(eps_key))?,
            layers: (0..n_layer).map(layer).collect(),
            ropes,
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
                _ => 1.0,
            },
            logit_softcap: self.nonzero("final_logit_softcapping")?,
        })
    }

    /// A factor; 1 where there is none, and where converters wrote 0 for that.
    fn scale(&self, name: &str) -> Result<f32, ModelError> {
        Ok(self.nonzero(name)?.unwrap_or(1.0))
    }

    /// The rope of layer `i`, of one or two: the second is that of layers with a window.
    fn rope_of(
        &self,
        i: usize,
        is_global: bool,
        has_windows: bool,
        n_ropes: usize,
    ) -> Option<usize> {
        let is_left_out = match self.arch.no_rope {
            NoRope::Nowhere => false,
            NoRope::Every(n) => (i + 1).is_multiple_of(n),
            NoRope::BesideWindows => has_windows && is_global,
        };
        let rope = match has_windows && !is_global {
            true => n_ropes - 1,
            false => 0,
        };
        (!is_left_out).then_some(rope)
    }

    /// What queries far from the start are multiplied with.
    fn temperature(&self) -> Result<Option<Temperature>, ModelError> {
        let Some(scale) = self.nonzero("attention.temperature_scale")? else {
            return Ok(None);
        };
        let interval = self.needed("rope.scaling.original_context_length")?;
        Ok(Some(Temperature { scale, interval }))
    }

    /// The heads, which are the same in all layers, and the window of those that have one.
    fn attention(&self, n_embd: usize, n_layer: usize) -> Result<AttentionConfig, ModelError> {
        let n_head = self.needed("attention.head_count")?;
        let n_head_kv = self.count("attention.head_count_kv")?.unwrap_or(n_head);
        if !n_head.is_multiple_of(n_head_kv) {
            return Err(self.wrong(
                "attention.head_count_kv",
                "it does not divide the query heads",
            ));
        }
        if n_head_kv > MAX_HEAD_KV {
            return Err(self.wrong(
                "attention.head_count_kv",
                "more than 1024 are not supported",
            ));
        }
        if n_head / n_head_kv > MAX_QUERY_GROUP {
            return Err(self.wrong(
                "attention.head_count",
                "more than 64 query heads to a KV head are not supported",
            ));
        }
        let head_dim = match self.count("attention.key_length")? {
            Some(n) => n,
            None if n_embd.is_multiple_of(n_head) => n_embd / n_head,
            None => {
                return Err(self.wrong("attention.head_count", "it does not divide the embedding"));
            }
        };
        if head_dim > MAX_HEAD_DIM {
            return Err(self.wrong("attention.key_length", "heads are longer than 512 elements"));
        }
        if self.count("attention.value_length")?.unwrap_or(head_dim) != head_dim {
            return Err(self.wrong("attention.value_length", "it differs from the keys' length"));
        }
        if n_head
            .checked_mul(head_dim)
            .is_none_or(|n| n > MAX_DIMENSION)
        {
            return Err(self.wrong("attention.head_count", "the heads are far too many"));
        }
        let scale = match self.positive("attention.scale")? {
            Some(scale) => scale,
            None if self.arch.scales_by_share == Some(n_layer) => {
                1.0 / libm::sqrtf(n_embd as f32 / n_head as f32)
            }
            None => 1.0 / libm::sqrtf(head_dim as f32),
        };
        Ok(AttentionConfig {
            n_head,
            n_head_kv,
            head_dim,
            window: self.window()?,
            scale,
            softcap: self.nonzero("attn_logit_softcapping")?,
            rope: None,
            norm_after_rope: self.arch.norm_after_rope,
            norms_rows: self.arch.norms_rows,
            temperature: self.temperature()?,
        })
    }

    /// Whether each layer sees all tokens, where others have a window. The file may say so, layer by layer
    /// or by how many layers one comes.
    fn globals(&self, n_layer: usize) -> Result<Vec<bool>, ModelError> {
        let name = "attention.sliding_window_pattern";
        let every = match self.arch.windows {
            Windows::All => None,
            Windows::AllBut { every, .. } => Some(every),
        };
        let every = match self.gguf.get(&self.key(name)) {
            None => every,
            Some(Value::Array(layers)) => {
                let layers = layers.iter_values().into_iter().flatten();
                let has_window = |value: Value<'_>| match value {
                    Value::Bool(has) => Some(has),
                    other => other.as_integer().map(|n| n != 0),
                };
                let globals = layers.map(|value| has_window(value).map(|has| !has));
                let globals = globals.collect::<Option<Vec<bool>>>();
                let fits = |globals: &Vec<bool>| globals.len() == n_layer;
                return globals
                    .filter(fits)
                    .ok_or_else(|| self.wrong(name, "a yes or no for each layer is wanted"));
            }
            // 0 is a window for all.
            Some(value) => match value.as_integer().map(usize::try_from) {
                Some(Ok(every)) => Some(every).filter(|every| *every > 0),
                _ => return Err(self.wrong(name, "a number of layers is wanted")),
            },
        };
        let is_global = |i: usize| every.is_some_and(|every| (i + 1).is_multiple_of(every));
        Ok((0..n_layer).map(is_global).collect())
    }

    /// Tokens that layers with a window see; converters write 0 for "no window".
    fn window(&self) -> Result<Option<usize>, ModelError> {
        let name = "attention.sliding_window";
        match self.gguf.get_u64(&self.key(name))?.unwrap_or(0) {
            0 => Ok(None),
            _ => self.count(name),
        }
    }

    /// Features that would change the result without leaving a trace in the tensors' names.
    fn refuse_unsupported(&self) -> Result<(), ModelError> {
        let unsupported = |feature| Err(ModelError::Unsupported { feature });
        if self.gguf.get_u64(&self.key("expert_count"))?.unwrap_or(0) > 0 {
            return unsupported("a mixture of experts");
        }
        if self.gguf.get_bool(&self.key("use_parallel_residual"))? == Some(true) {
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
        let turns = self.gguf.get_bool(&self.key("rope.scaling.finetuned"))?;
        if turns == Some(false) && matches!(self.arch.embedding_scale, EmbeddingScale::InFile) {
            return unsupported("attention without rotary positions in all layers");
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

    /// The rope of all layers or, where those with a window have their own, of the others and of these.
    fn ropes(
        &self,
        attention: &AttentionConfig,
        n_ctx_train: usize,
    ) -> Result<Vec<RopeConfig>, ModelError> {
        let head_dim = attention.head_dim;
        let n_rot = self.count("rope.dimension_count")?.unwrap_or(head_dim);
        if n_rot > head_dim || !n_rot.is_multiple_of(2) {
            return Err(self.wrong("rope.dimension_count", "it is odd or longer than a head"));
        }
        let global = RopeConfig {
            style: self.arch.rope_style,
            n_rot,
            base: self.positive("rope.freq_base")?.unwrap_or(10000.0),
            scaling: self.rope_scaling(n_ctx_train)?,
            magnitude: self.rope_magnitude()?,
            has_factors: true,
            n_ctx_orig: self
                .count("rope.scaling.original_context_length")?
                .unwrap_or(n_ctx_train),
        };
        let mut ropes = Vec::from([global.clone()]);
        if let (
            Windows::AllBut {
                own_rope: Some(own),
                ..
            },
            Some(_),
        ) = (&self.arch.windows, attention.window)
        {
            ropes.push(RopeConfig {
                base: match self.positive(own.key)? {
                    Some(base) => base,
                    None => own.default.unwrap_or(global.base),
                },
                scaling: RopeScaling::None,
                magnitude: 1.0,
                has_factors: false,
                ..global
            });
        }
        Ok(ropes)
    }

    fn rope_scaling(&self, n_ctx_train: usize) -> Result<RopeScaling, ModelError> {
        let kind = self.gguf.get_str(&self.key("rope.scaling.type"))?;
        let factor = match self.gguf.get_f32(&self.key("rope.scaling.factor"))? {
            // Converters write 0 for "none".
            Some(0.0) | None => self.positive("rope.scale_linear")?,
            Some(_) => self.positive("rope.scaling.factor")?,
        };
        match (kind, factor) {
            (None | Some("linear"), Some(factor)) => Ok(RopeScaling::Linear { factor }),
            (Some("yarn"), Some(factor)) => Ok(RopeScaling::Yarn {
                factor,
                n_ctx_orig: self
                    .count("rope.scaling.original_context_length")?
                    .unwrap_or(n_ctx_train),
                beta_fast: self
                    .positive("rope.scaling.yarn_beta_fast")?
                    .unwrap_or(32.0),
                beta_slow: self.positive("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                attn_factor: self.positive("rope.scaling.attn_factor")?.unwrap_or(1.0)
                    / self.yarn_divisor(factor)?,
            }),
            (None | Some("none" | "longrope"), _) => Ok(RopeScaling::None),
            (Some("linear" | "yarn"), None) => Err(self.missing("rope.scaling.factor")),
            (Some(_), _) => {
                Err(self.wrong("rope.scaling.type", "this kind of scaling is not supported"))
            }
        }
    }

    /// What YaRN's magnitude is divided by, which a file may name by a multiplier of the logarithm in it.
    fn yarn_divisor(&self, factor: f32) -> Result<f32, ModelError> {
        let multiplier = self.nonzero("rope.scaling.yarn_log_multiplier")?;
        Ok(multiplier.map_or(1.0, |m| 1.0 + 0.1 * m * libm::logf(factor.max(1.0))))
    }

    /// LongRoPE's magnitude; YaRN's is part of its scaling.
    fn rope_magnitude(&self) -> Result<f32, ModelError> {
        if self.gguf.get_str(&self.key("rope.scaling.type"))? == Some("yarn") {
            return Ok(1.0);
        }
        Ok(self.positive("rope.scaling.attn_factor")?.unwrap_or(1.0))
    }
}

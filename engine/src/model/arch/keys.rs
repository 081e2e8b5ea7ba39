//! Reading an architecture's metadata.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use tandem_formats::{Array, Gguf, Value};
use tandem_kernels::{
    MAX_DELTA_COLUMNS, MAX_HEAD_DIM, MAX_QUERY_GROUP, RopeScaling, RopeStyle, SharedMatrix,
};

use super::{Architecture, EmbeddingScale, ExpertForm, NoRope, Parallel, ScoreScale, Windows, key};
use crate::ModelError;
use crate::blocks::{
    AttentionConfig, DeltaNetConfig, DenseAndExpertsConfig, ExpertsConfig, GatedConfig, Gating,
    MAX_USED, MlpConfig, PerLayerConfig, ShortConvConfig, Temperature,
};
use crate::model::config::{Config, FfnConfig, LayerConfig, MixerConfig, NormKind, RopeConfig};

/// The most KV heads: each is at least one task of an attention step.
const MAX_HEAD_KV: usize = SharedMatrix::<f32>::MAX_TILES;

/// So that sums and products of a few dimensions do not overflow; no model comes near.
const MAX_DIMENSION: usize = 1 << 24;

/// The most layers; no model comes near.
const MAX_LAYERS: usize = 1024;

/// The most experts; models have up to 512.
const MAX_EXPERTS: usize = 1024;

/// The most tokens that a convolution sums; models have 3 or 4.
const MAX_TAPS: usize = 64;

/// The layers that are attention.
fn attentions(mixers: &[MixerConfig]) -> impl Iterator<Item = &AttentionConfig> {
    mixers.iter().filter_map(|mixer| match mixer {
        MixerConfig::Attention(attention) => Some(attention),
        _ => None,
    })
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

    /// The count of each layer: of a list, where it may be 0 if the architecture's layers differ in kind, or the
    /// same for all.
    fn counts(&self, name: &str, n_layer: usize) -> Result<Option<Vec<usize>>, ModelError> {
        let Some(Value::Array(values)) = self.gguf.get(&self.key(name)) else {
            let count = self.count(name)?;
            return Ok(count.map(|n| vec![n; n_layer]));
        };
        let wanted = || self.wrong(name, "a number for each layer is wanted");
        let values = values.iter_values().into_iter().flatten();
        let counts = values.map(|value| match value.as_integer() {
            Some(0) if self.arch.has_short_convs => Ok(0),
            Some(value) => self.checked(name, value),
            None => Err(wanted()),
        });
        let counts = counts.take(n_layer + 1).collect::<Result<Vec<_>, _>>()?;
        match counts.len() == n_layer {
            true => Ok(Some(counts)),
            false => Err(wanted()),
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
        let n_predict_layers = self.n_predict_layers()?;
        let n_layer = self.needed("block_count")? - n_predict_layers;
        if n_layer > MAX_LAYERS {
            return Err(self.wrong("block_count", "more than 1024 layers are not supported"));
        }
        let globals = self.globals(n_layer)?;
        let mut mixers = self.mixers(n_embd, &globals)?;
        let ffns = self.ffns(n_layer)?;
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
        let ropes = self.ropes(&mixers, n_ctx_train)?;
        let has_windows = attentions(&mixers).any(|attention| attention.window.is_some());
        for (i, mixer) in mixers.iter_mut().enumerate() {
            if let MixerConfig::Attention(attention) = mixer {
                attention.rope = self.rope_of(i, globals[i], has_windows, ropes.len());
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
            norm_eps: self
                .positive(eps_key)?
                .ok_or_else(|| self.missing(eps_key))?,
            layers: layers.collect(),
            ropes,
            n_predict_layers,
            per_layer: self.per_layer(n_layer)?,
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
            logit_softcap: self.nonzero("final_logit_softcapping")?,
        })
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
            NoRope::Everywhere => true,
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

    /// Each layer's feed-forward network.
    fn ffns(&self, n_layer: usize) -> Result<Vec<FfnConfig>, ModelError> {
        let name = "feed_forward_length";
        let (experts, activation) = (self.experts()?, self.arch.activation);
        let n_ffs = self.counts(name, n_layer)?;
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
            all.extend(n_ffs.into_iter().take(n_dense).map(|n_ff| {
                let is_shared = false;
                let gated = GatedConfig {
                    n_ff,
                    activation,
                    is_shared,
                };
                match (&experts, self.arch.is_gated) {
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
            None | Some(0 | 1) => Gating::Softmax,
            Some(2) => Gating::Sigmoid,
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
            gating,
            normalizes: norm.unwrap_or(true),
            weight_scale: self.scale("expert_weights_scale")?,
            routes_residual: self.arch.experts == ExpertForm::BesideDense,
            shared: match self.arch.shares_expert {
                false => None,
                true => Some(GatedConfig {
                    n_ff: self.needed("expert_shared_feed_forward_length")?,
                    activation: self.arch.activation,
                    is_shared: true,
                }),
            },
        }))
    }

    /// The inputs that layers have of their own.
    fn per_layer(&self, n_layer: usize) -> Result<Option<PerLayerConfig>, ModelError> {
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

    /// How each layer mixes tokens; of heads, without their ropes.
    fn mixers(&self, n_embd: usize, globals: &[bool]) -> Result<Vec<MixerConfig>, ModelError> {
        let n_layer = globals.len();
        let (q_name, kv_name) = ("attention.head_count", "attention.head_count_kv");
        let n_heads = self.counts(q_name, n_layer)?;
        let n_heads = n_heads.ok_or_else(|| self.missing(q_name))?;
        let n_heads_kv = self.counts(kv_name, n_layer)?;
        let n_heads_kv = n_heads_kv.unwrap_or_else(|| n_heads.clone());
        let window = self.window()?;
        let temperature = self.temperature()?;
        let softcap = self.nonzero("attn_logit_softcapping")?;
        let scale = self.positive("attention.scale")?;
        let (delta_net, recurrent) = (self.delta_net()?, self.recurrent(n_layer)?);
        let mut all = Vec::<MixerConfig>::new();
        for (i, (n_head, n_head_kv)) in n_heads.into_iter().zip(n_heads_kv).enumerate() {
            if let Some(net) = delta_net.as_ref().filter(|_| recurrent[i]) {
                all.push(MixerConfig::DeltaNet(net.clone()));
                continue;
            }
            if n_head_kv == 0 {
                all.push(MixerConfig::ShortConv(self.short_conv(n_embd)?));
                continue;
            }
            self.check_heads(n_head, n_head_kv)?;
            let window = window.filter(|_| !globals[i]);
            let head_dim = self.head_dim(n_embd, n_head, window.is_some())?;
            all.push(MixerConfig::Attention(AttentionConfig {
                n_head,
                n_head_kv,
                head_dim,
                window,
                scale: match scale {
                    Some(scale) => scale,
                    None => self.score_scale(n_embd, n_layer, n_head, head_dim),
                },
                softcap,
                rope: None,
                norm_after_rope: self.arch.norm_after_rope,
                norms_rows: self.arch.norms_rows,
                norms_values: self.arch.norms_values,
                has_gate: self.arch.gates_attention,
                values_are_keys: self.arch.values_may_be_keys && self.lacks_values(i),
                shared_kv: None,
                temperature,
            }));
        }
        if attentions(&all).next().is_none() {
            return Err(self.wrong(kv_name, "no layer has any"));
        }
        self.share_kv(&mut all)?;
        Ok(all)
    }

    /// Which layers are delta nets: as the file lists them, or all but every so many.
    fn recurrent(&self, n_layer: usize) -> Result<Vec<bool>, ModelError> {
        let Some(every) = self.arch.delta_nets else {
            return Ok(vec![false; n_layer]);
        };
        let name = "attention.recurrent_layers";
        let every = self.count("full_attention_interval")?.unwrap_or(every);
        let Some(found) = self.gguf.get(&self.key(name)) else {
            return Ok((0..n_layer)
                .map(|i| !(i + 1).is_multiple_of(every))
                .collect());
        };
        let wrong = || self.wrong(name, "a yes or no for each layer is wanted");
        let Value::Array(list) = found else {
            return Err(wrong());
        };
        let list = list.iter_values().into_iter().flatten();
        let layers = list.map(|value| match value {
            Value::Bool(is_recurrent) => Some(is_recurrent),
            other => other.as_integer().map(|n| n != 0),
        });
        let mut layers = layers.collect::<Option<Vec<bool>>>().ok_or_else(wrong)?;
        // The list may go on to layers that predict further tokens.
        match layers.len() >= n_layer {
            true => {
                layers.truncate(n_layer);
                Ok(layers)
            }
            false => Err(wrong()),
        }
    }

    fn delta_net(&self) -> Result<Option<DeltaNetConfig>, ModelError> {
        if self.arch.delta_nets.is_none() {
            return Ok(None);
        }
        let (k_name, v_name) = ("ssm.group_count", "ssm.time_step_rank");
        let (dim_name, inner_name) = ("ssm.state_size", "ssm.inner_size");
        let net = DeltaNetConfig {
            n_head_k: self.needed(k_name)?,
            n_head_v: self.needed(v_name)?,
            head_dim: self.needed(dim_name)?,
            n_taps: self.needed("ssm.conv_kernel")?,
        };
        if net.head_dim > MAX_DELTA_COLUMNS {
            return Err(self.wrong(dim_name, "heads are longer than 256 elements"));
        }
        if net.n_head_v > MAX_HEAD_KV {
            return Err(self.wrong(v_name, "more than 1024 are not supported"));
        }
        if !net.n_head_v.is_multiple_of(net.n_head_k) {
            return Err(self.wrong(k_name, "it does not divide the value heads"));
        }
        if self.needed(inner_name)? != net.n_v() {
            return Err(self.wrong(inner_name, "it is not the value heads' elements"));
        }
        if net.n_taps > MAX_TAPS {
            return Err(self.wrong("ssm.conv_kernel", "the convolution is far too long"));
        }
        Ok(Some(net))
    }

    fn short_conv(&self, n_embd: usize) -> Result<ShortConvConfig, ModelError> {
        let name = "shortconv.l_cache";
        let n_taps = self.needed(name)?;
        match n_taps <= MAX_TAPS && 3 * n_embd <= MAX_DIMENSION {
            true => Ok(ShortConvConfig { n_taps }),
            false => Err(self.wrong(name, "the convolution is far too long or wide")),
        }
    }

    /// Whether layer `i` has a projection for keys and none for values.
    fn lacks_values(&self, i: usize) -> bool {
        let has = |part: &str| {
            let name = format!("blk.{i}.{part}.weight");
            self.gguf.tensor(&name).is_some()
        };
        has("attn_k") && !has("attn_v")
    }

    /// The last layers may see the keys and values of the last layer before them that has the same window.
    fn share_kv(&self, all: &mut [MixerConfig]) -> Result<(), ModelError> {
        let name = "attention.shared_kv_layers";
        let n_shared = self.gguf.get_u64(&self.key(name))?.unwrap_or(0);
        let n_shared = usize::try_from(n_shared).unwrap_or(usize::MAX);
        if !self.arch.shares_kv || n_shared == 0 {
            return Ok(());
        }
        if n_shared >= all.len() {
            return Err(self.wrong(name, "no layer is left whose keys could be seen"));
        }
        let (own, sharing) = all.split_at_mut(all.len() - n_shared);
        for layer in sharing {
            let MixerConfig::Attention(layer) = layer else {
                continue;
            };
            let same = |other: &MixerConfig| match other {
                MixerConfig::Attention(other) => {
                    other.window == layer.window
                        && other.head_dim == layer.head_dim
                        && other.n_head_kv == layer.n_head_kv
                }
                _ => false,
            };
            layer.shared_kv = own.iter().rposition(same);
            layer.values_are_keys = false;
            if layer.shared_kv.is_none() {
                return Err(self.wrong(name, "a layer finds none whose keys it could see"));
            }
        }
        Ok(())
    }

    fn check_heads(&self, n_head: usize, n_head_kv: usize) -> Result<(), ModelError> {
        let kv_name = "attention.head_count_kv";
        if !n_head.is_multiple_of(n_head_kv) {
            return Err(self.wrong(kv_name, "it does not divide the query heads"));
        }
        if n_head_kv > MAX_HEAD_KV {
            return Err(self.wrong(kv_name, "more than 1024 are not supported"));
        }
        if n_head / n_head_kv > MAX_QUERY_GROUP {
            return Err(self.wrong(
                "attention.head_count",
                "more than 64 query heads to a KV head are not supported",
            ));
        }
        Ok(())
    }

    /// Elements of a head, for which files may have another number where there is a window.
    fn head_dim(
        &self,
        n_embd: usize,
        n_head: usize,
        has_window: bool,
    ) -> Result<usize, ModelError> {
        let of_kind = |global, window| match has_window {
            true if self.gguf.get(&self.key(window)).is_some() => window,
            _ => global,
        };
        let k_name = of_kind("attention.key_length", "attention.key_length_swa");
        let v_name = of_kind("attention.value_length", "attention.value_length_swa");
        let head_dim = match self.count(k_name)? {
            Some(n) => n,
            None if n_embd.is_multiple_of(n_head) => n_embd / n_head,
            None => {
                return Err(self.wrong("attention.head_count", "it does not divide the embedding"));
            }
        };
        if head_dim > MAX_HEAD_DIM {
            return Err(self.wrong(k_name, "heads are longer than 512 elements"));
        }
        if self.count(v_name)?.unwrap_or(head_dim) != head_dim {
            return Err(self.wrong(v_name, "it differs from the keys' length"));
        }
        if n_head
            .checked_mul(head_dim)
            .is_none_or(|n| n > MAX_DIMENSION)
        {
            return Err(self.wrong("attention.head_count", "the heads are far too many"));
        }
        Ok(head_dim)
    }

    /// What multiplies scores where the file does not say.
    fn score_scale(&self, n_embd: usize, n_layer: usize, n_head: usize, head_dim: usize) -> f32 {
        match self.arch.score_scale {
            ScoreScale::One => 1.0,
            ScoreScale::OfShare { n_layer: n } if n == n_layer => {
                1.0 / libm::sqrtf(n_embd as f32 / n_head as f32)
            }
            ScoreScale::OfHead | ScoreScale::OfShare { .. } => 1.0 / libm::sqrtf(head_dim as f32),
        }
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
        mixers: &[MixerConfig],
        n_ctx_train: usize,
    ) -> Result<Vec<RopeConfig>, ModelError> {
        let name = "rope.dimension_count";
        let mut globals = attentions(mixers).filter(|layer| layer.window.is_none());
        let global = globals.next().or(attentions(mixers).next());
        let n_rot = self.n_rot(name, global.map_or(0, |layer| layer.head_dim))?;
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
        let own = match &self.arch.windows {
            Windows::AllBut { own_rope, .. } => own_rope.as_ref(),
            Windows::All => None,
        };
        let mut windows = attentions(mixers).filter(|layer| layer.window.is_some());
        if let (Some(own), Some(layer)) = (own, windows.next()) {
            let n_rot = match self.count("rope.dimension_count_swa")? {
                Some(_) => self.n_rot("rope.dimension_count_swa", layer.head_dim)?,
                None => n_rot.min(layer.head_dim),
            };
            ropes.push(RopeConfig {
                n_rot,
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
        let fits = |layer: &AttentionConfig| {
            let own = ropes.len() - 1;
            let rope = &ropes[if layer.window.is_some() { own } else { 0 }];
            rope.n_rot <= layer.head_dim
        };
        match attentions(mixers).all(fits) {
            true => Ok(ropes),
            false => Err(self.wrong(name, "it is longer than a head")),
        }
    }

    /// How many elements of a head of `head_dim` are turned.
    fn n_rot(&self, name: &str, head_dim: usize) -> Result<usize, ModelError> {
        let n_rot = self.count(name)?.unwrap_or(head_dim);
        match n_rot <= head_dim && n_rot.is_multiple_of(2) {
            true => Ok(n_rot),
            false => Err(self.wrong(name, "it is odd or longer than a head")),
        }
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

//! A model's hyperparameters, read from GGUF metadata and checked.

use alloc::format;
use alloc::string::{String, ToString};

use tandem_formats::Gguf;
use tandem_kernels::{
    Activation, MAX_HEAD_DIM, MAX_QUERY_GROUP, RopeScaling, RopeStyle, SharedMatrix,
};

use crate::ModelError;

/// The supported architectures. What tells them apart is in [`Config`]'s fields and in which
/// optional tensors a file has; the forward pass asks for neither's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// Llama 2 and 3, Mistral, SmolLM2, TinyLlama.
    Llama,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Qwen 3.
    Qwen3,
    /// StableLM 2.
    StableLm,
    /// Gemma 3, text only.
    Gemma3,
    /// Phi 3 and 3.5 mini.
    Phi3,
}

impl Arch {
    /// The architecture that `general.architecture` names.
    pub fn from_name(name: &str) -> Option<Arch> {
        Some(match name {
            "llama" => Arch::Llama,
            "qwen2" => Arch::Qwen2,
            "qwen3" => Arch::Qwen3,
            "stablelm" => Arch::StableLm,
            "gemma3" => Arch::Gemma3,
            "phi3" => Arch::Phi3,
            _ => return None,
        })
    }

    /// The name in GGUF files, also the prefix of the metadata keys.
    pub fn name(self) -> &'static str {
        match self {
            Arch::Llama => "llama",
            Arch::Qwen2 => "qwen2",
            Arch::Qwen3 => "qwen3",
            Arch::StableLm => "stablelm",
            Arch::Gemma3 => "gemma3",
            Arch::Phi3 => "phi3",
        }
    }
}

/// Which normalization stands before each block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Root mean square.
    Rms,
    /// Mean and variance, with a bias.
    Layer,
}

/// Layers that see the last tokens only.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LocalAttention {
    /// Tokens seen, the current one included.
    pub window: usize,
    /// Every n-th layer is global all the same (layers n - 1, 2 n - 1, ...); 0: none is.
    pub global_every: usize,
    /// Base of the rotary frequencies in the local layers.
    pub rope_base: f32,
    /// Whether the local layers scale their rotary frequencies as the global ones do.
    pub rope_scaled: bool,
}

/// A model's hyperparameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The architecture.
    pub arch: Arch,
    /// Tokens the model was trained to see at once.
    pub n_ctx_train: usize,
    /// Tokens in the vocabulary.
    pub n_vocab: usize,
    /// Elements of the residual stream.
    pub n_embd: usize,
    /// Layers.
    pub n_layer: usize,
    /// Query heads.
    pub n_head: usize,
    /// Key and value heads; divides `n_head`.
    pub n_head_kv: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Elements inside the feed-forward network.
    pub n_ff: usize,
    /// Normalization before each block.
    pub norm: NormKind,
    /// Added to the variance.
    pub norm_eps: f32,
    /// Activation function of the feed-forward network's gate.
    pub activation: Activation,
    /// Which elements of a head are turned together.
    pub rope_style: RopeStyle,
    /// How many elements of a head are turned.
    pub n_rot: usize,
    /// Base of the rotary frequencies.
    pub rope_base: f32,
    /// Scaling of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Multiplies the turned vectors (LongRoPE).
    pub rope_magnitude: f32,
    /// Context above which LongRoPE's long factors hold, in tokens.
    pub n_ctx_orig: usize,
    /// Sliding-window layers, if any.
    pub local: Option<LocalAttention>,
    /// Multiplies the token embeddings.
    pub embedding_scale: f32,
    /// Multiplies the attention scores.
    pub attention_scale: f32,
    /// Where set, logits become `cap tanh(logits / cap)`.
    pub logit_softcap: Option<f32>,
}

/// The most KV heads: each is at least one task of an attention step.
const MAX_HEAD_KV: usize = SharedMatrix::<f32>::MAX_TILES;

/// Above this the buffers' sizes could overflow on 32-bit machines; no model comes near.
const MAX_DIMENSION: usize = 1 << 24;

impl Config {
    /// Reads and checks the hyperparameters of a model.
    ///
    /// # Errors
    ///
    /// A key that is missing, of the wrong type or out of range, or an unsupported feature.
    pub fn from_gguf(gguf: &Gguf<'_>) -> Result<Config, ModelError> {
        let name = gguf.get_str("general.architecture")?;
        let name = name.ok_or_else(|| missing_key("general.architecture"))?;
        let kind = gguf.get_str("general.type")?.unwrap_or("model");
        if kind != "model" {
            return Err(ModelError::Value {
                key: "general.type".to_string(),
                reason: "the file is no model (an adapter or a vocabulary needs one beside it)",
            });
        }
        let arch = Arch::from_name(name).ok_or_else(|| ModelError::Architecture {
            found: name.chars().take(64).collect(),
        })?;
        Keys { gguf, arch }.config()
    }

    /// Whether layer `i` sees a window of the context only, and how.
    pub fn local_attention(&self, i: usize) -> Option<&LocalAttention> {
        self.local
            .as_ref()
            .filter(|local| local.global_every == 0 || !(i + 1).is_multiple_of(local.global_every))
    }

    /// Rows of the query projection: all query heads.
    pub fn n_q(&self) -> usize {
        self.n_head * self.head_dim
    }

    /// Rows of the key or value projection: all KV heads.
    pub fn n_kv(&self) -> usize {
        self.n_head_kv * self.head_dim
    }
}

fn missing_key(key: &str) -> ModelError {
    ModelError::MissingKey {
        key: key.to_string(),
    }
}

/// The metadata of one architecture: keys without their prefix.
struct Keys<'g, 'a> {
    gguf: &'g Gguf<'a>,
    arch: Arch,
}

impl Keys<'_, '_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch.name())
    }

    /// A count between 1 and [`MAX_DIMENSION`].
    fn count(&self, name: &str) -> Result<Option<usize>, ModelError> {
        let key = self.key(name);
        let Some(value) = self.gguf.get_u64(&key)? else {
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

    fn needed(&self, name: &str) -> Result<usize, ModelError> {
        self.count(name)?
            .ok_or_else(|| missing_key(&self.key(name)))
    }

    /// A float that is finite and positive.
    fn positive(&self, name: &str) -> Result<Option<f32>, ModelError> {
        let key = self.key(name);
        match self.gguf.get_f32(&key)? {
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

    fn config(&self) -> Result<Config, ModelError> {
        let arch = self.arch;
        self.refuse_unsupported()?;
        let n_embd = self.needed("embedding_length")?;
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
        let n_rot = self.count("rope.dimension_count")?.unwrap_or(head_dim);
        if n_rot > head_dim || !n_rot.is_multiple_of(2) {
            return Err(self.wrong("rope.dimension_count", "it is odd or longer than a head"));
        }
        let norm = match arch {
            Arch::StableLm => NormKind::Layer,
            _ => NormKind::Rms,
        };
        let eps_key = match norm {
            NormKind::Rms => "attention.layer_norm_rms_epsilon",
            NormKind::Layer => "attention.layer_norm_epsilon",
        };
        let n_ctx_train = self.needed("context_length")?;
        let embeddings =
            self.gguf
                .tensor("token_embd.weight")
                .ok_or_else(|| ModelError::MissingTensor {
                    name: "token_embd.weight".to_string(),
                })?;
        Ok(Config {
            arch,
            n_ctx_train,
            n_vocab: embeddings.n_rows(),
            n_embd,
            n_layer: self.needed("block_count")?,
            n_head,
            n_head_kv,
            head_dim,
            n_ff: self.needed("feed_forward_length")?,
            norm,
            norm_eps: self
                .positive(eps_key)?
                .ok_or_else(|| missing_key(&self.key(eps_key)))?,
            activation: match arch {
                Arch::Gemma3 => Activation::GeluTanh,
                _ => Activation::Silu,
            },
            rope_style: match arch {
                Arch::Llama => RopeStyle::Normal,
                _ => RopeStyle::Neox,
            },
            n_rot,
            rope_base: self.positive("rope.freq_base")?.unwrap_or(10000.0),
            rope_scaling: self.rope_scaling(n_ctx_train)?,
            rope_magnitude: self.rope_magnitude()?,
            n_ctx_orig: self
                .count("rope.scaling.original_context_length")?
                .unwrap_or(n_ctx_train),
            local: self.local()?,
            embedding_scale: match arch {
                Arch::Gemma3 => libm::sqrtf(n_embd as f32),
                _ => 1.0,
            },
            attention_scale: match self.positive("attention.scale")? {
                Some(scale) => scale,
                // Gemma 3 27B alone scales by the embedding's share of a head, not by the head.
                None if arch == Arch::Gemma3 && self.needed("block_count")? == 62 => {
                    1.0 / libm::sqrtf(n_embd as f32 / n_head as f32)
                }
                None => 1.0 / libm::sqrtf(head_dim as f32),
            },
            logit_softcap: self.positive("final_logit_softcapping")?,
        })
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
        if self
            .gguf
            .get_f32(&self.key("attn_logit_softcapping"))?
            .unwrap_or(0.0)
            != 0.0
        {
            return unsupported("soft-capped attention scores");
        }
        Ok(())
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
                attn_factor: self.positive("rope.scaling.attn_factor")?.unwrap_or(1.0),
            }),
            (None | Some("none" | "longrope"), _) => Ok(RopeScaling::None),
            (Some("linear" | "yarn"), None) => Err(missing_key(&self.key("rope.scaling.factor"))),
            (Some(_), _) => {
                Err(self.wrong("rope.scaling.type", "this kind of scaling is not supported"))
            }
        }
    }

    /// LongRoPE's magnitude; YaRN's is part of its scaling.
    fn rope_magnitude(&self) -> Result<f32, ModelError> {
        if self.gguf.get_str(&self.key("rope.scaling.type"))? == Some("yarn") {
            return Ok(1.0);
        }
        Ok(self.positive("rope.scaling.attn_factor")?.unwrap_or(1.0))
    }

    fn local(&self) -> Result<Option<LocalAttention>, ModelError> {
        // Converters write 0 for "no window".
        let key = self.key("attention.sliding_window");
        if self.gguf.get_u64(&key)?.unwrap_or(0) == 0 {
            return Ok(None);
        }
        let Some(window) = self.count("attention.sliding_window")? else {
            return Ok(None);
        };
        let rope_base = self.positive("rope.freq_base")?.unwrap_or(10000.0);
        Ok(Some(match self.arch {
            Arch::Gemma3 => LocalAttention {
                window,
                global_every: 6,
                rope_base: self.positive("rope.freq_base_swa")?.unwrap_or(10000.0),
                rope_scaled: false,
            },
            _ => LocalAttention {
                window,
                global_every: 0,
                rope_base,
                rope_scaled: true,
            },
        }))
    }
}

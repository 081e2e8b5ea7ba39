//! How each layer mixes tokens.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use tandem_kernels::{MAX_HEAD_DIM, MAX_QUERY_GROUP, SharedMatrix};

use super::{Keys, MAX_DIMENSION, attentions};
use crate::ModelError;
use crate::blocks::{
    AttentionAndMambaConfig, AttentionConfig, DeltaNetConfig, MambaConfig, ShortConvConfig,
    Temperature,
};
use crate::model::arch::{ScoreScale, Windows, WithoutKv};
use crate::model::config::{FfnConfig, MixerConfig};

/// The most KV heads: each is at least one task of an attention step.
const MAX_HEAD_KV: usize = SharedMatrix::<f32>::MAX_TILES;

/// The most elements of a delta net's head; models have 128.
const MAX_DELTA_HEAD: usize = 256;

/// The most tokens that a convolution sums; models have 3 or 4.
const MAX_TAPS: usize = 64;

impl Keys<'_, '_> {
    /// What queries far from the start are multiplied with.
    fn temperature(&self) -> Result<Option<Temperature>, ModelError> {
        let Some(scale) = self.nonzero("attention.temperature_scale")? else {
            return Ok(None);
        };
        let interval = self.needed("rope.scaling.original_context_length")?;
        Ok(Some(Temperature { scale, interval }))
    }

    /// How each layer mixes tokens; of heads, without their ropes.
    pub(super) fn mixers(
        &self,
        n_embd: usize,
        globals: &[bool],
        ffns: &[FfnConfig],
    ) -> Result<Vec<MixerConfig>, ModelError> {
        let n_layer = globals.len();
        let (q_name, kv_name) = ("attention.head_count", "attention.head_count_kv");
        let n_heads = match self.arch.without_kv {
            WithoutKv::Mamba => self.counts_or_zeros(q_name, n_layer)?,
            _ => self.counts(q_name, n_layer)?,
        };
        let n_heads = n_heads.ok_or_else(|| self.missing(q_name))?;
        let n_heads_kv = match self.arch.without_kv {
            WithoutKv::Refused => self.counts(kv_name, n_layer)?,
            _ => self.counts_or_zeros(kv_name, n_layer)?,
        };
        let n_heads_kv = n_heads_kv.unwrap_or_else(|| n_heads.clone());
        let window = self.window()?;
        let temperature = self.temperature()?;
        let softcap = self.nonzero("attn_logit_softcapping")?;
        let scale = self.positive("attention.scale")?;
        let (delta_net, recurrent) = (self.delta_net()?, self.recurrent(n_layer)?);
        let mamba = self.mamba()?;
        let mut all = Vec::<MixerConfig>::new();
        for (i, (n_head, n_head_kv)) in n_heads.into_iter().zip(n_heads_kv).enumerate() {
            if let Some(net) = delta_net.as_ref().filter(|_| recurrent[i]) {
                all.push(MixerConfig::DeltaNet(net.clone()));
                continue;
            }
            let is_ffn = self.arch.is_one_block && ffns[i] != FfnConfig::None;
            if n_head_kv == 0 {
                all.push(match &mamba {
                    _ if is_ffn => MixerConfig::None,
                    Some(mamba) => MixerConfig::Mamba(mamba.clone()),
                    None => MixerConfig::ShortConv(self.short_conv(n_embd)?),
                });
                continue;
            }
            if is_ffn {
                return Err(self.wrong(kv_name, "layers with a feed-forward network have none"));
            }
            self.check_heads(n_head, n_head_kv)?;
            let window = window.filter(|_| !globals[i]);
            let head_dim = self.head_dim(n_embd, n_head, window.is_some())?;
            let attention = AttentionConfig {
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
                has_sinks: self.arch.has_sinks,
                values_are_keys: self.arch.values_may_be_keys && self.lacks_values(i),
                shared_kv: None,
                temperature,
            };
            all.push(match &mamba {
                Some(mamba) if self.arch.has_mamba_beside => {
                    MixerConfig::AttentionAndMamba(AttentionAndMambaConfig {
                        attention,
                        mamba: mamba.clone(),
                    })
                }
                _ => MixerConfig::Attention(attention),
            });
        }
        if attentions(&all).next().is_none() && mamba.is_none() {
            return Err(self.wrong(kv_name, "no layer has any"));
        }
        if all.iter().all(|mixer| *mixer == MixerConfig::None) {
            return Err(self.wrong("feed_forward_length", "no layer mixes tokens"));
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
        match self.flags(name, n_layer)? {
            Some(layers) => Ok(layers),
            None if self.gguf.get(&self.key(name)).is_some() => {
                Err(self.wrong(name, "a list is wanted"))
            }
            None => Ok((0..n_layer)
                .map(|i| !(i + 1).is_multiple_of(every))
                .collect()),
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
        if net.head_dim > MAX_DELTA_HEAD {
            return Err(self.wrong(dim_name, "heads are longer than 256 elements"));
        }
        if net.n_tasks() > SharedMatrix::<f32>::MAX_TILES {
            return Err(self.wrong(v_name, "they are far too many"));
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

    fn mamba(&self) -> Result<Option<MambaConfig>, ModelError> {
        if self.arch.without_kv != WithoutKv::Mamba && !self.arch.has_mamba_beside {
            return Ok(None);
        }
        let (head_name, group_name) = ("ssm.time_step_rank", "ssm.group_count");
        let (inner_name, state_name) = ("ssm.inner_size", "ssm.state_size");
        let (n_inner, n_head) = (self.needed(inner_name)?, self.needed(head_name)?);
        let (n_group, n_state) = (self.needed(group_name)?, self.needed(state_name)?);
        // Each is a task of a step.
        if n_head > SharedMatrix::<f32>::MAX_TILES {
            return Err(self.wrong(head_name, "more than 1024 are not supported"));
        }
        if !n_inner.is_multiple_of(n_head) {
            return Err(self.wrong(head_name, "it does not divide the inner size"));
        }
        if !n_head.is_multiple_of(n_group) {
            return Err(self.wrong(group_name, "it does not divide the heads"));
        }
        let n_places = n_group.saturating_mul(n_state).saturating_mul(2);
        if n_places.saturating_add(2 * n_inner) > MAX_DIMENSION {
            return Err(self.wrong(state_name, "the number is far too large"));
        }
        let n_taps = self.needed("ssm.conv_kernel")?;
        if n_taps > MAX_TAPS {
            return Err(self.wrong("ssm.conv_kernel", "the convolution is far too long"));
        }
        Ok(Some(MambaConfig {
            n_head,
            head_dim: n_inner / n_head,
            n_state,
            n_group,
            n_taps,
        }))
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
        // Gemma 3n's files have it as a float.
        let float = self
            .gguf
            .get(&self.key(name))
            .and_then(|value| value.as_f32());
        let n_shared = match float {
            Some(n) if n >= 0.0 && n == libm::truncf(n) => n as u64,
            Some(_) => return Err(self.wrong(name, "a whole number is wanted")),
            None => self.gguf.get_u64(&self.key(name))?.unwrap_or(0),
        };
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
        if n_head == 0 || !n_head.is_multiple_of(n_head_kv) {
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
    pub(super) fn globals(&self, n_layer: usize) -> Result<Vec<bool>, ModelError> {
        let name = "attention.sliding_window_pattern";
        let every = match self.arch.windows {
            Windows::All => None,
            Windows::AllBut { every, .. } => Some(every),
        };
        if let Some(windows) = self.flags(name, n_layer)? {
            return Ok(windows.into_iter().map(|has_window| !has_window).collect());
        }
        let every = match self.gguf.get(&self.key(name)) {
            None => every,
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
}

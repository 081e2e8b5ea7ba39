//! How heads are turned by their positions.

use alloc::vec::Vec;

use tandem_kernels::RopeScaling;

use super::{Keys, attentions};
use crate::ModelError;
use crate::blocks::AttentionConfig;
use crate::model::arch::{NoRope, Windows};
use crate::model::config::{MixerConfig, RopeConfig};

impl Keys<'_, '_> {
    /// The rope of layer `i`, of one or two: the second is that of layers with a window.
    pub(super) fn rope_of(
        &self,
        i: usize,
        is_global: bool,
        has_windows: bool,
        n_ropes: usize,
    ) -> Result<Option<usize>, ModelError> {
        let is_left_out = match self.arch.no_rope {
            NoRope::Nowhere => false,
            NoRope::Everywhere => true,
            NoRope::InFile => {
                self.gguf.get_bool(&self.key("rope.scaling.finetuned"))? == Some(false)
            }
            NoRope::Every(n) => (i + 1).is_multiple_of(n),
            NoRope::BesideWindows => has_windows && is_global,
        };
        let rope = match has_windows && !is_global {
            true => n_ropes.saturating_sub(1),
            false => 0,
        };
        Ok((!is_left_out).then_some(rope))
    }

    /// The rope of all layers or, where those with a window have their own, of the others and of these.
    pub(super) fn ropes(
        &self,
        mixers: &[MixerConfig],
        n_ctx_train: usize,
    ) -> Result<Vec<RopeConfig>, ModelError> {
        let name = "rope.dimension_count";
        let mut globals = attentions(mixers).filter(|layer| layer.window.is_none());
        let Some(global) = globals.next().or(attentions(mixers).next()) else {
            return Ok(Vec::new());
        };
        let n_rot = self.n_rot(name, global.head_dim)?;
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
                whole_pairs: self.arch.yarn_whole_pairs,
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

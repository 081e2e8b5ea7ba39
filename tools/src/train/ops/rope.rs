//! Rotary position embedding.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use tandem_engine::{Level, Model};
use tandem_kernels::{RopeStyle, rope, rope_angles};

use super::{like, read, values};

/// Cosines and sines of every position's angles.
pub(in super::super) struct Angles {
    pub style: RopeStyle,
    pub n_pairs: usize,
    /// `[n_positions, n_pairs]`.
    cos: Vec<f32>,
    /// `[n_positions, n_pairs]`.
    sin: Vec<f32>,
}

impl Angles {
    /// The angles of the model's rope number `rope` for a context of `n_ctx`, of which the first
    /// `n_positions` are used; `None` where the model has no such rope.
    pub(in super::super) fn new(
        model: &Model,
        rope: usize,
        n_ctx: usize,
        n_positions: usize,
    ) -> Option<Angles> {
        let (inv_freq, magnitude) = model.rope_frequencies(rope, n_ctx)?;
        let n_pairs = inv_freq.len();
        let mut cos = vec![0.0; n_positions * n_pairs];
        let mut sin = cos.clone();
        let rows = cos.chunks_exact_mut(n_pairs.max(1));
        for (i, (cos, sin)) in rows.zip(sin.chunks_exact_mut(n_pairs.max(1))).enumerate() {
            rope_angles(i, &inv_freq, magnitude, cos, sin);
        }
        Some(Angles {
            style: model.config().ropes.get(rope)?.style,
            n_pairs,
            cos,
            sin,
        })
    }
}

/// Turns every head of every token by the token's position.
pub(in super::super) struct Rope {
    pub angles: Arc<Angles>,
    /// Elements of a head.
    pub head_dim: usize,
    /// Of each token.
    pub positions: Arc<Vec<usize>>,
}

impl Rope {
    /// `sign` is 1, or -1 to turn back.
    fn turn(&self, x: &mut [f32], sign: f32) {
        let Angles {
            style,
            n_pairs,
            ref cos,
            ref sin,
        } = *self.angles;
        if self.positions.is_empty() {
            return;
        }
        let level = Level::detect();
        let n = x.len() / self.positions.len();
        let mut signed = vec![0.0; n_pairs];
        for (position, x) in self.positions.iter().zip(x.chunks_exact_mut(n)) {
            let at = position * n_pairs;
            for (s, sin) in signed.iter_mut().zip(&sin[at..]) {
                *s = sign * sin;
            }
            for head in x.chunks_exact_mut(self.head_dim) {
                rope(level, style, head, &cos[at..at + n_pairs], &signed);
            }
        }
    }
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut y = values(x, layout)?.to_vec();
        self.turn(&mut y, 1.0);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (storage, layout) = grad.storage_and_layout();
        let mut grad_x = read(&storage, layout)?.to_vec();
        // The transpose of a turn, its magnitude included, is the turn back.
        self.turn(&mut grad_x, -1.0);
        like(x, grad_x).map(Some)
    }
}

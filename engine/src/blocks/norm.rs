//! Normalizations, and adding to the residual stream.

use tandem_kernels::{SharedMatrix, layer_norm, rms_norm, rms_norm_in_place};

use crate::exec::{Step, TOKENS_PER_TASK};
use crate::model::{Config, Norm, NormKind};

/// A normalization as the kernels want it.
#[derive(Clone, Copy)]
pub(crate) struct RowNorm<'a> {
    pub kind: NormKind,
    pub eps: f32,
    pub norm: &'a Norm,
}

impl<'a> RowNorm<'a> {
    pub(crate) fn new(config: &Config, norm: &'a Norm) -> RowNorm<'a> {
        RowNorm {
            kind: config.norm,
            eps: config.norm_eps,
            norm,
        }
    }

    /// `y = norm(x)` of one row.
    pub(crate) fn row(&self, step: &Step<'_>, x: &[f32], y: &mut [f32]) {
        let Norm { weight, bias } = self.norm;
        match self.kind {
            NormKind::Rms => rms_norm(step.level, x, weight, self.eps, y),
            NormKind::Layer => layer_norm(step.level, x, weight, bias, self.eps, y),
        }
    }
}

/// `y = norm(x)`, row by row; `x` and `y` `[n_rows, n]` (`y` may be longer).
pub(super) fn normalize(step: &Step<'_>, norm: RowNorm<'_>, x: &[f32], y: &mut [f32]) {
    let n = norm.norm.weight.len();
    let n_rows = x.len() / n;
    let y = SharedMatrix::new(&mut y[..x.len()], n, TOKENS_PER_TASK, n);
    step.light_pool()
        .run(n_rows.div_ceil(TOKENS_PER_TASK), &|i| {
            let mut y = y.tile(i, 0);
            let x = &x[i * TOKENS_PER_TASK * n..];
            for (t, x) in x.chunks_exact(n).take(y.n_rows()).enumerate() {
                norm.row(step, x, y.row(t));
            }
        });
}

/// `x += scale norm(delta)`, or `x += scale delta` without one; both `[n_rows, n]`.
pub(super) fn add(
    step: &Step<'_>,
    norm: Option<RowNorm<'_>>,
    config: &Config,
    x: &mut [f32],
    delta: &mut [f32],
) {
    let (n, scale) = (config.n_embd, config.residual_scale);
    let n_rows = x.len() / n;
    let x = SharedMatrix::new(x, n, TOKENS_PER_TASK, n);
    let delta = SharedMatrix::new(delta, n, TOKENS_PER_TASK, n);
    step.light_pool()
        .run(n_rows.div_ceil(TOKENS_PER_TASK), &|i| {
            let (mut x, mut delta) = (x.tile(i, 0), delta.tile(i, 0));
            for t in 0..x.n_rows() {
                if let Some(norm) = norm {
                    let weight = &norm.norm.weight;
                    rms_norm_in_place(step.level, delta.row(t), weight, norm.eps);
                }
                let deltas = &*delta.row(t);
                x.row(t)
                    .iter_mut()
                    .zip(deltas)
                    .for_each(|(x, d)| *x += scale * d);
            }
        });
}

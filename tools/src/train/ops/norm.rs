//! Root-mean-square and layer normalization.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use pulp::Arch;
use tandem_engine::{Level, NormKind};
use tandem_kernels::lanes::{dot, reduce};
use tandem_kernels::{layer_norm, rms_norm};

use super::{like, read, values};

/// A normalization's parameters, which do not learn.
pub(in super::super) struct NormParameters {
    pub kind: NormKind,
    pub eps: f32,
    /// `[n]`; the norm goes over so many elements at a time.
    pub weight: Vec<f32>,
    /// `[n]` or empty.
    pub bias: Vec<f32>,
}

/// Normalizes each `n` elements: a token's, or a head's.
pub(in super::super) struct Norm(pub Arc<NormParameters>);

impl CustomOp1 for Norm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let NormParameters {
            kind,
            eps,
            ref weight,
            ref bias,
        } = *self.0;
        let x = values(x, layout)?;
        let level = Level::detect();
        let mut y = vec![0.0; x.len()];
        let rows = x.chunks_exact(weight.len());
        for (x, y) in rows.zip(y.chunks_exact_mut(weight.len())) {
            match kind {
                NormKind::Rms => rms_norm(level, x, weight, eps, y),
                NormKind::Layer => layer_norm(level, x, weight, bias, eps, y),
            }
        }
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x_tensor: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let x = x_tensor.storage_and_layout();
        let grad = grad.storage_and_layout();
        let (x, grad) = (read(&x.0, x.1)?, read(&grad.0, grad.1)?);
        let n = self.0.weight.len();
        let mut grad_x = vec![0.0; x.len()];
        Arch::new().dispatch(|| {
            let rows = x.chunks_exact(n).zip(grad.chunks_exact(n));
            for ((x, grad), grad_x) in rows.zip(grad_x.chunks_exact_mut(n)) {
                backward(&self.0, x, grad, grad_x);
            }
        });
        like(x_tensor, grad_x).map(Some)
    }
}

/// With `z = (x - mean) scale`, `scale = 1 / sqrt(var + eps)` and `d = weight grad`, the gradient is
/// `scale (d - mean(d) - z mean(d z))`; root mean square has no means to take off.
#[inline(always)]
fn backward(norm: &NormParameters, x: &[f32], grad: &[f32], grad_x: &mut [f32]) {
    let n = x.len() as f32;
    for ((d, g), w) in grad_x.iter_mut().zip(grad).zip(&norm.weight) {
        *d = g * w;
    }
    let (mean, mean_d) = match norm.kind {
        NormKind::Rms => (0.0, 0.0),
        NormKind::Layer => (reduce(x, x, |x, _| x) / n, reduce(grad_x, x, |d, _| d) / n),
    };
    let variance = reduce(x, x, |x, _| (x - mean) * (x - mean)) / n;
    let scale = 1.0 / (variance + norm.eps).sqrt();
    let mean_dz = match norm.kind {
        NormKind::Rms => dot(grad_x, x) * scale / n,
        NormKind::Layer => reduce(grad_x, x, |d, x| d * (x - mean)) * scale / n,
    };
    for (d, x) in grad_x.iter_mut().zip(x) {
        *d = scale * (*d - mean_d - (x - mean) * scale * mean_dz);
    }
}

//! Cross-entropy.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use tandem_engine::Level;
use tandem_kernels::softmax;

use super::{like, read, values};

/// `-sum_i ln p(targets[i])` of logits `[n, n_vocab]`, a scalar.
pub(in super::super) struct Loss {
    pub targets: Arc<Vec<u32>>,
    /// Where set, logits become `cap tanh(logits / cap)` first.
    pub softcap: Option<f32>,
}

impl Loss {
    /// The logits as the probabilities are taken of them.
    fn capped(&self, row: &[f32], out: &mut Vec<f32>) {
        out.clear();
        match self.softcap {
            None => out.extend_from_slice(row),
            Some(cap) => out.extend(row.iter().map(|x| cap * (x / cap).tanh())),
        }
    }
}

impl CustomOp1 for Loss {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let logits = values(logits, layout)?;
        let Some(n_vocab) = logits.len().checked_div(self.targets.len()) else {
            bail!("there is nothing to predict");
        };
        let mut row = Vec::new();
        let mut sum = 0.0_f64;
        for (logits, target) in logits.chunks_exact(n_vocab).zip(self.targets.iter()) {
            self.capped(logits, &mut row);
            let wanted = row[*target as usize];
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            softmax(Level::detect(), &mut row);
            // The largest probability is 1 / sum exp(x - max).
            let largest = row.iter().copied().fold(0.0, f32::max);
            sum += f64::from(max - wanted) - f64::from(largest).ln();
        }
        Ok((CpuStorage::F32(vec![sum as f32]), Shape::from(())))
    }

    fn bwd(&self, logits_tensor: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.to_scalar::<f32>()?;
        let logits = logits_tensor.storage_and_layout();
        let logits = read(&logits.0, logits.1)?;
        let n_vocab = logits.len() / self.targets.len();
        let mut row = Vec::new();
        let mut grad_logits = Vec::with_capacity(logits.len());
        for (logits, target) in logits.chunks_exact(n_vocab).zip(self.targets.iter()) {
            self.capped(logits, &mut row);
            softmax(Level::detect(), &mut row);
            row[*target as usize] -= 1.0;
            if let Some(cap) = self.softcap {
                for (d, x) in row.iter_mut().zip(logits) {
                    let t = (x / cap).tanh();
                    *d *= 1.0 - t * t;
                }
            }
            grad_logits.extend(row.iter().map(|d| grad * d));
        }
        like(logits_tensor, grad_logits).map(Some)
    }
}

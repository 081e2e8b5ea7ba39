//! The feed-forward network without a gate: `y = down activation(up x)`.

use tandem_kernels::{Activation, SharedMatrix, activate};

use super::layer::Pass;
use crate::ModelError;
use crate::exec::{Job, TOKENS_PER_TASK, matmul_many};
use crate::model::{Linear, LinearSpec, Tensors};

/// Hyperparameters of a feed-forward network without a gate.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MlpConfig {
    /// Elements inside.
    pub n_ff: usize,
    /// What is applied to them.
    pub activation: Activation,
}

impl MlpConfig {
    pub(crate) fn linears(&self, n_embd: usize) -> [LinearSpec; 2] {
        let linear = LinearSpec::new;
        [
            linear("ffn_up", self.n_ff, n_embd, 0),
            linear("ffn_down", n_embd, self.n_ff, 1),
        ]
    }
}

/// The weights of a feed-forward network without a gate.
#[derive(Debug)]
#[non_exhaustive]
pub struct Mlp {
    /// Its hyperparameters.
    pub config: MlpConfig,
    /// To the inside, `[n_ff, n_embd]`.
    pub up: Linear,
    /// Back to the residual stream, `[n_embd, n_ff]`.
    pub down: Linear,
}

impl Mlp {
    /// Those of layer `i`.
    pub(crate) fn load(
        config: &MlpConfig,
        tensors: &mut Tensors<'_, '_>,
        i: usize,
    ) -> Result<Mlp, ModelError> {
        let this = Mlp {
            config: config.clone(),
            up: tensors.linear_of_layer(i, "ffn_up", "")?,
            down: tensors.linear_of_layer(i, "ffn_down", "")?,
        };
        tensors.check_needed(i, "ffn_up.bias", !this.up.bias.is_empty())?;
        tensors.check_needed(i, "ffn_down.bias", !this.down.bias.is_empty())?;
        Ok(this)
    }

    /// The linears, in the order of their ids.
    pub fn linears(&self) -> [&Linear; 2] {
        [&self.up, &self.down]
    }

    /// The rows in `scratch.h` to `scratch.y`, both `[n_rows, n_embd]`.
    pub(super) fn forward(&self, pass: &mut Pass<'_, '_>) {
        let n_rows = pass.n_rows();
        let Pass {
            step,
            config,
            scratch: s,
            ..
        } = pass;
        let (n_embd, n_ff) = (config.n_embd, self.config.n_ff);
        let h = s.h.input(step, n_embd, &[&self.up]);
        let inner = &mut s.inner.f32[..n_rows * n_ff];
        let up = Job {
            linear: &self.up,
            y: &mut *inner,
        };
        matmul_many(step, h, [up], &mut s.ranks);
        let rows = SharedMatrix::new(inner, n_ff, TOKENS_PER_TASK, n_ff);
        step.light_pool()
            .run(n_rows.div_ceil(TOKENS_PER_TASK), &|i| {
                let mut rows = rows.tile(i, 0);
                for t in 0..rows.n_rows() {
                    activate(step.level, self.config.activation, rows.row(t));
                }
            });
        let inner = s.inner.input(step, n_ff, &[&self.down]);
        let down = Job {
            linear: &self.down,
            y: &mut s.y[..n_rows * n_embd],
        };
        matmul_many(step, inner, [down], &mut s.ranks);
    }
}

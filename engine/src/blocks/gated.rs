//! The gated feed-forward network: `y = down (activation(gate x) * (up x))`.

use tandem_kernels::{Activation, SharedMatrix, gate, keep_outliers};

use super::layer::Pass;
use crate::ModelError;
use crate::exec::{GatedBuffers, GatedPair, Job, TOKENS_PER_TASK, matmul_gated, matmul_many};
use crate::model::{FusedSpec, Linear, LinearSpec, Tensors};

/// Hyperparameters of a gated feed-forward network.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct GatedConfig {
    /// Elements inside.
    pub n_ff: usize,
    /// The gate's activation function.
    pub activation: Activation,
    /// Where set, gates become `max(gate - (mean + sparsity deviation), 0)` of their row before the activation.
    pub sparsity: Option<f32>,
    /// Whether it is an expert that all tokens share, which files call otherwise.
    pub is_shared: bool,
}

impl GatedConfig {
    pub(crate) fn linears(&self, n_embd: usize) -> [LinearSpec; 3] {
        let linear = LinearSpec::new;
        let [gate, up, down] = self.parts();
        [
            linear(gate, self.n_ff, n_embd, 0),
            linear(up, self.n_ff, n_embd, 0),
            linear(down, n_embd, self.n_ff, 1),
        ]
    }

    /// What files call the linears of a layer.
    fn parts(&self) -> [&'static str; 3] {
        match self.is_shared {
            true => ["ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"],
            false => ["ffn_gate", "ffn_up", "ffn_down"],
        }
    }

    pub(crate) fn fused(&self) -> &'static [FusedSpec] {
        match self.is_shared {
            true => &[],
            false => &[FusedSpec {
                tensor: "ffn_up",
                parts: &["ffn_gate", "ffn_up"],
            }],
        }
    }
}

/// The weights of a gated feed-forward network.
#[derive(Debug)]
#[non_exhaustive]
pub struct Gated {
    /// Its hyperparameters.
    pub config: GatedConfig,
    /// The gate, `[n_ff, n_embd]`.
    pub gate: Linear,
    /// What is gated, `[n_ff, n_embd]`.
    pub up: Linear,
    /// Back to the residual stream, `[n_embd, n_ff]`.
    pub down: Linear,
}

impl Gated {
    /// Those of layer `i`.
    pub(crate) fn load(
        config: &GatedConfig,
        tensors: &mut Tensors<'_, '_>,
        i: usize,
    ) -> Result<Gated, ModelError> {
        let [gate, up, down] = config.parts();
        Ok(Gated {
            config: config.clone(),
            gate: tensors.linear_of_layer(i, gate, up)?,
            up: tensors.linear_of_layer(i, up, up)?,
            down: tensors.linear_of_layer(i, down, "")?,
        })
    }

    /// The linears, in the order of their ids.
    pub fn linears(&self) -> [&Linear; 3] {
        [&self.gate, &self.up, &self.down]
    }

    /// The rows in `scratch.h` to `scratch.y`, both `[n_rows, n_embd]`.
    pub(super) fn forward(&self, pass: &mut Pass<'_, '_>) {
        if let Some(sparsity) = self.config.sparsity {
            return self.forward_sparse(pass, sparsity);
        }
        let Pass {
            step,
            config,
            scratch: s,
            ..
        } = pass;
        let h = s.h.input(step, config.n_embd, &[&self.gate, &self.up]);
        let pair = GatedPair {
            gate: &self.gate,
            up: &self.up,
            activation: self.config.activation,
        };
        let buffers = GatedBuffers {
            y: &mut s.inner,
            ranks: &mut s.ranks,
        };
        let inner = matmul_gated(step, h, &pair, &self.down, buffers);
        let down = Job {
            linear: &self.down,
            y: &mut s.y[..step.batch.n_rows() * config.n_embd],
        };
        matmul_many(step, inner, [down], &mut s.ranks);
    }

    /// The same where few gates of a row are left open.
    fn forward_sparse(&self, pass: &mut Pass<'_, '_>, sparsity: f32) {
        let n_rows = pass.n_rows();
        let Pass {
            step,
            config,
            scratch: s,
            ..
        } = pass;
        let (n_embd, n_ff) = (config.n_embd, self.config.n_ff);
        let h = s.h.input(step, n_embd, &[&self.gate, &self.up]);
        let (gates, up) = s.y[..2 * n_rows * n_ff].split_at_mut(n_rows * n_ff);
        let job = |linear, y| Job { linear, y };
        let jobs = [job(&self.gate, &mut *gates), job(&self.up, &mut *up)];
        matmul_many(step, h, jobs, &mut s.ranks);
        let inner = SharedMatrix::new(
            &mut s.inner.f32[..n_rows * n_ff],
            n_ff,
            TOKENS_PER_TASK,
            n_ff,
        );
        step.light_pool()
            .run(n_rows.div_ceil(TOKENS_PER_TASK), &|i| {
                let mut inner = inner.tile(i, 0);
                for t in 0..inner.n_rows() {
                    let row = (i * TOKENS_PER_TASK + t) * n_ff;
                    let inner = inner.row(t);
                    inner.copy_from_slice(&gates[row..row + n_ff]);
                    keep_outliers(step.level, sparsity, inner);
                    gate(
                        step.level,
                        self.config.activation,
                        inner,
                        &up[row..row + n_ff],
                    );
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

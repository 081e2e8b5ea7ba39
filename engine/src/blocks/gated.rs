//! The gated feed-forward network: `y = down (activation(gate x) * (up x))`.

use tandem_kernels::Activation;

use super::layer::Pass;
use crate::ModelError;
use crate::exec::{GatedBuffers, GatedPair, Job, matmul_gated, matmul_many};
use crate::model::{FusedSpec, Linear, LinearSpec, Tensors};

/// Hyperparameters of a gated feed-forward network.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct GatedConfig {
    /// Elements inside.
    pub n_ff: usize,
    /// The gate's activation function.
    pub activation: Activation,
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
}

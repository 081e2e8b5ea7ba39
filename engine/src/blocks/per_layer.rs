//! Per-layer embeddings (Gemma 3n and 4): every layer gets an input of its own for each token, some of it from a table,
//! some of it from the token's embedding: `x += norm(proj (activation(gate x) * input))`.

use alloc::format;
use alloc::vec::Vec;

use tandem_kernels::{Activation, SharedMatrix, gate, quant, rms_norm_in_place};

use super::layer::Pass;
use crate::ModelError;
use crate::exec::{Job, TOKENS_PER_TASK, matmul_many};
use crate::model::{Linear, LinearSpec, Norm, Tensor, Tensors};

/// Hyperparameters of a model's per-layer inputs.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct PerLayerConfig {
    /// Elements of each layer's input.
    pub n_input: usize,
    /// The gates' activation function.
    pub activation: Activation,
}

impl PerLayerConfig {
    /// The linear that all layers' inputs are computed by.
    pub(crate) fn model_proj(&self, n_embd: usize, n_layer: usize) -> LinearSpec {
        LinearSpec::new(MODEL_PROJ, n_layer * self.n_input, n_embd, 0)
    }

    /// Those of a layer.
    pub(crate) fn linears(&self, n_embd: usize) -> [LinearSpec; 2] {
        [
            LinearSpec::new("inp_gate", self.n_input, n_embd, 0),
            LinearSpec::new("proj", n_embd, self.n_input, 1),
        ]
    }
}

const MODEL_PROJ: &str = "per_layer_model_proj";

/// What the inputs of all layers are computed from.
#[derive(Debug)]
#[non_exhaustive]
pub struct PerLayerEmbeddings {
    /// Its hyperparameters.
    pub config: PerLayerConfig,
    /// A part of the inputs of each token, `[n_vocab, n_layer n_input]`. Of so large a table the rows of the
    /// tokens at hand are read and no others.
    pub table: Tensor,
    /// The other part, from the scaled embedding, `[n_layer n_input, n_embd]`.
    pub proj: Linear,
    /// On each layer's part of that, `[n_input]`.
    pub norm: Vec<f32>,
}

impl PerLayerEmbeddings {
    pub(crate) fn load(
        config: &PerLayerConfig,
        tensors: &mut Tensors<'_, '_>,
    ) -> Result<PerLayerEmbeddings, ModelError> {
        let proj = tensors.linear(MODEL_PROJ)?;
        let (name, n) = ("per_layer_token_embd.weight", proj.w.n_rows());
        Ok(PerLayerEmbeddings {
            table: tensors.matrix(name, tensors.n_vocab(), n)?,
            norm: tensors.needed_vector("per_layer_proj_norm.weight", config.n_input)?,
            proj,
            config: config.clone(),
        })
    }

    /// The inputs of all layers for the rows in `scratch.x`, which are the scaled embeddings of `tokens`, to
    /// `scratch.per_layer`, `[n_rows, n_layer n_input]`.
    pub(crate) fn forward<'t>(
        &self,
        pass: &mut Pass<'_, '_>,
        tokens: impl Iterator<Item = &'t u32>,
    ) {
        let n_rows = pass.n_rows();
        let Pass {
            step,
            config,
            scratch: s,
            ..
        } = pass;
        let (n_embd, n_cols) = (config.n_embd, self.proj.w.n_rows());
        s.h.f32[..n_rows * n_embd].copy_from_slice(&s.x[..n_rows * n_embd]);
        let x = s.h.input(step, n_embd, &[&self.proj]);
        let inputs = &mut s.per_layer[..n_rows * n_cols];
        let proj = Job {
            linear: &self.proj,
            y: &mut *inputs,
        };
        matmul_many(step, x, [proj], &mut s.ranks);

        let (table, n_input) = (self.table.view(), self.config.n_input);
        let proj_scale = 1.0 / libm::sqrtf(n_embd as f32);
        let table_scale = libm::sqrtf(n_input as f32);
        let from_table = &mut s.per_layer_row[..n_cols];
        for (token, row) in tokens.zip(inputs.chunks_exact_mut(n_cols)) {
            quant::dequantize(table.dtype(), table.row(*token as usize), from_table);
            row.iter_mut().for_each(|x| *x *= proj_scale);
            for input in row.chunks_exact_mut(n_input) {
                rms_norm_in_place(step.level, input, &self.norm, config.norm_eps);
            }
            for (x, e) in row.iter_mut().zip(&*from_table) {
                *x = (*x + table_scale * e) * core::f32::consts::FRAC_1_SQRT_2;
            }
        }
    }
}

/// How a layer takes its input up.
#[derive(Debug)]
#[non_exhaustive]
pub struct PerLayer {
    /// Its hyperparameters.
    pub config: PerLayerConfig,
    /// The gate on the input, `[n_input, n_embd]`.
    pub gate: Linear,
    /// To the residual stream, `[n_embd, n_input]`.
    pub proj: Linear,
    /// On what is added to the residual stream.
    pub norm: Norm,
}

impl PerLayer {
    /// That of layer `i`.
    pub(crate) fn load(
        config: &PerLayerConfig,
        tensors: &mut Tensors<'_, '_>,
        i: usize,
    ) -> Result<PerLayer, ModelError> {
        Ok(PerLayer {
            config: config.clone(),
            gate: tensors.linear(&format!("blk.{i}.inp_gate"))?,
            proj: tensors.linear(&format!("blk.{i}.proj"))?,
            norm: tensors.norm(&format!("blk.{i}.post_norm"))?,
        })
    }

    /// The linears, in the order of their ids.
    pub fn linears(&self) -> [&Linear; 2] {
        [&self.gate, &self.proj]
    }

    /// `proj (activation(gate x) * input)` of the rows in `scratch.x` with the inputs of layer `i`, to
    /// `scratch.y`, `[n_rows, n_embd]`.
    pub(super) fn forward(&self, pass: &mut Pass<'_, '_>, i: usize) {
        let n_rows = pass.n_rows();
        let Pass {
            step,
            config,
            scratch: s,
            ..
        } = pass;
        let (n_embd, n_input) = (config.n_embd, self.config.n_input);
        s.h.f32[..n_rows * n_embd].copy_from_slice(&s.x[..n_rows * n_embd]);
        let x = s.h.input(step, n_embd, &[&self.gate]);
        let gated = &mut s.inner.f32[..n_rows * n_input];
        let job = Job {
            linear: &self.gate,
            y: &mut *gated,
        };
        matmul_many(step, x, [job], &mut s.ranks);

        let (inputs, n_cols) = (&s.per_layer, n_input * config.layers.len());
        let rows = SharedMatrix::new(gated, n_input, TOKENS_PER_TASK, n_input);
        step.light_pool()
            .run(n_rows.div_ceil(TOKENS_PER_TASK), &|task| {
                let mut rows = rows.tile(task, 0);
                for t in 0..rows.n_rows() {
                    let at = (task * TOKENS_PER_TASK + t) * n_cols + i * n_input;
                    let input = &inputs[at..at + n_input];
                    gate(step.level, self.config.activation, rows.row(t), input);
                }
            });

        let gated = s.inner.input(step, n_input, &[&self.proj]);
        let proj = Job {
            linear: &self.proj,
            y: &mut s.y[..n_rows * n_embd],
        };
        matmul_many(step, gated, [proj], &mut s.ranks);
    }
}

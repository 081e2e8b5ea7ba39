//! The gated delta net (Qwen 3.5): each value head has a matrix that remembers by keys what values they had,
//! see [`delta_step`].
//!
//! Tokens are taken one by one, also those of a prompt: the chunked form, which multiplies matrices, sums in another
//! order, and a text's bits would hang on where it was cut. Heads, and columns of a head's values, do not hang
//! on each other, so that there is work for all threads, and a piece of the matrix stays in the first-level cache
//! while a batch's tokens go over it.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use tandem_kernels::{
    Activation, DeltaStep, Pool, SharedMatrix, delta_step, gate, rms_norm_in_place, softplus,
};

use super::conv::{Conv, Taps, columns_of};
use super::layer::Pass;
use crate::ModelError;
use crate::exec::{Job, Step, matmul_many};
use crate::model::{Linear, LinearSpec, Tensors, ValueHeads};
use crate::sequence::matrices_of;

/// Columns of a head's matrix that a task takes, where heads are multiples of it.
const TASK_COLUMNS: usize = 32;

/// Hyperparameters of a gated delta net.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct DeltaNetConfig {
    /// Heads of queries and keys; divides `n_head_v`.
    pub n_head_k: usize,
    /// Heads of values. Number `j` is with key head `j % n_head_k`.
    pub n_head_v: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Tokens that the convolution before it sums.
    pub n_taps: usize,
}

impl DeltaNetConfig {
    /// Elements of all value heads.
    pub fn n_v(&self) -> usize {
        self.n_head_v * self.head_dim
    }

    /// Elements of all key heads.
    pub fn n_k(&self) -> usize {
        self.n_head_k * self.head_dim
    }

    /// Channels of the convolution: queries, keys, values.
    pub fn n_channels(&self) -> usize {
        2 * self.n_k() + self.n_v()
    }

    pub(crate) fn conv(&self) -> Conv {
        Conv {
            n_taps: self.n_taps,
            n_channels: self.n_channels(),
        }
    }

    /// Elements of all matrices; `None` where that overflows.
    pub(crate) fn n_matrices(&self) -> Option<usize> {
        self.n_v().checked_mul(self.head_dim)
    }

    /// What the linears of its input come to together.
    pub(crate) fn n_inner(&self) -> usize {
        self.n_channels() + self.n_v() + 2 * self.n_head_v
    }

    pub(crate) fn linears(&self, n_embd: usize) -> [LinearSpec; 5] {
        let heads = ValueHeads {
            are_inputs: false,
            first: 0,
            len: self.head_dim,
            n_head_k: self.n_head_k,
            n_head_v: self.n_head_v,
        };
        let linear = |part, n_out, heads| LinearSpec {
            value_heads: Some(heads),
            ..LinearSpec::new(part, n_out, n_embd, 0)
        };
        let behind_keys = ValueHeads {
            first: 2 * self.n_k(),
            ..heads
        };
        let single = ValueHeads { len: 1, ..heads };
        let inputs = ValueHeads {
            are_inputs: true,
            ..heads
        };
        [
            linear("attn_qkv", self.n_channels(), behind_keys),
            linear("attn_gate", self.n_v(), heads),
            linear("ssm_beta", self.n_head_v, single),
            linear("ssm_alpha", self.n_head_v, single),
            LinearSpec {
                value_heads: Some(inputs),
                ..LinearSpec::new("ssm_out", n_embd, self.n_v(), 1)
            },
        ]
    }

    /// Tasks of a step.
    pub(crate) fn n_tasks(&self) -> usize {
        self.n_head_v
            .saturating_mul(self.head_dim / self.task_columns())
    }

    /// Columns of a task, of which there is a whole number in a head.
    fn task_columns(&self) -> usize {
        match self.head_dim.is_multiple_of(TASK_COLUMNS) {
            true => TASK_COLUMNS,
            false => self.head_dim,
        }
    }
}

/// The weights of a gated delta net.
#[derive(Debug)]
#[non_exhaustive]
pub struct DeltaNet {
    /// Its hyperparameters.
    pub config: DeltaNetConfig,
    /// Queries, keys and values, `[n_channels, n_embd]`.
    pub qkv: Linear,
    /// What gates the output, `[n_v, n_embd]`.
    pub gate: Linear,
    /// How much is taken up, `[n_head_v, n_embd]`.
    pub beta: Linear,
    /// How much is forgotten, `[n_head_v, n_embd]`.
    pub alpha: Linear,
    /// Back to the residual stream, `[n_embd, n_v]`.
    pub out: Linear,
    taps: Taps,
    /// What multiplies how much is forgotten, `[n_head_v]`, less than zero.
    a: Vec<f32>,
    /// Added to `alpha`'s outputs, `[n_head_v]`.
    dt_bias: Vec<f32>,
    /// On each head of the output, `[head_dim]`.
    norm: Vec<f32>,
    /// What makes a norm divide by the length: the inverse root of a head's elements, `[head_dim]`; for queries
    /// that twice.
    q_scale: Vec<f32>,
    k_scale: Vec<f32>,
}

impl DeltaNet {
    /// That of layer `i`.
    pub(crate) fn load(
        config: &DeltaNetConfig,
        tensors: &mut Tensors<'_, '_>,
        i: usize,
    ) -> Result<DeltaNet, ModelError> {
        let name = |part: &str| format!("blk.{i}.{part}");
        let n = config.n_head_v;
        Ok(DeltaNet {
            qkv: tensors.linear(&name("attn_qkv"))?,
            gate: tensors.linear(&name("attn_gate"))?,
            beta: tensors.linear(&name("ssm_beta"))?,
            alpha: tensors.linear(&name("ssm_alpha"))?,
            out: tensors.linear(&name("ssm_out"))?,
            taps: Taps::load(tensors, &name("ssm_conv1d"), config.conv())?,
            a: tensors.needed_vector(&name("ssm_a"), n)?,
            dt_bias: tensors.needed_vector(&name("ssm_dt.bias"), n)?,
            norm: tensors.needed_vector(&name("ssm_norm.weight"), config.head_dim)?,
            q_scale: vec![1.0 / config.head_dim as f32; config.head_dim],
            k_scale: vec![1.0 / libm::sqrtf(config.head_dim as f32); config.head_dim],
            config: config.clone(),
        })
    }

    /// The linears, in the order of their ids.
    pub fn linears(&self) -> [&Linear; 5] {
        [&self.qkv, &self.gate, &self.beta, &self.alpha, &self.out]
    }

    /// The rows in `scratch.h` to `scratch.y`, both `[n_rows, n_embd]`, with the states of layer `i`.
    pub(super) fn forward(&self, pass: &mut Pass<'_, '_>, i: usize) {
        let n_rows = pass.n_rows();
        let Pass {
            step,
            config,
            scratch: s,
            spans,
        } = pass;
        let (n_embd, n_v, n_head) = (config.n_embd, self.config.n_v(), self.config.n_head_v);
        let n_channels = self.config.n_channels();
        let h = s.h.input(
            step,
            n_embd,
            &[&self.qkv, &self.gate, &self.beta, &self.alpha],
        );
        let (qkv, rest) = s.y.split_at_mut(n_rows * n_channels);
        let (z, rest) = rest.split_at_mut(n_rows * n_v);
        let (beta, rest) = rest.split_at_mut(n_rows * n_head);
        let alpha = &mut rest[..n_rows * n_head];
        let job = |linear, y| Job { linear, y };
        let jobs = [
            job(&self.qkv, &mut *qkv),
            job(&self.gate, &mut *z),
            job(&self.beta, &mut *beta),
            job(&self.alpha, &mut *alpha),
        ];
        matmul_many(step, h, jobs, &mut s.ranks);
        beta.iter_mut()
            .for_each(|b| *b = 1.0 / (1.0 + libm::expf(-*b)));
        self.decays(alpha);

        let o = &mut s.inner.f32[..n_rows * n_v];
        for span in spans.iter_mut() {
            let state = &mut span.states[i];
            let rows = span.rows.clone();
            let qkv = &mut qkv[rows.start * n_channels..rows.end * n_channels];
            let columns = columns_of(state);
            self.taps.sum_rows(step, columns, span.first, qkv);
            self.normalize_keys(config.norm_eps, step, qkv);
            let gates = Gates {
                decay: &alpha[rows.start * n_head..rows.end * n_head],
                beta: &beta[rows.start * n_head..rows.end * n_head],
            };
            let o = &mut o[rows.start * n_v..rows.end * n_v];
            let matrices = matrices_of(state);
            self.recur(step, &mut matrices.now, qkv, &gates, o);
            matrices.advance(rows.len());
        }
        let d = self.config.head_dim;
        for (o, z) in o.chunks_exact_mut(n_v).zip(z.chunks_exact_mut(n_v)) {
            for head in o.chunks_exact_mut(d) {
                rms_norm_in_place(step.level, head, &self.norm, config.norm_eps);
            }
            // silu(z) o, which is as good as o silu(z).
            gate(step.level, Activation::Silu, z, o);
            o.copy_from_slice(z);
        }
        let o = s.inner.input(step, n_v, &[&self.out]);
        let out = Job {
            linear: &self.out,
            y: &mut s.y[..n_rows * n_embd],
        };
        matmul_many(step, o, [out], &mut s.ranks);
    }

    /// What states are multiplied with, from the outputs of `alpha`, `[n_rows, n_head_v]`, in their place.
    fn decays(&self, alpha: &mut [f32]) {
        for row in alpha.chunks_exact_mut(self.config.n_head_v) {
            for ((x, a), bias) in row.iter_mut().zip(&self.a).zip(&self.dt_bias) {
                *x = libm::expf(a * softplus(*x + bias));
            }
        }
    }

    /// Divides queries and keys by their lengths, and queries by the root of a head's, too.
    fn normalize_keys(&self, eps: f32, step: &Step<'_>, qkv: &mut [f32]) {
        let (d, n_k) = (self.config.head_dim, self.config.n_k());
        // The root of the mean square, times that of the number, is the length.
        let eps = eps / d as f32;
        for row in qkv.chunks_exact_mut(self.config.n_channels()) {
            let (q, rest) = row.split_at_mut(n_k);
            for head in q.chunks_exact_mut(d) {
                rms_norm_in_place(step.level, head, &self.q_scale, eps);
            }
            for head in rest[..n_k].chunks_exact_mut(d) {
                rms_norm_in_place(step.level, head, &self.k_scale, eps);
            }
        }
    }

    /// Takes the rows of one sequence up into its matrices, and asks these: `o` `[n_rows, n_v]`.
    fn recur(
        &self,
        step: &Step<'_>,
        matrices: &mut [f32],
        qkv: &[f32],
        gates: &Gates<'_>,
        o: &mut [f32],
    ) {
        let c = &self.config;
        let (d, n, n_k, n_v) = (c.head_dim, c.n_channels(), c.n_k(), c.n_v());
        let (n_rows, task) = (o.len() / n_v, c.task_columns());
        let per_head = d / task;
        let o = SharedMatrix::new(o, n_v, n_rows, task);
        // A task's columns lie together: as a part of longer rows they would share a few of the cache's sets.
        let matrices = SharedMatrix::new(matrices, task, d, task);
        step.pool.run(c.n_head_v * per_head, &|i| {
            let (head, part) = (i / per_head, i % per_head);
            let (mut o, mut m) = (o.tile(0, i), matrices.tile(i, 0));
            let k_head = head % c.n_head_k * d;
            for t in 0..n_rows {
                let row = &qkv[t * n..][..n];
                let v = 2 * n_k + head * d + part * task;
                let token = DeltaStep {
                    q: &row[k_head..][..d],
                    k: &row[n_k + k_head..][..d],
                    v: &row[v..][..task],
                    decay: gates.decay[t * c.n_head_v + head],
                    beta: gates.beta[t * c.n_head_v + head],
                };
                delta_step(step.level, &mut m, &token, o.row(t));
            }
        });
    }
}

/// Of each row and head, both `[n_rows, n_head_v]`.
struct Gates<'a> {
    decay: &'a [f32],
    beta: &'a [f32],
}

//! A mixture of experts: gated feed-forward networks, of which a router chooses some for each token:
//! `y = sum of weight_e down_e (activation(gate_e x) * (up_e x))` over the experts `e` chosen.
//!
//! Rows are gathered by expert, so that an expert's weights are read once for all tokens that chose it, and
//! those of experts that nobody chose are not. What a token gets does not depend on the others: its experts'
//! outputs are added in the order in which it chose them.

use alloc::format;
use alloc::vec::Vec;

use tandem_kernels::{
    Activation, Input, Level, Pool, SharedMatrix, TileMut, gate, matmul, rms_norm,
    rms_norm_in_place, softmax,
};

use super::gated::{Gated, GatedConfig};
use super::layer::Pass;
use super::norm::{RowNorm, normalize};
use crate::ModelError;
use crate::exec::{LinearInput, Routes, Step};
use crate::model::{Linear, Norm, Tensor, Tensors};

/// The most experts of a token.
pub(crate) const MAX_USED: usize = 64;
/// Outputs of a task.
const TASK_OUTPUTS: usize = 32;
/// Rows of an expert that are computed before the next outputs.
const BLOCK_ROWS: usize = 64;

/// Hyperparameters of a mixture of experts.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ExpertsConfig {
    /// How many there are.
    pub n_experts: usize,
    /// How many of them each token uses.
    pub n_used: usize,
    /// Elements inside an expert.
    pub n_ff: usize,
    /// The gates' activation function.
    pub activation: Activation,
    /// Where set, gates are not above it, and what is gated not beyond it in either direction, and has 1 added.
    pub bound: Option<f32>,
    /// How the router's outputs become weights.
    pub gating: Gating,
    /// Whether the weights of a token's experts are divided by their sum.
    pub normalizes: bool,
    /// Multiplies the weights.
    pub weight_scale: f32,
    /// Whether the router looks at the residual stream, normalized by itself, instead of the block's input.
    pub routes_residual: bool,
    /// An expert besides that all tokens use.
    pub shared: Option<GatedConfig>,
    /// Whether a gate says how much of it each token uses.
    pub gates_shared: bool,
}

/// How the router's outputs become weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Gating {
    /// Softmax over all experts.
    Softmax,
    /// The sigmoid of each.
    Sigmoid,
    /// Softmax over those chosen.
    SoftmaxOfChosen,
}

/// The weights of a mixture of experts. Adapters do not change them.
#[derive(Debug)]
#[non_exhaustive]
pub struct Experts {
    /// Its hyperparameters.
    pub config: ExpertsConfig,
    /// `[n_experts, n_embd]`.
    pub router: Tensor,
    /// What normalizes the residual stream for the router, `[n_embd]`; empty where the router does not see it.
    pub router_norm: Vec<f32>,
    /// Added to the router's outputs, `[n_experts]`; empty where there is none.
    pub router_bias: Vec<f32>,
    /// Added to the weights for choosing by them alone, `[n_experts]`; empty where there is none.
    pub choice_bias: Vec<f32>,
    /// Multiplies the weights of each, `[n_experts]`; empty where there is none.
    pub scales: Vec<f32>,
    /// The gates, `[n_experts n_ff, n_embd]`; or of each expert its gates and then what is gated.
    pub gate: Tensor,
    /// What is gated, `[n_experts n_ff, n_embd]`; none where it is with the gates.
    pub up: Option<Tensor>,
    /// Back to the residual stream, `[n_experts n_embd, n_ff]`.
    pub down: Tensor,
    /// Added to each expert's gates, `[n_experts, n_ff]`, and to what is gated; empty where there is none.
    pub gate_bias: Vec<f32>,
    /// As `gate_bias`.
    pub up_bias: Vec<f32>,
    /// Added to each expert's outputs, `[n_experts, n_embd]`; empty where there is none.
    pub down_bias: Vec<f32>,
    /// The expert that all tokens use.
    pub shared: Option<SharedExpert>,
}

/// An expert that all tokens use, each as much as the sigmoid of a gate says, where there is one.
#[derive(Debug)]
#[non_exhaustive]
pub struct SharedExpert {
    /// The expert.
    pub network: Gated,
    /// `[1, n_embd]`.
    pub gate: Option<Tensor>,
}

impl Experts {
    /// Those of layer `i`.
    pub(crate) fn load(
        config: &ExpertsConfig,
        tensors: &mut Tensors<'_, '_>,
        i: usize,
    ) -> Result<Experts, ModelError> {
        let (n, n_ff, n_embd) = (config.n_experts, config.n_ff, tensors.n_embd());
        let name = |part: &str| format!("blk.{i}.{part}.weight");
        let fused = name("ffn_gate_up_exps");
        let is_fused = tensors.has(&fused);
        let mut router_norm = Vec::new();
        if config.routes_residual {
            router_norm = tensors.needed_vector(&format!("blk.{i}.ffn_gate_inp.scale"), n_embd)?;
            let root = libm::sqrtf(n_embd as f32);
            router_norm.iter_mut().for_each(|scale| *scale /= root);
        }
        let scales = tensors.vector(&format!("blk.{i}.ffn_down_exps.scale"), n)?;
        tensors.check_needed(i, "ffn_down_exps.scale", !scales.is_empty())?;
        let choice_bias = tensors.vector(&format!("blk.{i}.exp_probs_b.bias"), n)?;
        tensors.check_needed(i, "exp_probs_b.bias", !choice_bias.is_empty())?;
        let bias = |part: &str| format!("blk.{i}.{part}.bias");
        let router_bias = tensors.vector(&bias("ffn_gate_inp"), n)?;
        tensors.check_needed(i, "ffn_gate_inp.bias", !router_bias.is_empty())?;
        let gate_bias = tensors.floats(&bias("ffn_gate_exps"), n, n_ff)?;
        let up_bias = tensors.floats(&bias("ffn_up_exps"), n, n_ff)?;
        let down_bias = tensors.floats(&bias("ffn_down_exps"), n, n_embd)?;
        tensors.check_needed(i, "ffn_gate_exps.bias", !gate_bias.is_empty())?;
        tensors.check_needed(i, "ffn_up_exps.bias", !up_bias.is_empty())?;
        tensors.check_needed(i, "ffn_down_exps.bias", !down_bias.is_empty())?;
        Ok(Experts {
            router_bias,
            gate_bias,
            up_bias,
            down_bias,
            router: tensors.matrix(&name("ffn_gate_inp"), n, n_embd)?,
            choice_bias,
            router_norm,
            scales,
            gate: match is_fused {
                true => tensors.matrices(&fused, n, [2 * n_ff, n_embd])?,
                false => tensors.matrices(&name("ffn_gate_exps"), n, [n_ff, n_embd])?,
            },
            up: match is_fused {
                true => None,
                false => Some(tensors.matrices(&name("ffn_up_exps"), n, [n_ff, n_embd])?),
            },
            down: tensors.matrices(&name("ffn_down_exps"), n, [n_embd, n_ff])?,
            shared: match &config.shared {
                None => None,
                Some(shared) => Some(SharedExpert {
                    network: Gated::load(shared, tensors, i)?,
                    gate: match config.gates_shared {
                        true => Some(tensors.matrix(&name("ffn_gate_inp_shexp"), 1, n_embd)?),
                        false => None,
                    },
                }),
            },
            config: config.clone(),
        })
    }

    /// The linears, in the order of their ids: those of the expert that all tokens use.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        let shared = self.shared.iter();
        shared.flat_map(|shared| shared.network.linears())
    }

    /// Bytes that a token reads.
    pub(crate) fn bytes_per_token(&self) -> usize {
        let up = self.up.as_ref().map_or(0, Tensor::n_bytes);
        let all = self.gate.n_bytes() + up + self.down.n_bytes();
        all / self.config.n_experts * self.config.n_used + self.router.n_bytes()
    }

    /// The rows in `scratch.h` to `scratch.y`, both `[n_rows, n_embd]`.
    pub(super) fn forward(&self, pass: &mut Pass<'_, '_>) {
        if let Some(shared) = &self.shared {
            shared.forward(pass);
        }
        self.route(pass);
        let n_rows = pass.n_rows();
        let Pass {
            step,
            config,
            scratch: s,
            ..
        } = pass;
        let (n_embd, n_ff) = (config.n_embd, self.config.n_ff);
        let routes = &s.experts.routes;
        let n_slots = n_rows * self.config.n_used;
        let gathered = s.experts.input.f32.chunks_exact_mut(n_embd);
        for (to, row) in gathered.zip(&routes.rows[..n_slots]) {
            to.copy_from_slice(&s.h.f32[*row as usize * n_embd..][..n_embd]);
        }
        let wants_q8 = |w: &Tensor| w.dtype().is_quantized() && !step.exact;
        let either = wants_q8(&self.gate) || self.up.as_ref().is_some_and(wants_q8);
        let x = s.experts.input.rows(step, [n_slots, n_embd], either);
        {
            let inner = &mut s.experts.inner.f32[..n_slots * n_ff];
            let task = task_outputs(n_ff);
            let inner = SharedMatrix::new(inner, n_ff, n_slots, task);
            step.pool.run(n_ff.div_ceil(task), &|j| {
                self.gated(step, routes, &x, j * task, &mut inner.tile(0, j));
            });
        }
        let inner = &mut s.experts.inner;
        let inner = inner.rows(step, [n_slots, n_ff], wants_q8(&self.down));
        let task = task_outputs(n_embd);
        let slots = &mut s.experts.output[..n_slots * n_embd];
        let slots = SharedMatrix::new(slots, n_embd, n_slots, task);
        let y = SharedMatrix::new(&mut s.y[..n_rows * n_embd], n_embd, n_rows, task);
        let shared = self.shared.as_ref().map(|_| &s.experts.dense);
        step.pool.run(n_embd.div_ceil(task), &|j| {
            let (mut slots, mut y) = (slots.tile(0, j), y.tile(0, j));
            let outputs = j * task..j * task + y.n_cols();
            for (expert, group) in routes.groups() {
                let first = expert * n_embd;
                let down = first + outputs.start..first + outputs.end;
                let mut slots = slots.rows(group.clone());
                let x = pick(&inner, wants_q8(&self.down)).tokens(group, n_ff);
                let bias = self.down_bias.get(down.clone());
                matmul(step.level, &self.down.view(), down, &x, &mut slots);
                for slot in 0..slots.n_rows() {
                    add(slots.row(slot), bias);
                }
            }
            for row in 0..n_rows {
                let y = y.row(row);
                match shared {
                    Some(shared) => y.copy_from_slice(&shared[row * n_embd..][outputs.clone()]),
                    None => y.fill(0.0),
                }
                let own = row * self.config.n_used..(row + 1) * self.config.n_used;
                for (slot, weight) in routes.slots[own.clone()].iter().zip(&routes.weights[own]) {
                    let outputs = &*slots.row(*slot as usize);
                    y.iter_mut()
                        .zip(outputs)
                        .for_each(|(y, x)| *y += weight * x);
                }
            }
        });
    }

    /// Outputs `start` and up of the gated networks of all experts chosen, each of its slots: `y`
    /// `[n_slots, n_outputs]`.
    ///
    /// Never inlined: its buffers would lie on the stack below whatever its caller calls besides.
    #[inline(never)]
    fn gated(
        &self,
        step: &Step<'_>,
        routes: &Routes,
        x: &LinearInput<'_>,
        start: usize,
        y: &mut TileMut<'_>,
    ) {
        let mut buffer = [0.0; BLOCK_ROWS * TASK_OUTPUTS];
        let (n_ff, n_embd, n) = (self.config.n_ff, self.gate.n_cols(), y.n_cols());
        // A task has more outputs where there would be too many tasks.
        let n_block = (buffer.len() / n).clamp(1, BLOCK_ROWS);
        let mut wide = Vec::new();
        let buffer = match n <= buffer.len() {
            true => &mut buffer[..],
            false => {
                wide.resize(n, 0.0);
                &mut wide[..]
            }
        };
        let wants_q8 = |w: &Tensor| w.dtype().is_quantized() && !step.exact;
        // Where an expert's gates begin, and what is gated.
        let (up, gate_rows, up_first) = match &self.up {
            Some(up) => (up, n_ff, 0),
            None => (&self.gate, 2 * n_ff, n_ff),
        };
        for (expert, group) in routes.groups() {
            let of_gate = expert * gate_rows + start..expert * gate_rows + start + n;
            let of_up = of_gate.start + up_first..of_gate.end + up_first;
            for first in group.clone().step_by(n_block) {
                let slots = first..group.end.min(first + n_block);
                let part = |w: &Tensor| pick(x, wants_q8(w)).tokens(slots.clone(), n_embd);
                let mut gated = TileMut::new(&mut buffer[..slots.len() * n], n);
                matmul(step.level, &up.view(), of_up.clone(), &part(up), &mut gated);
                let mut y = y.rows(slots.clone());
                let gate_w = &self.gate;
                matmul(
                    step.level,
                    &gate_w.view(),
                    of_gate.clone(),
                    &part(gate_w),
                    &mut y,
                );
                let biases = expert * n_ff + start..expert * n_ff + start + n;
                for t in 0..slots.len() {
                    add(y.row(t), self.gate_bias.get(biases.clone()));
                    add(gated.row(t), self.up_bias.get(biases.clone()));
                    if let Some(bound) = self.config.bound {
                        // Comparisons that let a NaN through.
                        let gates = y.row(t).iter_mut();
                        gates.for_each(|x| *x = if *x > bound { bound } else { *x });
                        let gated = gated.row(t).iter_mut();
                        gated.for_each(|x| *x = x.clamp(-bound, bound) + 1.0);
                    }
                    gate(step.level, self.config.activation, y.row(t), gated.row(t));
                }
            }
        }
    }

    /// Chooses experts for the rows in `scratch.h`, and gathers the rows by them.
    fn route(&self, pass: &mut Pass<'_, '_>) {
        let n_rows = pass.n_rows();
        let Pass {
            step,
            config,
            scratch: s,
            ..
        } = pass;
        let (n_embd, n) = (config.n_embd, self.config.n_experts);
        let len = n_rows * n_embd;
        if !self.router_norm.is_empty() {
            // The experts' output is there only later.
            let rows = s.x[..len].chunks_exact(n_embd);
            for (x, y) in rows.zip(s.experts.output.chunks_exact_mut(n_embd)) {
                rms_norm(step.level, x, &self.router_norm, config.norm_eps, y);
            }
        }
        let h = Input::F32(match self.router_norm.is_empty() {
            true => &s.h.f32[..len],
            false => &s.experts.output[..len],
        });
        let logits = &mut s.experts.logits[..n_rows * n];
        {
            let task = task_outputs(n);
            let logits = SharedMatrix::new(&mut *logits, n, n_rows, task);
            step.pool.run(n.div_ceil(task), &|j| {
                let mut logits = logits.tile(0, j);
                let outputs = j * task..j * task + logits.n_cols();
                matmul(step.level, &self.router.view(), outputs, &h, &mut logits);
            });
        }
        let routes = &mut s.experts.routes;
        let n_used = self.config.n_used;
        for (row, logits) in logits.chunks_exact_mut(n).enumerate() {
            let own = row * n_used..(row + 1) * n_used;
            add(logits, self.router_bias.get(..logits.len()));
            let (chosen, weights) = (&mut routes.chosen[own.clone()], &mut routes.weights[own]);
            self.choose(step.level, logits, chosen, weights);
        }
        routes.gather(n_rows, n_used);
    }

    /// The experts of one row, the best first, and their weights, from the router's outputs.
    fn choose(&self, level: Level, logits: &mut [f32], chosen: &mut [u32], weights: &mut [f32]) {
        match self.config.gating {
            Gating::Softmax => softmax(level, logits),
            Gating::SoftmaxOfChosen => {}
            Gating::Sigmoid => logits
                .iter_mut()
                .for_each(|x| *x = 1.0 / (1.0 + libm::expf(-*x))),
        }
        let score = |e: usize| logits[e] + self.choice_bias.get(e).copied().unwrap_or(0.0);
        for place in 0..chosen.len() {
            let mut best: Option<usize> = None;
            for e in 0..logits.len() {
                let is_better = best.is_none_or(|best| score(e) > score(best));
                if is_better && !chosen[..place].contains(&(e as u32)) {
                    best = Some(e);
                }
            }
            // There are more experts than a token uses.
            chosen[place] = best.unwrap_or(0) as u32;
        }
        for (weight, e) in weights.iter_mut().zip(&*chosen) {
            *weight = logits[*e as usize];
        }
        if self.config.gating == Gating::SoftmaxOfChosen {
            softmax(level, weights);
        }
        let sum: f32 = match self.config.normalizes {
            // Not below what an f16 can be, as llama.cpp has it: sigmoids may all be 0.
            true => weights.iter().sum::<f32>().max(6.1e-5),
            false => 1.0,
        };
        let scale = self.config.weight_scale;
        for (weight, e) in weights.iter_mut().zip(chosen) {
            let own = self.scales.get(*e as usize).copied().unwrap_or(1.0);
            *weight = *weight / sum * scale * own;
        }
    }
}

impl SharedExpert {
    /// The rows in `scratch.h` to `scratch.experts.dense`, both `[n_rows, n_embd]`.
    fn forward(&self, pass: &mut Pass<'_, '_>) {
        self.network.forward(pass);
        let (n_rows, n_embd) = (pass.n_rows(), pass.config.n_embd);
        let s = &mut *pass.scratch;
        let Some(gate) = &self.gate else {
            let len = n_rows * n_embd;
            return s.experts.dense[..len].copy_from_slice(&s.y[..len]);
        };
        // The router's outputs come only later.
        let gates = &mut s.experts.logits[..n_rows];
        let h = Input::F32(&s.h.f32[..n_rows * n_embd]);
        let level = pass.step.level;
        matmul(level, &gate.view(), 0..1, &h, &mut TileMut::new(gates, 1));
        let rows = s.y[..n_rows * n_embd].chunks_exact(n_embd);
        let outputs = s.experts.dense.chunks_exact_mut(n_embd);
        for ((y, out), gate) in rows.zip(outputs).zip(gates) {
            let weight = 1.0 / (1.0 + libm::expf(-*gate));
            out.iter_mut().zip(y).for_each(|(out, y)| *out = weight * y);
        }
    }
}

/// A dense network beside experts (Gemma 4's 26B): `y = norm(dense(norm x)) + norm(experts(norm x))`, where the
/// layer normalizes for the dense one.
#[derive(Debug)]
#[non_exhaustive]
pub struct DenseAndExperts {
    /// The dense network.
    pub dense: Gated,
    /// On its output.
    pub dense_norm: Norm,
    /// Before the experts.
    pub pre_norm: Norm,
    /// The experts.
    pub experts: Experts,
    /// On their output.
    pub experts_norm: Norm,
}

impl DenseAndExperts {
    /// Those of layer `i`.
    pub(crate) fn load(
        config: &DenseAndExpertsConfig,
        tensors: &mut Tensors<'_, '_>,
        i: usize,
    ) -> Result<DenseAndExperts, ModelError> {
        Ok(DenseAndExperts {
            dense: Gated::load(&config.dense, tensors, i)?,
            dense_norm: tensors.norm(&format!("blk.{i}.post_ffw_norm_1"))?,
            pre_norm: tensors.norm(&format!("blk.{i}.pre_ffw_norm_2"))?,
            experts: Experts::load(&config.experts, tensors, i)?,
            experts_norm: tensors.norm(&format!("blk.{i}.post_ffw_norm_2"))?,
        })
    }

    /// The rows in `scratch.h`, which are those in `scratch.x` normalized, to `scratch.y`.
    pub(super) fn forward(&self, pass: &mut Pass<'_, '_>) {
        let len = pass.n_rows() * pass.config.n_embd;
        self.dense.forward(pass);
        let eps = pass.config.norm_eps;
        let level = pass.step.level;
        let s = &mut *pass.scratch;
        let n_embd = pass.config.n_embd;
        for (y, kept) in s.y[..len]
            .chunks_exact_mut(n_embd)
            .zip(s.experts.dense.chunks_exact_mut(n_embd))
        {
            rms_norm(level, y, &self.dense_norm.weight, eps, kept);
        }
        let norm = RowNorm::new(pass.config, &self.pre_norm);
        normalize(&pass.step, norm, &s.x[..len], &mut s.h.f32);
        self.experts.forward(pass);
        let s = &mut *pass.scratch;
        for (y, kept) in s.y[..len]
            .chunks_exact_mut(n_embd)
            .zip(s.experts.dense.chunks_exact(n_embd))
        {
            rms_norm_in_place(level, y, &self.experts_norm.weight, eps);
            y.iter_mut().zip(kept).for_each(|(y, x)| *y += x);
        }
    }
}

/// Hyperparameters of a dense network beside experts.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct DenseAndExpertsConfig {
    /// Of the dense network.
    pub dense: GatedConfig,
    /// Of the experts.
    pub experts: ExpertsConfig,
}

/// The form of `x` that weights want.
fn pick<'a>(x: &LinearInput<'a>, wants_q8: bool) -> Input<'a> {
    match x.q8 {
        Some(q8) if wants_q8 => q8,
        _ => x.f32,
    }
}

/// Adds a bias, if there is one.
fn add(y: &mut [f32], bias: Option<&[f32]>) {
    if let Some(bias) = bias {
        y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
    }
}

/// Outputs of a task, so that there are no more tasks than a matrix has tiles.
pub(super) fn task_outputs(n: usize) -> usize {
    TASK_OUTPUTS.max(n.div_ceil(SharedMatrix::<f32>::MAX_TILES))
}

//! What Gemma 3n has around its layers: several residual streams, of which one goes through a layer and tells what
//! becomes of the others (AltUp: Baykal et al., arXiv 2301.13310), and a low-rank path beside attention (LAuReL:
//! Menghani et al., arXiv 2411.07501).

use core::ops::Range;

use alloc::format;
use alloc::vec::Vec;

use tandem_kernels::{
    Input, Level, Pool, SharedMatrix, lanes, matmul, rms_norm, rms_norm_in_place,
};

use super::experts::task_outputs;
use super::layer::Pass;
use super::per_layer::PerLayer;
use crate::ModelError;
use crate::exec::{Job, Step, TOKENS_PER_TASK, matmul_many};
use crate::model::{Linear, LinearSpec, Norm, Tensor, Tensors};

/// The most streams; models have 4.
pub(crate) const MAX_STREAMS: usize = 8;

/// Hyperparameters of the streams.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct AltUpConfig {
    /// How many there are.
    pub n_streams: usize,
    /// The one that goes through the layers.
    pub active: usize,
    /// The rank of the path beside attention.
    pub n_laurel: usize,
}

impl AltUpConfig {
    /// The linears of a layer.
    pub(crate) fn linears(&self, n_embd: usize) -> [LinearSpec; 2] {
        [
            LinearSpec::new("laurel_l", self.n_laurel, n_embd, 0),
            LinearSpec::new("laurel_r", n_embd, self.n_laurel, 1),
        ]
    }
}

/// Where the streams part and come together again. Adapters do not change it.
#[derive(Debug)]
#[non_exhaustive]
pub struct AltUpEnds {
    /// Hyperparameters.
    pub config: AltUpConfig,
    /// Of each stream but the first, from the embedding, `[(n_streams - 1) n_embd, n_embd]`.
    pub proj: Tensor,
    /// The way back, of the same shape.
    pub unembd_proj: Tensor,
}

impl AltUpEnds {
    pub(crate) fn load(
        config: &AltUpConfig,
        tensors: &mut Tensors<'_, '_>,
    ) -> Result<AltUpEnds, ModelError> {
        let (n, n_embd) = (config.n_streams - 1, tensors.n_embd());
        let shape = [n_embd, n_embd];
        Ok(AltUpEnds {
            config: config.clone(),
            proj: tensors.matrices("altup_proj.weight", n, shape)?,
            unembd_proj: tensors.matrices("altup_unembd_proj.weight", n, shape)?,
        })
    }

    /// Bytes that a token reads.
    pub(crate) fn n_bytes(&self) -> usize {
        self.proj.n_bytes() + self.unembd_proj.n_bytes()
    }

    /// The streams of the embeddings in `scratch.x`, to `scratch.streams`.
    pub(crate) fn part(&self, pass: &mut Pass<'_, '_>) {
        let (n_rows, n) = (pass.n_rows(), pass.config.n_embd);
        let (step, s) = (&pass.step, &mut *pass.scratch);
        let n_others = (self.config.n_streams - 1) * n;
        let others = &mut s.predicted[..n_rows * n_others];
        project(step, &self.proj, 0..n_others, &s.x[..n_rows * n], others);
        let rows = s.streams.chunks_exact_mut(self.config.n_streams * n);
        let inputs = s.x.chunks_exact(n).zip(others.chunks_exact(n_others));
        for (row, (x, others)) in rows.zip(inputs).take(n_rows) {
            let (first, rest) = row.split_at_mut(n);
            first.copy_from_slice(x);
            rest.copy_from_slice(others);
            for other in rest.chunks_exact_mut(n) {
                resize(x, other);
            }
        }
    }

    /// The mean of the streams, to `scratch.x`.
    pub(crate) fn join(&self, pass: &mut Pass<'_, '_>) {
        let (n_rows, n) = (pass.n_rows(), pass.config.n_embd);
        let (step, s) = (&pass.step, &mut *pass.scratch);
        let row_len = self.config.n_streams * n;
        for (x, row) in
            s.x.chunks_exact_mut(n)
                .zip(s.streams.chunks_exact(row_len))
                .take(n_rows)
        {
            x.copy_from_slice(&row[..n]);
        }
        for j in 1..self.config.n_streams {
            let inputs =
                s.h.f32
                    .chunks_exact_mut(n)
                    .zip(s.streams.chunks_exact(row_len));
            for (input, row) in inputs.take(n_rows) {
                input.copy_from_slice(&row[j * n..][..n]);
            }
            let (of_stream, outputs) = ((j - 1) * n..j * n, &mut s.predicted[..n_rows * n]);
            let input = &s.h.f32[..n_rows * n];
            project(step, &self.unembd_proj, of_stream, input, outputs);
            let rows = s.x.chunks_exact_mut(n).zip(s.streams.chunks_exact(row_len));
            for ((x, row), output) in rows.zip(outputs.chunks_exact_mut(n)) {
                resize(&row[..n], output);
                add_scaled(x, 1.0, output);
            }
        }
        let share = 1.0 / self.config.n_streams as f32;
        s.x[..n_rows * n].iter_mut().for_each(|x| *x *= share);
    }
}

/// The streams around one layer.
#[derive(Debug)]
#[non_exhaustive]
pub struct AltUp {
    /// Hyperparameters.
    pub config: AltUpConfig,
    /// The path beside attention, `[n_laurel, n_embd]` and `[n_embd, n_laurel]`.
    pub laurel: [Linear; 2],
    /// On its output.
    pub laurel_norm: Norm,
    eps: f32,
    /// What the router sees, `[n_embd]`, divided by that number.
    router_norm: Vec<f32>,
    /// `[n_streams, n_embd]`.
    router: Vec<f32>,
    /// How much of which stream comes to which, `[n_streams n_streams, n_streams]`.
    predict: Vec<f32>,
    /// How much of what the layer changed comes to which, `[n_streams, n_streams]`.
    correct: Vec<f32>,
    /// On the stream that takes the layer's input up, `[n_embd]`.
    correct_scale: Vec<f32>,
}

impl AltUp {
    /// Those of layer `i`.
    pub(crate) fn load(
        config: &AltUpConfig,
        tensors: &mut Tensors<'_, '_>,
        i: usize,
    ) -> Result<AltUp, ModelError> {
        let name = |part: &str| format!("blk.{i}.{part}");
        let (n, n_embd) = (config.n_streams, tensors.n_embd());
        let mut router_norm = tensors.needed_vector(&name("altup_router_norm.weight"), n_embd)?;
        router_norm.iter_mut().for_each(|w| *w /= n_embd as f32);
        Ok(AltUp {
            laurel: [
                tensors.linear(&name("laurel_l"))?,
                tensors.linear(&name("laurel_r"))?,
            ],
            laurel_norm: tensors.norm(&name("laurel_post_norm"))?,
            eps: tensors.norm_eps(),
            router_norm,
            router: tensors.float_matrix(&name("altup_router.weight"), n, n_embd)?,
            predict: tensors.float_matrix(&name("altup_predict_coef.weight"), n * n, n)?,
            correct: tensors.float_matrix(&name("altup_correct_coef.weight"), n, n)?,
            correct_scale: tensors.needed_vector(&name("altup_correct_scale.weight"), n_embd)?,
            config: config.clone(),
        })
    }

    /// The linears, in the order of their ids.
    pub fn linears(&self) -> [&Linear; 2] {
        self.laurel.each_ref()
    }

    /// What the layer will make of the streams in `scratch.streams`, to `scratch.predicted`, and that which goes through
    /// it to `scratch.x`.
    pub(super) fn predict(&self, pass: &mut Pass<'_, '_>) {
        let (n_rows, n) = (pass.n_rows(), pass.config.n_embd);
        let (step, s) = (&pass.step, &mut *pass.scratch);
        let row_len = self.config.n_streams * n;
        let streams = &s.streams[..n_rows * row_len];
        let predicted = &mut s.predicted[..n_rows * row_len];
        let predicted = SharedMatrix::new(predicted, row_len, TOKENS_PER_TASK, row_len);
        let x = SharedMatrix::new(&mut s.x[..n_rows * n], n, TOKENS_PER_TASK, n);
        step.light_pool()
            .run(n_rows.div_ceil(TOKENS_PER_TASK), &|task| {
                let (mut predicted, mut x) = (predicted.tile(task, 0), x.tile(task, 0));
                for t in 0..x.n_rows() {
                    let old = &streams[(task * TOKENS_PER_TASK + t) * row_len..][..row_len];
                    self.predict_row(step.level, old, predicted.row(t), x.row(t));
                }
            });
    }

    /// The streams `old` `[n_streams, n_embd]` of one row to `new`, the active one also to `x` `[n_embd]`.
    fn predict_row(&self, level: Level, old: &[f32], new: &mut [f32], x: &mut [f32]) {
        let (n, j) = (x.len(), self.config.n_streams);
        let active = self.config.active * n;
        let routed = self.route(level, &old[active..][..n], x);
        new.copy_from_slice(old);
        let coefs = self.predict.chunks_exact(j * j);
        for (new, coefs) in new.chunks_exact_mut(n).zip(coefs) {
            for (old, coefs) in old.chunks_exact(n).zip(coefs.chunks_exact(j)) {
                add_scaled(new, weighted(coefs, &routed), old);
            }
        }
        x.copy_from_slice(&new[active..][..n]);
    }

    /// Adds the path beside attention to `scratch.x`, which has attention's output; `scratch.h` is what that saw.
    pub(super) fn add_laurel(&self, pass: &mut Pass<'_, '_>) {
        let n_rows = pass.n_rows();
        let Pass {
            step,
            config,
            scratch: s,
            ..
        } = pass;
        let (n, rank) = (config.n_embd, self.config.n_laurel);
        let [left, right] = &self.laurel;
        let h = s.h.input(step, n, &[left]);
        let inner = Job {
            linear: left,
            y: &mut s.inner.f32[..n_rows * rank],
        };
        matmul_many(step, h, [inner], &mut s.ranks);
        let inner = s.inner.input(step, rank, &[right]);
        let out = Job {
            linear: right,
            y: &mut s.y[..n_rows * n],
        };
        matmul_many(step, inner, [out], &mut s.ranks);
        let rows = s.y[..n_rows * n].chunks_exact_mut(n);
        for ((y, h), x) in rows
            .zip(s.h.f32.chunks_exact(n))
            .zip(s.x.chunks_exact_mut(n))
        {
            rms_norm_in_place(step.level, y, &self.laurel_norm.weight, config.norm_eps);
            for ((x, y), h) in x.iter_mut().zip(&*y).zip(h) {
                *x = (*x + (h + y)) * core::f32::consts::FRAC_1_SQRT_2;
            }
        }
    }

    /// Corrects the streams predicted by what layer `i` made of the active one, which is in `scratch.x`, and adds the
    /// layer's own input: `scratch.streams`.
    pub(super) fn correct(&self, pass: &mut Pass<'_, '_>, per_layer: &PerLayer, i: usize) {
        let (n_rows, n) = (pass.n_rows(), pass.config.n_embd);
        let row_len = self.config.n_streams * n;
        let (step, s) = (&pass.step, &mut *pass.scratch);
        let predicted = &s.predicted[..n_rows * row_len];
        let streams = &mut s.streams[..n_rows * row_len];
        let streams = SharedMatrix::new(streams, row_len, TOKENS_PER_TASK, row_len);
        let x = SharedMatrix::new(&mut s.x[..n_rows * n], n, TOKENS_PER_TASK, n);
        let y = SharedMatrix::new(&mut s.y[..n_rows * n], n, TOKENS_PER_TASK, n);
        step.light_pool()
            .run(n_rows.div_ceil(TOKENS_PER_TASK), &|task| {
                let (mut streams, mut x) = (streams.tile(task, 0), x.tile(task, 0));
                let mut y = y.tile(task, 0);
                for t in 0..x.n_rows() {
                    let old = &predicted[(task * TOKENS_PER_TASK + t) * row_len..][..row_len];
                    let routed = self.route(step.level, x.row(t), y.row(t));
                    self.correct_row(&routed, old, streams.row(t), x.row(t));
                }
            });
        per_layer.forward(pass, i);
        let (level, eps) = (pass.step.level, pass.config.norm_eps);
        let s = &mut *pass.scratch;
        let rows = s.streams.chunks_exact_mut(row_len);
        for (row, y) in rows.zip(s.y[..n_rows * n].chunks_exact_mut(n)) {
            rms_norm_in_place(level, y, &per_layer.norm.weight, eps);
            for stream in row[n..].chunks_exact_mut(n) {
                add_scaled(stream, 1.0, y);
            }
        }
    }

    /// The streams predicted `old` `[n_streams, n_embd]` of one row, corrected, to `new`; `x` `[n_embd]`, what the layer
    /// made of the active one, becomes what takes the layer's own input up.
    fn correct_row(
        &self,
        routed: &[f32; MAX_STREAMS],
        old: &[f32],
        new: &mut [f32],
        x: &mut [f32],
    ) {
        let n = x.len();
        let active = self.config.active * n;
        // What the layer changed.
        add_scaled(x, -1.0, &old[active..][..n]);
        new.copy_from_slice(old);
        let coefs = self.correct.chunks_exact(self.config.n_streams);
        for (new, coefs) in new.chunks_exact_mut(n).zip(coefs) {
            add_scaled(new, 1.0 + weighted(coefs, routed), x);
        }
        for ((x, new), scale) in x.iter_mut().zip(&new[active..]).zip(&self.correct_scale) {
            *x = new * scale;
        }
    }

    /// What the router says of a row `x`, 0 behind the streams' number; `normalized` is of use in between.
    fn route(&self, level: Level, x: &[f32], normalized: &mut [f32]) -> [f32; MAX_STREAMS] {
        rms_norm(level, x, &self.router_norm, self.eps, normalized);
        let mut routed = [0.0; MAX_STREAMS];
        for (m, w) in routed.iter_mut().zip(self.router.chunks_exact(x.len())) {
            *m = libm::tanhf(lanes::dot(w, normalized));
        }
        routed
    }
}

/// `y = x w^T` of the rows `outputs` of `w`, for `x` `[n_rows, n_embd]`.
fn project(step: &Step<'_>, w: &Tensor, outputs: Range<usize>, x: &[f32], y: &mut [f32]) {
    let n = outputs.len();
    let task = task_outputs(n);
    let y = SharedMatrix::new(y, n, x.len() / w.n_cols(), task);
    step.pool.run(n.div_ceil(task), &|j| {
        let mut y = y.tile(0, j);
        let first = outputs.start + j * task;
        let outputs = first..first + y.n_cols();
        matmul(step.level, &w.view(), outputs, &Input::F32(x), &mut y);
    });
}

/// Makes `y` as large as `x` in the root mean square.
fn resize(x: &[f32], y: &mut [f32]) {
    let mean = |v: &[f32]| lanes::dot(v, v) / v.len() as f32;
    // The bound is that of Hugging Face's code.
    let scale = libm::sqrtf(mean(x) / mean(y).max(1e-5));
    y.iter_mut().for_each(|y| *y *= scale);
}

/// The sum of the products.
fn weighted(coefs: &[f32], routed: &[f32]) -> f32 {
    coefs.iter().zip(routed).map(|(a, b)| a * b).sum()
}

/// `y += scale x`.
fn add_scaled(y: &mut [f32], scale: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += scale * x;
    }
}

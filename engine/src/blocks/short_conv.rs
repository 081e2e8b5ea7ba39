//! The gated short convolution (LFM2): `y = out (c * conv(b * x))`, where `b`, `c` and `x` are thirds of
//! `in h`, and `conv` sums the last few tokens' products, each channel by itself with weights of its own.

use alloc::format;

use tandem_kernels::{SharedMatrix, multiply_by, product};

use super::conv::{At, Conv, Taps, columns_of};
use super::layer::Pass;
use crate::ModelError;
use crate::exec::{Job, Step, matmul_many};
use crate::model::{Linear, LinearSpec, Tensors};
use crate::sequence::Columns;

/// Hyperparameters of a short convolution.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ShortConvConfig {
    /// Tokens that an output depends on, its own included.
    pub n_taps: usize,
}

impl ShortConvConfig {
    pub(crate) fn conv(&self, n_embd: usize) -> Conv {
        Conv {
            n_taps: self.n_taps,
            n_channels: n_embd,
        }
    }

    pub(crate) fn linears(&self, n_embd: usize) -> [LinearSpec; 2] {
        [
            LinearSpec::new("shortconv.in_proj", 3 * n_embd, n_embd, 0),
            LinearSpec::new("shortconv.out_proj", n_embd, n_embd, 1),
        ]
    }
}

/// The weights of a short convolution.
#[derive(Debug)]
#[non_exhaustive]
pub struct ShortConv {
    /// Its hyperparameters.
    pub config: ShortConvConfig,
    /// To the gates and what is gated: `b`, `c`, `x`, `[3 n_embd, n_embd]`.
    pub in_proj: Linear,
    taps: Taps,
    /// Back to the residual stream, `[n_embd, n_embd]`.
    pub out_proj: Linear,
}

impl ShortConv {
    /// That of layer `i`.
    pub(crate) fn load(
        config: &ShortConvConfig,
        tensors: &mut Tensors<'_, '_>,
        i: usize,
    ) -> Result<ShortConv, ModelError> {
        let in_proj = tensors.linear(&format!("blk.{i}.shortconv.in_proj"))?;
        let conv = config.conv(in_proj.w.n_cols());
        Ok(ShortConv {
            config: config.clone(),
            taps: Taps::load(tensors, &format!("blk.{i}.shortconv.conv"), conv)?,
            in_proj,
            out_proj: tensors.linear(&format!("blk.{i}.shortconv.out_proj"))?,
        })
    }

    /// The linears, in the order of their ids.
    pub fn linears(&self) -> [&Linear; 2] {
        [&self.in_proj, &self.out_proj]
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
        let n_embd = config.n_embd;
        let h = s.h.input(step, n_embd, &[&self.in_proj]);
        let in_proj = Job {
            linear: &self.in_proj,
            y: &mut s.y[..n_rows * 3 * n_embd],
        };
        matmul_many(step, h, [in_proj], &mut s.ranks);
        for span in spans.iter_mut() {
            let rows = span.rows.start * n_embd..span.rows.end * n_embd;
            let bcx = &s.y[3 * rows.start..3 * rows.end];
            let columns = columns_of(&mut span.states[i]);
            self.convolve(step, columns, span.first, bcx, &mut s.inner.f32[rows]);
        }
        let convolved = s.inner.input(step, n_embd, &[&self.out_proj]);
        let out_proj = Job {
            linear: &self.out_proj,
            y: &mut s.y[..n_rows * n_embd],
        };
        matmul_many(step, convolved, [out_proj], &mut s.ranks);
    }

    /// `y = c * conv(b * x)` of one sequence's rows at positions `first` and up: `bcx` `[n_rows, 3 n_embd]`, `y`
    /// `[n_rows, n_embd]`.
    fn convolve(
        &self,
        step: &Step<'_>,
        columns: &mut Columns,
        first: usize,
        bcx: &[f32],
        y: &mut [f32],
    ) {
        let n = self.out_proj.w.n_cols();
        let n_rows = y.len() / n;
        let task = self.taps.task_channels();
        let n_places = columns.n_places();
        let y = SharedMatrix::new(y, n, n_rows, task);
        let ring = columns.share(first + n_rows, task);
        step.light_pool().run(n.div_ceil(task), &|j| {
            let (mut y, mut ring) = (y.tile(0, j), ring.tile(0, j));
            let channels = j * task..j * task + y.n_cols();
            for t in 0..n_rows {
                let third = |k: usize| &bcx[(3 * t + k) * n..][channels.clone()];
                let [b, c, x] = [third(0), third(1), third(2)];
                product(step.level, b, x, ring.row((first + t) % n_places));
                let at = At {
                    position: first + t,
                    channels: channels.clone(),
                };
                self.taps.sum(step.level, &mut ring, at, y.row(t));
                multiply_by(step.level, c, y.row(t));
            }
        });
    }
}

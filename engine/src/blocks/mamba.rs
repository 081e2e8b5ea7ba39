//! Mamba-2 (Dao and Gu, "Transformers are SSMs"): each head has a state that forgets at a rate that each token sets,
//! see [`scan_step`].
//!
//! Tokens are taken one by one, also those of a prompt, as a delta net takes them. Heads do not hang on each other.

use alloc::format;
use alloc::vec::Vec;

use tandem_kernels::{
    Activation, Pool, ScanStep, SharedMatrix, gate, rms_norm_in_place, scan_step, softplus,
};

use super::attention::{Attention, AttentionConfig};
use super::conv::{Conv, Taps, columns_of};
use super::layer::{Narrow, Pass};
use crate::ModelError;
use crate::exec::{Job, Step, TOKENS_PER_TASK, matmul_many};
use crate::model::{FusedSpec, Linear, LinearSpec, Tensors};
use crate::sequence::matrices_of;

/// Hyperparameters of a Mamba-2 mixer.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MambaConfig {
    /// Heads.
    pub n_head: usize,
    /// Elements of a head's values.
    pub head_dim: usize,
    /// Elements that each of them has in the state.
    pub n_state: usize,
    /// Groups of heads; those of a group see the same of the state. Divides `n_head`.
    pub n_group: usize,
    /// Tokens that the convolution before it sums.
    pub n_taps: usize,
}

impl MambaConfig {
    /// Elements of all heads' values.
    pub fn n_inner(&self) -> usize {
        self.n_head * self.head_dim
    }

    /// Channels of the convolution: values, and where each group's go in the state and are found there.
    pub fn n_channels(&self) -> usize {
        self.n_inner() + 2 * self.n_group * self.n_state
    }

    pub(crate) fn conv(&self) -> Conv {
        Conv {
            n_taps: self.n_taps,
            n_channels: self.n_channels(),
        }
    }

    /// Elements of all heads' states; `None` where that overflows.
    pub(crate) fn n_matrices(&self) -> Option<usize> {
        self.n_inner().checked_mul(self.n_state)
    }

    /// Outputs of the linears of its input.
    pub(crate) fn n_proj(&self) -> usize {
        self.n_inner() + self.n_channels() + self.n_head
    }

    pub(crate) fn linears(&self, n_embd: usize) -> [LinearSpec; 4] {
        let linear = LinearSpec::new;
        [
            linear("ssm_in_z", self.n_inner(), n_embd, 0),
            linear("ssm_in_xbc", self.n_channels(), n_embd, 0),
            linear("ssm_in_dt", self.n_head, n_embd, 0),
            linear("ssm_out", n_embd, self.n_inner(), 1),
        ]
    }

    pub(crate) fn fused(&self) -> &'static [FusedSpec] {
        &[FusedSpec {
            tensor: "ssm_in",
            parts: &["ssm_in_z", "ssm_in_xbc", "ssm_in_dt"],
        }]
    }
}

/// The weights of a Mamba-2 mixer.
#[derive(Debug)]
#[non_exhaustive]
pub struct Mamba {
    /// Its hyperparameters.
    pub config: MambaConfig,
    /// What gates the output, `[n_inner, n_embd]`.
    pub z: Linear,
    /// What the convolution takes, `[n_channels, n_embd]`.
    pub xbc: Linear,
    /// How much each head takes up, `[n_head, n_embd]`.
    pub dt: Linear,
    /// Back to the residual stream, `[n_embd, n_inner]`.
    pub out: Linear,
    taps: Taps,
    /// How fast each head forgets, `[n_head]`, less than zero.
    a: Vec<f32>,
    /// How much of the values passes by, `[n_head]`.
    skip: Vec<f32>,
    /// Added to `dt`'s outputs, `[n_head]`.
    dt_bias: Vec<f32>,
    /// On each group's part of the gated output, `[n_inner]`; empty where there is none.
    norm: Vec<f32>,
}

impl Mamba {
    /// That of layer `i`.
    pub(crate) fn load(
        config: &MambaConfig,
        tensors: &mut Tensors<'_, '_>,
        i: usize,
    ) -> Result<Mamba, ModelError> {
        let name = |part: &str| format!("blk.{i}.{part}");
        let (n, n_group) = (config.n_head, config.n_group);
        let fused = name("ssm_in.weight");
        if !tensors.has(&fused) {
            return Err(ModelError::MissingTensor { name: fused });
        }
        let norm = tensors.floats(
            &name("ssm_norm.weight"),
            n_group,
            config.n_inner() / n_group,
        )?;
        tensors.check_needed(i, "ssm_norm.weight", !norm.is_empty())?;
        let this = Mamba {
            z: tensors.linear_of_layer(i, "ssm_in_z", "ssm_in")?,
            xbc: tensors.linear_of_layer(i, "ssm_in_xbc", "ssm_in")?,
            dt: tensors.linear_of_layer(i, "ssm_in_dt", "ssm_in")?,
            out: tensors.linear(&name("ssm_out"))?,
            taps: Taps::load(tensors, &name("ssm_conv1d"), config.conv())?,
            a: tensors.float_matrix(&name("ssm_a"), n, 1)?,
            skip: tensors.float_matrix(&name("ssm_d"), n, 1)?,
            dt_bias: tensors.needed_vector(&name("ssm_dt.bias"), n)?,
            norm,
            config: config.clone(),
        };
        tensors.check_needed(i, "ssm_conv1d.bias", this.taps.has_bias())?;
        Ok(this)
    }

    /// The linears, in the order of their ids.
    pub fn linears(&self) -> [&Linear; 4] {
        [&self.z, &self.xbc, &self.dt, &self.out]
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
        let (n_embd, n_inner) = (config.n_embd, self.config.n_inner());
        let (n_channels, n_head) = (self.config.n_channels(), self.config.n_head);
        let h = s.h.input(step, n_embd, &[&self.z, &self.xbc, &self.dt]);
        let (z, rest) = s.y.split_at_mut(n_rows * n_inner);
        let (xbc, rest) = rest.split_at_mut(n_rows * n_channels);
        let dt = &mut rest[..n_rows * n_head];
        let job = |linear, y| Job { linear, y };
        let jobs = [
            job(&self.z, &mut *z),
            job(&self.xbc, &mut *xbc),
            job(&self.dt, &mut *dt),
        ];
        matmul_many(step, h, jobs, &mut s.ranks);

        let y = &mut s.inner.f32[..n_rows * n_inner];
        for span in spans.iter_mut() {
            let state = &mut span.states[i];
            let rows = span.rows.clone();
            let xbc = &mut xbc[rows.start * n_channels..rows.end * n_channels];
            let columns = columns_of(state);
            self.taps.sum_rows(step, columns, span.first, xbc);
            let rows_in = Rows {
                z: &mut z[rows.start * n_inner..rows.end * n_inner],
                xbc,
                dt: &dt[rows.start * n_head..rows.end * n_head],
            };
            let matrices = matrices_of(state);
            let y = &mut y[rows.start * n_inner..rows.end * n_inner];
            self.scan(step, &mut matrices.now, rows_in, y);
            matrices.advance(rows.len());
        }
        self.normalize(step, config.norm_eps, y);
        let y = s.inner.input(step, n_inner, &[&self.out]);
        let out = Job {
            linear: &self.out,
            y: &mut s.y[..n_rows * n_embd],
        };
        matmul_many(step, y, [out], &mut s.ranks);
    }

    /// Takes the rows of one sequence up into its states, and gates what is found there: `y` `[n_rows, n_inner]`.
    fn scan(&self, step: &Step<'_>, states: &mut [f32], rows: Rows<'_>, y: &mut [f32]) {
        let c = &self.config;
        let (d, n_inner, n_channels) = (c.head_dim, c.n_inner(), c.n_channels());
        let n_rows = y.len() / n_inner;
        let y = SharedMatrix::new(y, n_inner, n_rows, d);
        let z = SharedMatrix::new(rows.z, n_inner, n_rows, d);
        let states = SharedMatrix::new(states, d, c.n_state, d);
        step.pool.run(c.n_head, &|head| {
            let (mut y, mut z) = (y.tile(0, head), z.tile(0, head));
            let mut state = states.tile(head, 0);
            let b = n_inner + head / (c.n_head / c.n_group) * c.n_state;
            for t in 0..n_rows {
                let row = &rows.xbc[t * n_channels..][..n_channels];
                let dt = softplus(rows.dt[t * c.n_head + head] + self.dt_bias[head]);
                let token = ScanStep {
                    x: &row[head * d..][..d],
                    b: &row[b..][..c.n_state],
                    c: &row[b + c.n_group * c.n_state..][..c.n_state],
                    decay: libm::expf(dt * self.a[head]),
                    dt,
                    skip: self.skip[head],
                };
                let (y, z) = (y.row(t), z.row(t));
                scan_step(step.level, &mut state, &token, y);
                // silu(z) y, which is as good as y silu(z).
                gate(step.level, Activation::Silu, z, y);
                y.copy_from_slice(z);
            }
        });
    }

    /// Normalizes each group's part of the rows of `y` `[n_rows, n_inner]`.
    fn normalize(&self, step: &Step<'_>, eps: f32, y: &mut [f32]) {
        if self.norm.is_empty() {
            return;
        }
        let n = self.config.n_inner();
        let (n_rows, n_part) = (y.len() / n, n / self.config.n_group);
        let y = SharedMatrix::new(y, n, TOKENS_PER_TASK, n);
        step.light_pool()
            .run(n_rows.div_ceil(TOKENS_PER_TASK), &|i| {
                let mut y = y.tile(i, 0);
                for t in 0..y.n_rows() {
                    let parts = y.row(t).chunks_exact_mut(n_part);
                    for (part, weight) in parts.zip(self.norm.chunks_exact(n_part)) {
                        rms_norm_in_place(step.level, part, weight, eps);
                    }
                }
            });
    }
}

/// What the linears, and of `xbc` the convolution, gave of one sequence's rows.
struct Rows<'a> {
    /// `[n_rows, n_inner]`.
    z: &'a mut [f32],
    /// `[n_rows, n_channels]`.
    xbc: &'a [f32],
    /// `[n_rows, n_head]`.
    dt: &'a [f32],
}

/// Hyperparameters of attention and Mamba-2 beside each other.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct AttentionAndMambaConfig {
    /// Of attention.
    pub attention: AttentionConfig,
    /// Of Mamba-2.
    pub mamba: MambaConfig,
}

/// Attention and Mamba-2 beside each other (Falcon-H1): they see the same, and their outputs are added.
#[derive(Debug)]
#[non_exhaustive]
pub struct AttentionAndMamba {
    /// The attention.
    pub attention: Attention,
    /// The Mamba-2 mixer.
    pub mamba: Mamba,
}

impl AttentionAndMamba {
    /// Those of layer `i`.
    pub(crate) fn load(
        config: &AttentionAndMambaConfig,
        tensors: &mut Tensors<'_, '_>,
        i: usize,
    ) -> Result<AttentionAndMamba, ModelError> {
        Ok(AttentionAndMamba {
            attention: Attention::load(&config.attention, tensors, i)?,
            mamba: Mamba::load(&config.mamba, tensors, i)?,
        })
    }

    /// The rows in `scratch.h` to `scratch.y`, both `[n_rows, n_embd]`, with the states of layer `i`.
    pub(super) fn forward(&self, pass: &mut Pass<'_, '_>, i: usize) {
        self.forward_mamba(pass, i);
        self.attention.forward(pass, i);
        add_mixed(pass);
    }

    /// Takes the rows in `scratch.h` up into the states of layer `i`.
    pub(super) fn forward_state(&self, pass: &mut Pass<'_, '_>, i: usize) {
        self.forward_mamba(pass, i);
        self.attention.forward_state(pass, i);
    }

    /// What Mamba-2 gives of the rows in `scratch.h`, to `scratch.mixed`.
    fn forward_mamba(&self, pass: &mut Pass<'_, '_>, i: usize) {
        self.mamba.forward(pass, i);
        let n = pass.n_rows() * pass.config.n_embd;
        let s = &mut *pass.scratch;
        s.mixed[..n].copy_from_slice(&s.y[..n]);
    }

    /// As [`AttentionAndMamba::forward`] of the rows that `narrow` keeps of those that the states have already.
    pub(super) fn forward_rows(&self, pass: &mut Pass<'_, '_>, i: usize, narrow: &Narrow<'_>) {
        narrow.keep(&mut pass.scratch.mixed, pass.config.n_embd);
        self.attention.forward_rows(pass, i);
        add_mixed(pass);
    }
}

/// Adds what Mamba-2 gave to what attention did.
fn add_mixed(pass: &mut Pass<'_, '_>) {
    let n = pass.n_rows() * pass.config.n_embd;
    let s = &mut *pass.scratch;
    let rows = s.y[..n].iter_mut().zip(&s.mixed[..n]);
    rows.for_each(|(y, x)| *y += x);
}

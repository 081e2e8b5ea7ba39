//! Attention with grouped queries and, as a rule, rotary positions:
//! `y = o attention(rope(q x), rope(k x), v x)`.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use arrayvec::ArrayVec;
use tandem_kernels::{
    Activation, Pool, RopeStyle, SharedMatrix, attention, gate, rms_norm_in_place, rope,
};

use super::layer::{Pass, SpanRows};
use crate::ModelError;
use crate::exec::{Job, MAX_SPANS, RopeAngles, Step, TOKENS_PER_TASK, matmul_many};
use crate::model::{Config, FusedSpec, Linear, LinearSpec, Tensors};
use crate::sequence::{Kv, LayerState};

/// Hyperparameters of a layer's attention.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct AttentionConfig {
    /// Query heads.
    pub n_head: usize,
    /// Key and value heads; divides `n_head`.
    pub n_head_kv: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Where set, a token sees so many tokens only, itself included.
    pub window: Option<usize>,
    /// Multiplies the scores.
    pub scale: f32,
    /// Where set, scores become `cap tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// Which of the model's ropes turns the heads; none where positions are not told.
    pub rope: Option<usize>,
    /// Whether heads are normalized after they are turned instead of before.
    pub norm_after_rope: bool,
    /// Whether queries and keys are normalized as whole rows instead of head by head.
    pub norms_rows: bool,
    /// Whether values are normalized head by head, without a weight.
    pub norms_values: bool,
    /// Whether the query projection gives a gate behind each head, by whose sigmoid attention's output is
    /// multiplied.
    pub has_gate: bool,
    /// Whether the keys' projection, before it is normalized and turned, gives the values, too.
    pub values_are_keys: bool,
    /// The earlier layer whose keys and values are seen in the place of own ones.
    pub shared_kv: Option<usize>,
    /// What queries far from the start are multiplied with.
    pub temperature: Option<Temperature>,
    /// Whether each query head has a sink: a score of nothing.
    pub has_sinks: bool,
}

/// Queries at position `p` are multiplied with `1 + scale ln(1 + floor(p / interval))`, against attention
/// that thins out over a long context (Ministral 3).
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Temperature {
    /// Multiplies the logarithm.
    pub scale: f32,
    /// Positions, as a rule the context that the model was trained on at first.
    pub interval: usize,
}

impl Temperature {
    /// The factor of queries at a position.
    pub fn factor(&self, position: usize) -> f32 {
        1.0 + self.scale * libm::logf((1 + position / self.interval) as f32)
    }
}

impl AttentionConfig {
    /// Elements of all query heads.
    pub fn n_q(&self) -> usize {
        self.n_head * self.head_dim
    }

    /// Outputs of the query projection: the heads, and their gates where they have such.
    pub fn n_q_proj(&self) -> usize {
        match self.has_gate {
            true => 2 * self.n_q(),
            false => self.n_q(),
        }
    }

    /// Outputs of the key or value projection: all KV heads.
    pub fn n_kv(&self) -> usize {
        self.n_head_kv * self.head_dim
    }

    /// Whether the layer has keys of its own.
    pub(crate) fn has_keys(&self) -> bool {
        self.shared_kv.is_none()
    }

    /// Whether the layer has a projection for values alone.
    pub(crate) fn has_values(&self) -> bool {
        self.has_keys() && !self.values_are_keys
    }

    pub(crate) fn linears(&self, n_embd: usize) -> ArrayVec<LinearSpec, 4> {
        let linear = LinearSpec::new;
        let turned = |part, n_out| LinearSpec {
            turned_head: Some(self.head_dim),
            ..linear(part, n_out, n_embd, 0)
        };
        let mut all = ArrayVec::new();
        all.push(turned("attn_q", self.n_q_proj()));
        if self.has_keys() {
            all.push(turned("attn_k", self.n_kv()));
        }
        if self.has_values() {
            all.push(linear("attn_v", self.n_kv(), n_embd, 0));
        }
        all.push(linear("attn_output", n_embd, self.n_q(), 1));
        all
    }

    pub(crate) fn fused(&self) -> &'static [FusedSpec] {
        &[FusedSpec {
            tensor: "attn_qkv",
            parts: &["attn_q", "attn_k", "attn_v"],
        }]
    }
}

/// The weights of a layer's attention.
#[derive(Debug)]
#[non_exhaustive]
pub struct Attention {
    /// Its hyperparameters.
    pub config: AttentionConfig,
    /// Queries, `[n_q_proj, n_embd]`.
    pub q: Linear,
    /// Keys, `[n_kv, n_embd]`; none where another layer's are seen.
    pub k: Option<Linear>,
    /// Values, `[n_kv, n_embd]`; none where another layer's are seen, or where they are the keys.
    pub v: Option<Linear>,
    /// On each query head, `[head_dim]`, or on all of a row, `[n_q]`; empty where there is none.
    pub q_norm: Vec<f32>,
    /// On each key head, `[head_dim]`, or on all of a row, `[n_kv]`; empty where there is none.
    pub k_norm: Vec<f32>,
    /// On each value head, `[head_dim]`, all 1; empty where there is none.
    v_norm: Vec<f32>,
    /// A score of each query head whose value is nothing, `[n_head]`; empty where there is none.
    pub sinks: Vec<f32>,
    /// Back to the residual stream, `[n_embd, n_q]`.
    pub o: Linear,
}

impl Attention {
    /// Those of layer `i`.
    pub(crate) fn load(
        config: &AttentionConfig,
        tensors: &mut Tensors<'_, '_>,
        i: usize,
    ) -> Result<Attention, ModelError> {
        let (n_q, n_k) = match config.norms_rows {
            true => (config.n_q(), config.n_kv()),
            false => (config.head_dim, config.head_dim),
        };
        let q = tensors.linear_of_layer(i, "attn_q", "attn_qkv")?;
        let (mut k, mut v, mut k_norm) = (None, None, Vec::new());
        let k_norm_name = format!("blk.{i}.attn_k_norm.weight");
        if config.has_keys() {
            k = Some(tensors.linear_of_layer(i, "attn_k", "attn_qkv")?);
            k_norm = tensors.vector(&k_norm_name, n_k)?;
        } else {
            // Some files carry these, and nobody reads them.
            for part in ["attn_k.weight", "attn_v.weight", "attn_k_norm.weight"] {
                tensors.ignore(&format!("blk.{i}.{part}"));
            }
        }
        if config.has_values() {
            v = Some(tensors.linear_of_layer(i, "attn_v", "attn_qkv")?);
        }
        let this = Attention {
            q,
            k,
            v,
            q_norm: tensors.vector(&format!("blk.{i}.attn_q_norm.weight"), n_q)?,
            k_norm,
            v_norm: match config.norms_values {
                true => vec![1.0; config.head_dim],
                false => Vec::new(),
            },
            sinks: match config.has_sinks {
                true => {
                    tensors.needed_vector(&format!("blk.{i}.attn_sinks.weight"), config.n_head)?
                }
                false => Vec::new(),
            },
            o: tensors.linear_of_layer(i, "attn_output", "")?,
            config: config.clone(),
        };
        let has_bias = |linear: &Linear| !linear.bias.is_empty();
        let (q_norm, k_norm) = (&this.q_norm, &this.k_norm);
        for (is_there, tensor) in [
            (has_bias(&this.q), "attn_q.bias"),
            (this.k.as_ref().is_none_or(has_bias), "attn_k.bias"),
            (this.v.as_ref().is_none_or(has_bias), "attn_v.bias"),
            (has_bias(&this.o), "attn_output.bias"),
            (!q_norm.is_empty(), "attn_q_norm.weight"),
            (this.k.is_none() || !k_norm.is_empty(), "attn_k_norm.weight"),
        ] {
            tensors.check_needed(i, tensor, is_there)?;
        }
        Ok(this)
    }

    /// The linears, in the order of their ids.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        let (k, v) = (self.k.iter(), self.v.iter());
        core::iter::once(&self.q).chain(k).chain(v).chain([&self.o])
    }

    /// The rows in `scratch.h` to `scratch.y`, both `[n_rows, n_embd]`, with the states of layer `i`.
    pub(super) fn forward(&self, pass: &mut Pass<'_, '_>, i: usize) {
        let Some(k) = &self.k else {
            return self.forward_rows(pass, i);
        };
        let (n_rows, n_kv) = (pass.n_rows(), self.config.n_kv());
        let Pass {
            step,
            config,
            scratch: s,
            ..
        } = &mut *pass;
        let (q_y, k_v) = s.y.split_at_mut(n_rows * self.config.n_q_proj());
        let (k_y, v_y) = k_v[..2 * n_rows * n_kv].split_at_mut(n_rows * n_kv);
        let job = |linear, y| Job { linear, y };
        let (q_job, k_job) = (job(&self.q, q_y), job(k, k_y));
        match &self.v {
            Some(v) => {
                let h = s.h.input(step, config.n_embd, &[&self.q, k, v]);
                matmul_many(step, h, [q_job, k_job, job(v, v_y)], &mut s.ranks);
            }
            None => {
                let h = s.h.input(step, config.n_embd, &[&self.q, k]);
                matmul_many(step, h, [q_job, k_job], &mut s.ranks);
            }
        }
        self.store(pass, i, n_rows * self.config.n_q_proj());
        self.attend(pass, i);
    }

    /// Takes the rows in `scratch.h` up into the states of layer `i`, and no more.
    pub(super) fn forward_state(&self, pass: &mut Pass<'_, '_>, i: usize) {
        let Some(k) = &self.k else {
            return;
        };
        let (n_rows, n_kv) = (pass.n_rows(), self.config.n_kv());
        let Pass {
            step,
            config,
            scratch: s,
            ..
        } = &mut *pass;
        let (k_y, v_y) = s.y[..2 * n_rows * n_kv].split_at_mut(n_rows * n_kv);
        let job = |linear, y| Job { linear, y };
        match &self.v {
            Some(v) => {
                let h = s.h.input(step, config.n_embd, &[k, v]);
                matmul_many(step, h, [job(k, k_y), job(v, v_y)], &mut s.ranks);
            }
            None => {
                let h = s.h.input(step, config.n_embd, &[k]);
                matmul_many(step, h, [job(k, k_y)], &mut s.ranks);
            }
        }
        self.store(pass, i, 0);
    }

    /// As [`Attention::forward`] of rows that the states have already.
    pub(super) fn forward_rows(&self, pass: &mut Pass<'_, '_>, i: usize) {
        let n_rows = pass.n_rows();
        let Pass {
            step,
            config,
            scratch: s,
            ..
        } = &mut *pass;
        let h = s.h.input(step, config.n_embd, &[&self.q]);
        let q = Job {
            linear: &self.q,
            y: &mut s.y[..n_rows * self.config.n_q_proj()],
        };
        matmul_many(step, h, [q], &mut s.ranks);
        self.attend(pass, i);
    }

    /// Puts the keys, which are in `scratch.y` from `at` on, and the values behind them into the states.
    fn store(&self, pass: &mut Pass<'_, '_>, i: usize, at: usize) {
        let (n_rows, n_kv) = (pass.n_rows(), self.config.n_kv());
        let Pass {
            step,
            config,
            scratch: s,
            spans,
        } = pass;
        let (k, v) = s.y[at..][..2 * n_rows * n_kv].split_at_mut(n_rows * n_kv);
        if self.v.is_none() {
            v.copy_from_slice(k);
        }
        Heads::new(self, config, &self.k_norm, &s.angles).turn(step, k, n_kv);
        if !self.v_norm.is_empty() {
            let heads = Heads {
                rope: None,
                ..Heads::new(self, config, &self.v_norm, &s.angles)
            };
            heads.turn(step, v, n_kv);
        }
        for span in spans.iter_mut() {
            let kv = kv_of(&mut span.states[i]);
            let row = span.rows.start * n_kv..span.rows.end * n_kv;
            kv.store(step.light_pool(), span.first, &k[row.clone()], &v[row]);
        }
    }

    /// What the queries at the start of `scratch.y` see, back to the residual stream's width.
    fn attend(&self, pass: &mut Pass<'_, '_>, i: usize) {
        let Pass {
            step,
            config,
            scratch: s,
            spans,
        } = pass;
        let (n_rows, n_embd) = (step.batch.n_rows(), config.n_embd);
        let n_q = self.config.n_q();
        if self.config.has_gate {
            part_gates(&self.config, &mut s.y[..n_rows * 2 * n_q], &mut s.gates);
        }
        let q = &mut s.y[..n_rows * n_q];
        Heads::new(self, config, &self.q_norm, &s.angles).turn(step, q, n_q);
        if let Some(temperature) = &self.config.temperature {
            for span in spans.iter() {
                let rows = q[span.rows.start * n_q..span.rows.end * n_q].chunks_exact_mut(n_q);
                for (i, row) in rows.enumerate() {
                    let factor = temperature.factor(span.first + i);
                    row.iter_mut().for_each(|q| *q *= factor);
                }
            }
        }
        self.attend_spans(step, spans, i, q, &mut s.inner.f32);
        if self.config.has_gate {
            let (attended, gates) = (
                &mut s.inner.f32[..n_rows * n_q],
                &mut s.gates[..n_rows * n_q],
            );
            gate(step.level, Activation::Sigmoid, gates, attended);
            attended.copy_from_slice(gates);
        }

        let attended = s.inner.input(step, n_q, &[&self.o]);
        let o = Job {
            linear: &self.o,
            y: &mut s.y[..n_rows * n_embd],
        };
        matmul_many(step, attended, [o], &mut s.ranks);
    }

    /// Attention of `q` `[n_rows, n_q]` over the caches of layer `i`, each row over its own sequence's,
    /// into `y` `[n_rows, n_q]` (which may be longer).
    ///
    /// Never inlined: what it holds of each span would lie on the stack below the layer's linears.
    #[inline(never)]
    fn attend_spans(
        &self,
        step: &Step<'_>,
        spans: &mut [SpanRows<'_>],
        i: usize,
        q: &[f32],
        y: &mut [f32],
    ) {
        let mut rest = &mut y[..q.len()];
        let mut n_tasks = 0;
        let mut attending: ArrayVec<SpanAttention<'_>, MAX_SPANS> = ArrayVec::new();
        for span in spans.iter_mut().filter(|span| !span.rows.is_empty()) {
            let (own, others) = rest.split_at_mut(span.rows.len() * self.config.n_q());
            rest = others;
            let kv = kv_of(&mut span.states[self.config.shared_kv.unwrap_or(i)]);
            let span = SpanAttention::new(self, span.rows.start, kv, span.first, own);
            n_tasks += span.n_tasks();
            attending.push(span);
        }
        step.pool.run(n_tasks, &|mut task| {
            for span in &attending {
                if task < span.n_tasks() {
                    return span.run(step, q, task);
                }
                task -= span.n_tasks();
            }
        });
    }
}

/// Parts the rows of `q` `[n_rows, n_head, 2, head_dim]` into the queries, which move to its beginning, `[n_rows,
/// n_q]`, and their gates, `[n_rows, n_q]` of `gates` (which may be longer).
fn part_gates(config: &AttentionConfig, q: &mut [f32], gates: &mut [f32]) {
    let d = config.head_dim;
    for i in 0..q.len() / (2 * d) {
        gates[i * d..(i + 1) * d].copy_from_slice(&q[(2 * i + 1) * d..][..d]);
        q.copy_within(2 * i * d..(2 * i + 1) * d, i * d);
    }
}

/// The cache of a layer of this kind.
fn kv_of(state: &mut LayerState) -> &mut Kv {
    let Some(kv) = &mut state.kv else {
        unreachable!("a layer without keys is not asked for them");
    };
    kv
}

/// How heads are normalized and turned.
struct Heads<'a> {
    head_dim: usize,
    /// Empty where they are not normalized; longer than a head where rows are.
    norm: &'a [f32],
    norm_last: bool,
    eps: f32,
    /// None where they are not turned.
    rope: Option<Turn<'a>>,
}

/// By which angles heads are turned.
struct Turn<'a> {
    style: RopeStyle,
    angles: &'a RopeAngles,
}

impl<'a> Heads<'a> {
    fn new(
        attention: &Attention,
        config: &Config,
        norm: &'a [f32],
        angles: &'a [RopeAngles],
    ) -> Heads<'a> {
        let rope = attention.config.rope.map(|i| Turn {
            style: config.ropes[i].style,
            angles: &angles[i],
        });
        Heads {
            head_dim: attention.config.head_dim,
            norm,
            norm_last: attention.config.norm_after_rope,
            eps: config.norm_eps,
            rope,
        }
    }

    /// Normalizes every head of `x` `[n_rows, n_cols]`, and turns it by its row's position.
    fn turn(&self, step: &Step<'_>, x: &mut [f32], n_cols: usize) {
        let n_rows = x.len() / n_cols;
        let x = SharedMatrix::new(x, n_cols, TOKENS_PER_TASK, n_cols);
        step.light_pool()
            .run(n_rows.div_ceil(TOKENS_PER_TASK), &|i| {
                let mut x = x.tile(i, 0);
                for t in 0..x.n_rows() {
                    if self.norm.len() > self.head_dim {
                        rms_norm_in_place(step.level, x.row(t), self.norm, self.eps);
                    }
                    for head in x.row(t).chunks_exact_mut(self.head_dim) {
                        self.turn_head(step, i * TOKENS_PER_TASK + t, head);
                    }
                }
            });
    }

    /// One head of a row.
    #[inline(always)]
    fn turn_head(&self, step: &Step<'_>, row: usize, head: &mut [f32]) {
        let has_norm = self.norm.len() == self.head_dim;
        if has_norm && !self.norm_last {
            rms_norm_in_place(step.level, head, self.norm, self.eps);
        }
        if let Some(Turn { style, angles }) = &self.rope {
            let n_pairs = angles.n_pairs;
            let cos = &angles.cos[row * n_pairs..][..n_pairs];
            let sin = &angles.sin[row * n_pairs..][..n_pairs];
            rope(step.level, *style, head, cos, sin);
        }
        if has_norm && self.norm_last {
            rms_norm_in_place(step.level, head, self.norm, self.eps);
        }
    }
}

/// The attention of one sequence's rows.
struct SpanAttention<'a> {
    attention: &'a Attention,
    kv: &'a Kv,
    /// The sequence's first row in the batch, and that row's position.
    first_row: usize,
    first: usize,
    n_rows: usize,
    task_rows: usize,
    y: SharedMatrix<'a>,
}

impl<'a> SpanAttention<'a> {
    fn new(
        attention: &'a Attention,
        first_row: usize,
        kv: &'a Kv,
        first: usize,
        y: &'a mut [f32],
    ) -> SpanAttention<'a> {
        let config = &attention.config;
        let n_q = config.n_q();
        let n_rows = y.len() / n_q;
        let task_rows = n_rows
            .div_ceil(SharedMatrix::<f32>::MAX_TILES / config.n_head_kv.max(1))
            .max(16);
        // The query heads that share a KV head.
        let group = config.n_head / config.n_head_kv * config.head_dim;
        SpanAttention {
            attention,
            kv,
            first_row,
            first,
            n_rows,
            task_rows,
            y: SharedMatrix::new(y, n_q, task_rows, group),
        }
    }

    fn n_tasks(&self) -> usize {
        self.attention.config.n_head_kv * self.n_rows.div_ceil(self.task_rows)
    }

    fn run(&self, step: &Step<'_>, q: &[f32], task: usize) {
        let config = &self.attention.config;
        let (n_q, n_head_kv) = (config.n_q(), config.n_head_kv);
        // The last tokens see the most: they go first.
        let chunk = self.n_rows.div_ceil(self.task_rows) - 1 - task / n_head_kv;
        let (head, t) = (task % n_head_kv, chunk * self.task_rows);
        let kv = self.kv.head(head, self.first + t, self.attention);
        let mut y = self.y.tile(chunk, head);
        let q = &q[(self.first_row + t) * n_q + head * y.n_cols()..];
        attention(step.level, &kv, q, n_q, &mut y);
    }
}

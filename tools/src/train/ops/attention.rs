//! Causal attention within each sequence of a batch.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use pulp::Arch;
use tandem_engine::Level;
use tandem_kernels::lanes::dot;
use tandem_kernels::softmax;

use super::super::gemm::{Target, View, matmul};
use super::{like, read, values};

/// A sequence: the rows of its keys and values, and those of its queries, which belong to the last
/// of its tokens.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Span {
    pub first_key: usize,
    pub n_keys: usize,
    pub first_query: usize,
    pub n_queries: usize,
}

/// `softmax(scale q k^T) v` for each head: `q` `[n_queries, n_head * head_dim]`, `k` and `v`
/// `[n_tokens, n_head_kv * head_dim]`.
pub(in super::super) struct Attention {
    pub spans: Arc<Vec<Span>>,
    pub n_head: usize,
    pub n_head_kv: usize,
    pub head_dim: usize,
    pub scale: f32,
    /// Tokens seen, the current one included.
    pub window: Option<usize>,
    /// Where set, scores become `cap tanh(score / cap)`.
    pub softcap: Option<f32>,
}

/// One head of one sequence: where its elements begin, and shapes.
struct Head {
    span: Span,
    /// Of the queries, and of keys and values.
    start: (usize, usize),
    /// The rows' distances there.
    stride: (usize, usize),
    dim: usize,
}

impl Head {
    fn queries<'x>(&self, x: &'x [f32]) -> View<'x> {
        let Span { n_queries, .. } = self.span;
        View::strided(&x[self.start.0..], n_queries, self.dim, self.stride.0)
    }

    fn keys<'x>(&self, x: &'x [f32]) -> View<'x> {
        let Span { n_keys, .. } = self.span;
        View::strided(&x[self.start.1..], n_keys, self.dim, self.stride.1)
    }
}

impl Attention {
    fn heads(&self) -> impl Iterator<Item = Head> + '_ {
        let stride = (self.n_head * self.head_dim, self.n_head_kv * self.head_dim);
        let group = self.n_head / self.n_head_kv;
        self.spans.iter().flat_map(move |span| {
            (0..self.n_head).map(move |h| Head {
                span: *span,
                start: (
                    span.first_query * stride.0 + h * self.head_dim,
                    span.first_key * stride.1 + h / group * self.head_dim,
                ),
                stride,
                dim: self.head_dim,
            })
        })
    }

    /// The keys that query `i` of a sequence sees.
    fn visible(&self, span: &Span, i: usize) -> core::ops::Range<usize> {
        let end = span.n_keys - span.n_queries + i + 1;
        end.saturating_sub(self.window.unwrap_or(end))..end
    }

    /// The scores `[n_queries, n_keys]`, capped where they are.
    fn scores(&self, head: &Head, q: &[f32], k: &[f32], scores: &mut Vec<f32>) {
        let Span {
            n_keys, n_queries, ..
        } = head.span;
        scores.resize(n_queries * n_keys, 0.0);
        let (q, k) = (head.queries(q), head.keys(k));
        matmul(Target::new(scores, n_keys), false, self.scale, q, k.t());
        if let Some(cap) = self.softcap {
            scores.iter_mut().for_each(|s| *s = cap * (*s / cap).tanh());
        }
    }

    /// The shares of attention `[n_queries, n_keys]`.
    fn shares(&self, head: &Head, q: &[f32], k: &[f32], p: &mut Vec<f32>) {
        let level = Level::detect();
        let n_keys = head.span.n_keys;
        self.scores(head, q, k, p);
        for (i, row) in p.chunks_exact_mut(n_keys).enumerate() {
            let seen = self.visible(&head.span, i);
            row[..seen.start].fill(0.0);
            row[seen.end..].fill(0.0);
            softmax(level, &mut row[seen]);
        }
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (
            values(q, q_layout)?,
            values(k, k_layout)?,
            values(v, v_layout)?,
        );
        let mut y = vec![0.0; q.len()];
        let mut p = Vec::new();
        for head in self.heads() {
            let Span {
                n_keys, n_queries, ..
            } = head.span;
            self.shares(&head, q, k, &mut p);
            let p = View::new(&p, n_queries, n_keys);
            let y = &mut y[head.start.0..];
            matmul(Target::new(y, head.stride.0), false, 1.0, p, head.keys(v));
        }
        Ok((CpuStorage::F32(y), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q_tensor: &Tensor,
        k_tensor: &Tensor,
        v_tensor: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let q = q_tensor.storage_and_layout();
        let k = k_tensor.storage_and_layout();
        let v = v_tensor.storage_and_layout();
        let grad = grad.storage_and_layout();
        let (q, k) = (read(&q.0, q.1)?, read(&k.0, k.1)?);
        let (v, grad) = (read(&v.0, v.1)?, read(&grad.0, grad.1)?);
        let mut grad_q = vec![0.0; q.len()];
        let mut grad_k = vec![0.0; k.len()];
        let mut grad_v = vec![0.0; v.len()];
        let (mut p, mut d, mut capped) = (Vec::new(), Vec::new(), Vec::new());
        let arch = Arch::new();
        for head in self.heads() {
            let Span {
                n_keys, n_queries, ..
            } = head.span;
            let (first_query, first_key) = head.start;
            let (q_stride, k_stride) = head.stride;
            self.shares(&head, q, k, &mut p);
            // v gets p^T grad; the query heads of a group add up.
            let shares = View::new(&p, n_queries, n_keys);
            let out = Target::new(&mut grad_v[first_key..], k_stride);
            matmul(out, true, 1.0, shares.t(), head.queries(grad));
            // p gets grad v^T; the scores p (that - its mean under p)
            d.resize(n_queries * n_keys, 0.0);
            let v = head.keys(v);
            matmul(
                Target::new(&mut d, n_keys),
                false,
                1.0,
                head.queries(grad),
                v.t(),
            );
            arch.dispatch(|| {
                for (p, d) in p.chunks_exact(n_keys).zip(d.chunks_exact_mut(n_keys)) {
                    let mean = dot(p, d);
                    d.iter_mut().zip(p).for_each(|(d, p)| *d = p * (*d - mean));
                }
            });
            if let Some(cap) = self.softcap {
                self.scores(&head, q, k, &mut capped);
                let slope = |s: &f32| 1.0 - (s / cap) * (s / cap);
                d.iter_mut().zip(&capped).for_each(|(d, s)| *d *= slope(s));
            }
            let scores = View::new(&d, n_queries, n_keys);
            let out = Target::new(&mut grad_q[first_query..], q_stride);
            matmul(out, false, self.scale, scores, head.keys(k));
            let out = Target::new(&mut grad_k[first_key..], k_stride);
            matmul(out, true, self.scale, scores.t(), head.queries(q));
        }
        Ok((
            Some(like(q_tensor, grad_q)?),
            Some(like(k_tensor, grad_k)?),
            Some(like(v_tensor, grad_v)?),
        ))
    }
}

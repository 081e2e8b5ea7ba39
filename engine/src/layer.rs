//! One transformer layer.

use tandem_kernels::{
    Pool, SharedMatrix, attention, layer_norm, rms_norm, rms_norm_in_place, rope,
};

use crate::adapters::LinearId;
use crate::linear::Exec;
use crate::scratch::{RopeTable, Scratch, TOKENS_PER_TASK};
use crate::weights::{LayerWeights, Norm};
use crate::{Config, KvCache, NormKind};

/// Runs layer `i` on the tokens in `s.x`, `[n_tokens, n_embd]`, at positions `first` and up.
pub(crate) fn layer(
    exec: &Exec<'_>,
    config: &Config,
    (i, w): (usize, &LayerWeights<'_>),
    s: &mut Scratch,
    kv: &mut KvCache,
    (first, n_tokens): (usize, usize),
) {
    let n = n_tokens;
    let x = &mut s.x[..n * config.n_embd];
    let window = config.local_attention(i).map(|local| local.window);
    let angles = if window.is_some() {
        &s.rope_local
    } else {
        &s.rope
    };

    let [w_q, w_k, w_v, w_o, w_gate, w_up, w_down] = w
        .linears()
        .map(|(module, linear)| exec.adapted(LinearId::Layer(i, module), linear));
    let ranks = &mut s.ranks;

    // x += o attention(rope(q h), rope(k h), v h) with h = norm(x)
    normalize(exec, config, &w.attn_norm, x, &mut s.h.f32);
    let h = s.h.input(exec, n, &[&w.q, &w.k, &w.v]);
    let (q, k_v) = s.y.split_at_mut(n * config.n_q());
    let (k, v) = k_v[..2 * n * config.n_kv()].split_at_mut(n * config.n_kv());
    exec.linears(h, [(w_q, &mut *q), (w_k, &mut *k), (w_v, &mut *v)], ranks);
    rotate(exec, config, &w.q_norm, angles, q, config.n_q());
    rotate(exec, config, &w.k_norm, angles, k, config.n_kv());
    kv.store(exec.light_pool(n), i, first, k, v);
    attend(exec, config, kv, (i, first, window), q, &mut s.attn.f32);
    let h = s.attn.input(exec, n, &[&w.o]);
    let delta = &mut s.y[..n * config.n_embd];
    exec.linears(h, [(w_o, &mut *delta)], ranks);
    add(exec, config, w.post_attn_norm.as_ref(), x, delta);

    // x += down (activation(gate h) * (up h)) with h = norm(x)
    normalize(exec, config, &w.ffn_norm, x, &mut s.h.f32);
    let h = s.h.input(exec, n, &[&w.gate, &w.up]);
    let gated = (&mut s.gated, n);
    let h = exec.gated(h, config.activation, [w_gate, w_up], gated, &w_down, ranks);
    let delta = &mut s.y[..n * config.n_embd];
    exec.linears(h, [(w_down, &mut *delta)], ranks);
    add(exec, config, w.post_ffn_norm.as_ref(), x, delta);
}

/// `y = norm(x)`, token by token; `x` and `y` `[n_tokens, n_embd]` (`y` may be longer).
pub(crate) fn normalize(exec: &Exec<'_>, config: &Config, norm: &Norm, x: &[f32], y: &mut [f32]) {
    let n_embd = config.n_embd;
    let n_tokens = x.len() / n_embd;
    let y = SharedMatrix::new(&mut y[..x.len()], n_embd, TOKENS_PER_TASK, n_embd);
    exec.light_pool(n_tokens)
        .run(n_tokens.div_ceil(TOKENS_PER_TASK), &|i| {
            let mut y = y.tile(i, 0);
            let x = &x[i * TOKENS_PER_TASK * n_embd..];
            for (t, x) in x.chunks_exact(n_embd).take(y.n_rows()).enumerate() {
                match config.norm {
                    NormKind::Rms => {
                        rms_norm(exec.level, x, &norm.weight, config.norm_eps, y.row(t))
                    }
                    NormKind::Layer => layer_norm(
                        exec.level,
                        x,
                        &norm.weight,
                        &norm.bias,
                        config.norm_eps,
                        y.row(t),
                    ),
                }
            }
        });
}

/// Normalizes every head, where the model does, and turns it by its token's position; `x`
/// `[n_tokens, n_cols]`, heads one after the other.
fn rotate(
    exec: &Exec<'_>,
    config: &Config,
    norm: &[f32],
    angles: &RopeTable,
    x: &mut [f32],
    n_cols: usize,
) {
    let n_tokens = x.len() / n_cols;
    let n_pairs = config.n_rot / 2;
    let x = SharedMatrix::new(x, n_cols, TOKENS_PER_TASK, n_cols);
    exec.light_pool(n_tokens)
        .run(n_tokens.div_ceil(TOKENS_PER_TASK), &|i| {
            let mut x = x.tile(i, 0);
            for t in 0..x.n_rows() {
                let token = (i * TOKENS_PER_TASK + t) * n_pairs;
                let (cos, sin) = (
                    &angles.cos[token..][..n_pairs],
                    &angles.sin[token..][..n_pairs],
                );
                for head in x.row(t).chunks_exact_mut(config.head_dim) {
                    if !norm.is_empty() {
                        rms_norm_in_place(exec.level, head, norm, config.norm_eps);
                    }
                    rope(exec.level, config.rope_style, head, cos, sin);
                }
            }
        });
}

/// Attention of `q` `[n_tokens, n_q]` at positions `first` and up over the cache of layer `i`,
/// into `y` `[n_tokens, n_q]` (which may be longer).
fn attend(
    exec: &Exec<'_>,
    config: &Config,
    kv: &KvCache,
    (i, first, window): (usize, usize, Option<usize>),
    q: &[f32],
    y: &mut [f32],
) {
    let n_q = config.n_q();
    let n_tokens = q.len() / n_q;
    // The query heads that share a KV head.
    let group = config.n_head / config.n_head_kv * config.head_dim;
    let task_tokens = n_tokens
        .div_ceil(SharedMatrix::<f32>::MAX_TILES / config.n_head_kv.max(1))
        .max(16);
    let y = SharedMatrix::new(&mut y[..q.len()], n_q, task_tokens, group);
    exec.pool
        .run(config.n_head_kv * n_tokens.div_ceil(task_tokens), &|task| {
            // The last tokens see the most: they go first.
            let chunk = n_tokens.div_ceil(task_tokens) - 1 - task / config.n_head_kv;
            let (head, t) = (task % config.n_head_kv, chunk * task_tokens);
            let kv = kv.head(i, head, first + t, window, config.attention_scale);
            let q = &q[t * n_q + head * group..];
            attention(exec.level, &kv, q, n_q, &mut y.tile(chunk, head));
        });
}

/// `x += norm(delta)`, or `x += delta` without one; both `[n_tokens, n_embd]`.
fn add(exec: &Exec<'_>, config: &Config, norm: Option<&Norm>, x: &mut [f32], delta: &mut [f32]) {
    let n_embd = config.n_embd;
    let n_tokens = x.len() / n_embd;
    let x = SharedMatrix::new(x, n_embd, TOKENS_PER_TASK, n_embd);
    let delta = SharedMatrix::new(delta, n_embd, TOKENS_PER_TASK, n_embd);
    exec.light_pool(n_tokens)
        .run(n_tokens.div_ceil(TOKENS_PER_TASK), &|i| {
            let (mut x, mut delta) = (x.tile(i, 0), delta.tile(i, 0));
            for t in 0..x.n_rows() {
                if let Some(norm) = norm {
                    rms_norm_in_place(exec.level, delta.row(t), &norm.weight, config.norm_eps);
                }
                x.row(t)
                    .iter_mut()
                    .zip(&*delta.row(t))
                    .for_each(|(x, d)| *x += d);
            }
        });
}

//! The forward pass: token ids in, the last hidden state and logits out.

use tandem_kernels::{RopeScaling, quant, rope_angles, rope_frequencies};

use crate::adapters::LinearId;
use crate::layer::{layer, normalize};
use crate::linear::Exec;
use crate::scratch::{RopeTable, Scratch};
use crate::weights::Model;
use crate::{Config, KvCache};

/// Runs all layers on some tokens at positions `first` and up, leaving the residual stream in
/// `s.x`, `[n_tokens, n_embd]`, and keys and values in the cache.
pub(crate) fn forward(
    exec: &Exec<'_>,
    model: &Model<'_>,
    s: &mut Scratch,
    kv: &mut KvCache,
    tokens: &[u32],
    first: usize,
) {
    let config = &model.config;
    embed(model, tokens, &mut s.x);
    s.rope.turn_to(first, tokens.len());
    s.rope_local.turn_to(first, tokens.len());
    for layer_weights in model.layers.iter().enumerate() {
        layer(exec, config, layer_weights, s, kv, (first, tokens.len()));
    }
}

/// Logits of the tokens `tokens` of the last batch into `logits`, `[tokens.len(), n_vocab]`.
pub(crate) fn logits(
    exec: &Exec<'_>,
    model: &Model<'_>,
    s: &mut Scratch,
    tokens: core::ops::Range<usize>,
    logits: &mut [f32],
) {
    let config = &model.config;
    let n = tokens.len();
    let x = &s.x[tokens.start * config.n_embd..tokens.end * config.n_embd];
    normalize(exec, config, &model.output_norm, x, &mut s.h.f32);
    let h = s.h.input(exec, n, &[&model.output]);
    let output = exec.adapted(LinearId::Output, &model.output);
    exec.linears(h, [(output, &mut *logits)], &mut s.ranks);
    if let Some(cap) = config.logit_softcap {
        for logit in logits {
            *logit = cap * libm::tanhf(*logit / cap);
        }
    }
}

/// The embeddings of `tokens` into `x`, `[n_tokens, n_embd]`. The ids were checked.
fn embed(model: &Model<'_>, tokens: &[u32], x: &mut [f32]) {
    let table = &model.token_embd;
    for (id, x) in tokens.iter().zip(x.chunks_exact_mut(model.config.n_embd)) {
        quant::dequantize(table.dtype(), table.row(*id as usize), x);
        if model.config.embedding_scale != 1.0 {
            x.iter_mut()
                .for_each(|x| *x *= model.config.embedding_scale);
        }
    }
}

/// Sets the rotary frequencies of global and local layers for a context of `n_ctx`.
pub(crate) fn set_frequencies(model: &Model<'_>, s: &mut Scratch, n_ctx: usize) {
    for (table, is_local) in [(&mut s.rope, false), (&mut s.rope_local, true)] {
        table.magnitude = model.rope_frequencies(n_ctx, is_local, &mut table.inv_freq);
    }
}

impl Model<'_> {
    /// The rotary frequencies of global or local layers for a context of `n_ctx`, in radians a
    /// position, into `inv_freq` `[n_rot / 2]`; returns what turned vectors are multiplied with.
    ///
    /// # Panics
    ///
    /// If `inv_freq` is of another length.
    pub fn rope_frequencies(&self, n_ctx: usize, is_local: bool, inv_freq: &mut [f32]) -> f32 {
        let Config {
            rope_base,
            rope_scaling,
            rope_magnitude,
            n_ctx_orig,
            ref local,
            ..
        } = self.config;
        let factors = &self.rope_factors;
        let factors = match n_ctx > n_ctx_orig && !factors.long.is_empty() {
            true => &factors.long,
            false => &factors.short,
        };
        match local.as_ref().filter(|_| is_local) {
            Some(local) if !local.rope_scaled => {
                rope_frequencies(local.rope_base, RopeScaling::None, &[], inv_freq)
            }
            Some(local) => {
                rope_magnitude * rope_frequencies(local.rope_base, rope_scaling, factors, inv_freq)
            }
            None => rope_magnitude * rope_frequencies(rope_base, rope_scaling, factors, inv_freq),
        }
    }
}

impl RopeTable {
    /// The angles of `n_tokens` positions from `first` up.
    fn turn_to(&mut self, first: usize, n_tokens: usize) {
        let n_pairs = self.inv_freq.len();
        let rows = self
            .cos
            .chunks_exact_mut(n_pairs)
            .zip(self.sin.chunks_exact_mut(n_pairs));
        for (t, (cos, sin)) in rows.take(n_tokens).enumerate() {
            rope_angles(first + t, &self.inv_freq, self.magnitude, cos, sin);
        }
    }
}

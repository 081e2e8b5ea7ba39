//! One layer of any blocks.

use core::ops::Range;

use super::norm::{RowNorm, add, normalize};
use crate::exec::{Scratch, Step};
use crate::model::{Config, Ffn, Layer, Mixer};
use crate::sequence::MixerState;

/// A batch on its way through the layers.
pub(crate) struct Pass<'p, 's> {
    pub step: Step<'p>,
    pub config: &'p Config,
    pub scratch: &'p mut Scratch,
    /// Whose rows they are, in their order.
    pub spans: &'p mut [SpanRows<'s>],
}

/// The rows of one sequence in a batch.
pub(crate) struct SpanRows<'s> {
    pub rows: Range<usize>,
    /// The first row's position.
    pub first: usize,
    /// A state for each layer.
    pub states: &'s mut [MixerState],
}

impl Pass<'_, '_> {
    pub(crate) fn n_rows(&self) -> usize {
        self.step.batch.n_rows()
    }
}

/// Runs layer `i` on the rows in `scratch.x`, `[n_rows, n_embd]`.
pub(crate) fn layer(pass: &mut Pass<'_, '_>, i: usize, w: &Layer) {
    let config = pass.config;
    let (n_rows, n_embd) = (pass.n_rows(), config.n_embd);
    let norm = |norm| RowNorm::new(config, norm);

    // x += mixer(norm(x))
    let s = &mut *pass.scratch;
    normalize(
        &pass.step,
        norm(&w.mixer_norm),
        &s.x[..n_rows * n_embd],
        &mut s.h.f32,
    );
    match &w.mixer {
        Mixer::Attention(attention) => attention.forward(pass, i),
    }
    let s = &mut *pass.scratch;
    let (x, delta) = (&mut s.x[..n_rows * n_embd], &mut s.y[..n_rows * n_embd]);
    let post_norm = w.post_mixer_norm.as_ref().map(norm);
    add(&pass.step, post_norm, n_embd, x, delta);

    // x += ffn(norm(x))
    normalize(
        &pass.step,
        norm(&w.ffn_norm),
        &s.x[..n_rows * n_embd],
        &mut s.h.f32,
    );
    match &w.ffn {
        Ffn::Gated(gated) => gated.forward(pass),
    }
    let s = &mut *pass.scratch;
    let (x, delta) = (&mut s.x[..n_rows * n_embd], &mut s.y[..n_rows * n_embd]);
    let post_norm = w.post_ffn_norm.as_ref().map(norm);
    add(&pass.step, post_norm, n_embd, x, delta);
}

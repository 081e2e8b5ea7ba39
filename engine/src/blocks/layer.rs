//! One layer of any blocks.
//!
//! Behind the last layer that remembers anything only those rows are computed that somebody wants: its mixer
//! takes all rows up, and then those without a reader leave the batch.

use core::ops::Range;

use super::norm::{RowNorm, add, normalize};
use crate::exec::{Batch, Scratch, Step};
use crate::model::{Config, Ffn, Layer, Mixer, Norm};
use crate::sequence::LayerState;

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
    pub states: &'s mut [LayerState],
}

impl Pass<'_, '_> {
    pub(crate) fn n_rows(&self) -> usize {
        self.step.batch.n_rows()
    }
}

/// Runs layer `i` on the rows in `scratch.x`, `[n_rows, n_embd]`.
pub(crate) fn layer(pass: &mut Pass<'_, '_>, i: usize, w: &Layer) {
    if let Some(altup) = &w.altup {
        altup.predict(pass);
    }
    if !matches!(w.mixer, Mixer::None) {
        normalize_rows(pass, w.mixer_norm.as_ref());
    }
    match &w.mixer {
        Mixer::Attention(attention) => attention.forward(pass, i),
        Mixer::ShortConv(conv) => conv.forward(pass, i),
        Mixer::DeltaNet(net) => net.forward(pass, i),
        Mixer::Mamba(mamba) => mamba.forward(pass, i),
        Mixer::AttentionAndMamba(both) => both.forward(pass, i),
        Mixer::None => {}
    }
    after_mixer(pass, i, w);
}

/// Runs layer `i` on the rows in `scratch.x`, and leaves the results of the rows of `narrow` there, one after
/// the other. The pass goes on with these.
pub(crate) fn layer_to_narrow<'p>(
    pass: &mut Pass<'p, '_>,
    i: usize,
    w: &Layer,
    narrow: &Narrow<'p>,
) {
    if let Some(altup) = &w.altup {
        altup.predict(pass);
    }
    normalize_rows(pass, w.mixer_norm.as_ref());
    match &w.mixer {
        Mixer::Attention(attention) => attention.forward_state(pass, i),
        Mixer::ShortConv(conv) => conv.forward(pass, i),
        Mixer::DeltaNet(net) => net.forward(pass, i),
        Mixer::Mamba(mamba) => mamba.forward(pass, i),
        Mixer::AttentionAndMamba(both) => both.forward_state(pass, i),
        Mixer::None => {}
    }
    pass.step.batch = narrow.batch;
    if narrow.batch.n_rows() == 0 {
        return;
    }
    let n_embd = pass.config.n_embd;
    let s = &mut *pass.scratch;
    narrow.keep(&mut s.x, n_embd);
    narrow.keep(&mut s.h.f32, n_embd);
    for angles in &mut s.angles {
        narrow.keep(&mut angles.cos, angles.n_pairs);
        narrow.keep(&mut angles.sin, angles.n_pairs);
    }
    narrow.keep(&mut s.per_layer, s.per_layer_row.len());
    if let Some(altup) = &w.altup {
        narrow.keep(&mut s.predicted, altup.config.n_streams * n_embd);
    }
    let mut end = 0;
    for (span, n_kept) in pass.spans.iter_mut().zip(narrow.n_kept) {
        span.first += span.rows.len() - n_kept;
        span.rows = end..end + n_kept;
        end = span.rows.end;
    }
    match &w.mixer {
        Mixer::Attention(attention) => attention.forward_rows(pass, i),
        Mixer::AttentionAndMamba(both) => both.forward_rows(pass, i, narrow),
        // Its results are there, of all rows.
        Mixer::ShortConv(_) | Mixer::DeltaNet(_) | Mixer::Mamba(_) => {
            narrow.keep(&mut pass.scratch.y, n_embd);
        }
        Mixer::None => {}
    }
    after_mixer(pass, i, w);
}

/// The rows of a batch whose results are wanted: the last ones of each span.
pub(crate) struct Narrow<'a> {
    /// The rows alone.
    pub batch: &'a Batch<'a>,
    /// Of each span, how many rows it has, and how many of them are kept.
    pub n_rows: &'a [usize],
    pub n_kept: &'a [usize],
}

impl Narrow<'_> {
    /// Moves the rows that are kept, of `n` columns, to the start of `x`.
    pub(super) fn keep<T: Copy>(&self, x: &mut [T], n: usize) {
        let (mut from, mut to) = (0, 0);
        for (n_rows, n_kept) in self.n_rows.iter().zip(self.n_kept) {
            from += n_rows;
            x.copy_within((from - n_kept) * n..from * n, to * n);
            to += n_kept;
        }
    }
}

/// `h = norm(x)`, or `h = x` without one.
fn normalize_rows(pass: &mut Pass<'_, '_>, norm: Option<&Norm>) {
    let x_len = pass.n_rows() * pass.config.n_embd;
    let s = &mut *pass.scratch;
    let Some(norm) = norm else {
        return s.h.f32[..x_len].copy_from_slice(&s.x[..x_len]);
    };
    let norm = RowNorm::new(pass.config, norm);
    normalize(&pass.step, norm, &s.x[..x_len], &mut s.h.f32);
}

/// What comes behind the mixer of layer `i`, whose results are in `scratch.y`.
fn after_mixer(pass: &mut Pass<'_, '_>, i: usize, w: &Layer) {
    let is_parallel = pass.config.is_parallel;
    if is_parallel {
        normalize_rows(pass, w.ffn_norm.as_ref().or(w.mixer_norm.as_ref()));
    }
    if !matches!(w.mixer, Mixer::None) {
        add_results(pass, w.post_mixer_norm.as_ref());
    }
    if let Some(altup) = &w.altup {
        altup.add_laurel(pass);
    }

    // x += ffn(norm(x)), of x before the mixer where they are parallel.
    if !is_parallel && !matches!(w.ffn, Ffn::None) {
        normalize_rows(pass, w.ffn_norm.as_ref());
    }
    match &w.ffn {
        Ffn::Gated(gated) => gated.forward(pass),
        Ffn::Mlp(mlp) => mlp.forward(pass),
        Ffn::Experts(experts) => experts.forward(pass),
        Ffn::DenseAndExperts(both) => both.forward(pass),
        Ffn::None => {}
    }
    if !matches!(w.ffn, Ffn::None) {
        add_results(pass, w.post_ffn_norm.as_ref());
    }

    match (&w.per_layer, &w.altup) {
        (Some(per_layer), Some(altup)) => altup.correct(pass, per_layer, i),
        (Some(per_layer), None) => {
            per_layer.forward(pass, i);
            add_results(pass, Some(&per_layer.norm));
        }
        (None, _) => {}
    }
    if w.output_scale != 1.0 {
        let n = pass.n_rows() * pass.config.n_embd;
        let x = &mut pass.scratch.x[..n];
        x.iter_mut().for_each(|x| *x *= w.output_scale);
    }
}

/// `x += norm(y)`, or `x += y` without one, of what a block left in `scratch.y`.
fn add_results(pass: &mut Pass<'_, '_>, norm: Option<&Norm>) {
    let (config, n) = (pass.config, pass.n_rows() * pass.config.n_embd);
    let s = &mut *pass.scratch;
    let norm = norm.map(|norm| RowNorm::new(config, norm));
    add(&pass.step, norm, config, &mut s.x[..n], &mut s.y[..n]);
}

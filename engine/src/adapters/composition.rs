//! A weighted list of adapters and calibrations, ready to run.

use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use tandem_kernels::{LowRank, Matrix, quant};

use super::{CompositionError, ContentId, LinearId, Module, PackedAdapter};
use crate::Config;
use crate::rank_pass::record_floats;

/// The most adapters and calibrations in one composition.
const MAX_PARTS: usize = 64;

/// A low-rank term of a linear: `scale b (a x)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment<'a> {
    /// `[rank, n_in]`.
    pub a: Matrix<'a>,
    /// `[n_out, rank]`.
    pub b: LowRank<'a>,
    pub scale: f32,
}

/// All that a composition adds to one linear.
#[derive(Debug, Default)]
pub(crate) struct LinearTerms<'a> {
    pub segments: Vec<Segment<'a>>,
    /// Output vectors `[n_out]`, each with its weight.
    pub biases: Vec<(&'a [f32], f32)>,
}

impl LinearTerms<'_> {
    pub(crate) const NONE: LinearTerms<'static> = LinearTerms {
        segments: Vec::new(),
        biases: Vec::new(),
    };
}

/// Linears that share their input and so their pass over the ranks.
const GROUPS: [&[Module]; 4] = [
    &[Module::Q, Module::K, Module::V],
    &[Module::O],
    &[Module::Gate, Module::Up],
    &[Module::Down],
];

/// A composition of adapters and calibrations for one base model. It borrows their bytes; a
/// [`Session`](crate::Session) runs it, and changes from one to another by a pointer.
#[derive(Debug)]
pub struct Composition<'a> {
    config: Config,
    /// By [`LinearId::index`].
    terms: Vec<LinearTerms<'a>>,
    id: ContentId,
}

impl<'a> Composition<'a> {
    /// The sum of `parts`, each with its weight; a calibration's weight is 1.
    ///
    /// # Errors
    ///
    /// A part for another model, a weight that is not finite, or more than 64 parts.
    pub fn new(
        base: &Config,
        parts: &[(&'a PackedAdapter<'a>, f32)],
    ) -> Result<Composition<'a>, CompositionError> {
        if parts.len() > MAX_PARTS {
            return Err(CompositionError::Option {
                reason: "more than 64 adapters and calibrations at once are not supported",
            });
        }
        let mut terms: Vec<LinearTerms<'a>> = Vec::new();
        terms.resize_with(LinearId::all(base).count(), LinearTerms::default);
        let mut hasher = blake3::Hasher::new();
        for (part, weight) in parts {
            if !weight.is_finite() {
                return Err(CompositionError::Option {
                    reason: "a weight is not finite",
                });
            }
            hasher.update(&part.id().0);
            hasher.update(&weight.to_le_bytes());
            for (id, panel, bias) in part.linears() {
                let misfit = || CompositionError::Option {
                    reason: "an adapter was packed for another model",
                };
                if !id.is_in(base) {
                    return Err(misfit());
                }
                let terms = &mut terms[id.index(base)];
                if let Some(panel) = panel.and_then(|i| part.panels().get(i)) {
                    let segment = panel.segment(*weight);
                    let segment = segment.ok_or_else(|| CompositionError::NotFinite {
                        name: id.to_string(),
                    })?;
                    if (segment.b.n_out(), segment.a.n_cols()) != id.shape(base) {
                        return Err(misfit());
                    }
                    terms.segments.push(segment);
                }
                if let Some(bias) = bias.and_then(|i| part.biases().get(i)) {
                    if bias.len() != id.shape(base).0 {
                        return Err(misfit());
                    }
                    terms.biases.push((bias, *weight));
                }
            }
        }
        Ok(Composition {
            config: base.clone(),
            terms,
            id: ContentId(*hasher.finalize().as_bytes()),
        })
    }

    /// The hash of the content: of every part's bytes, and the weights. Two compositions with the
    /// same hash give the same results, on one model and in one kind of session.
    pub fn id(&self) -> ContentId {
        self.id
    }

    /// Whether the weights of a linear would have to change for the same result without low-rank
    /// terms; its bias may have to besides, see [`Composition::bias`].
    pub fn changes_weights(&self, id: LinearId) -> bool {
        !self.terms(id).segments.is_empty()
    }

    /// Adds the low-rank terms to rows of a linear's weights, `w` `[rows.len(), n_in]`: what makes
    /// a model with the composition baked in.
    ///
    /// # Panics
    ///
    /// If the shapes do not fit.
    pub fn add_to_weights(&self, id: LinearId, rows: Range<usize>, w: &mut [f32]) {
        let n_in = id.shape(&self.config).1;
        assert_eq!(w.len(), rows.len() * n_in);
        for Segment { a, b, scale } in &self.terms(id).segments {
            let mut decoded = vec![0.0; a.n_rows() * n_in];
            for (r, row) in decoded.chunks_exact_mut(n_in).enumerate() {
                quant::dequantize(a.dtype(), a.row(r), row);
            }
            let mut b_row = vec![0.0; b.rank()];
            for (o, w) in rows.clone().zip(w.chunks_exact_mut(n_in)) {
                b.row(o, &mut b_row);
                for (b, a) in b_row.iter().zip(decoded.chunks_exact(n_in)) {
                    let b = scale * b;
                    w.iter_mut().zip(a).for_each(|(w, a)| *w += b * a);
                }
            }
        }
    }

    /// What is added to a linear's output, `[n_out]`.
    pub fn bias(&self, id: LinearId) -> Option<Vec<f32>> {
        let biases = &self.terms(id).biases;
        let mut sum = vec![0.0; biases.first()?.0.len()];
        for (bias, weight) in biases {
            let sum = sum.iter_mut().zip(*bias);
            sum.for_each(|(sum, b)| *sum += weight * b);
        }
        Some(sum)
    }

    /// Bytes of factors and vectors that are read for one token in decode.
    pub fn bytes_per_token(&self) -> usize {
        let segments = self.terms.iter().flat_map(|t| &t.segments);
        let biases = self.terms.iter().flat_map(|t| &t.biases);
        let n_segments: usize = segments.map(|s| s.a.n_bytes() + s.b.data().len()).sum();
        n_segments + biases.map(|(bias, _)| 4 * bias.len()).sum::<usize>()
    }

    /// The hyperparameters of the model it is for.
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn terms(&self, id: LinearId) -> &LinearTerms<'a> {
        &self.terms[id.index(&self.config)]
    }

    /// The most floats of one token's ranks that linears with one input have together; see
    /// [`RankPass`](crate::rank_pass::RankPass).
    pub(crate) fn max_record_floats(&self) -> usize {
        let groups = (0..self.config.n_layer).flat_map(|i| {
            GROUPS.map(|group| {
                let ids = group.iter().map(|module| LinearId::Layer(i, *module));
                record_floats(ids.map(|id| self.terms(id)))
            })
        });
        let output = record_floats([self.terms(LinearId::Output)].into_iter());
        groups.fold(output, usize::max)
    }
}

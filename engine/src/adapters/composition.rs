//! A weighted list of adapters and calibrations, ready to run.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use tandem_kernels::quant;

use super::packed::LinearTerm;
use super::{CompositionError, ContentId, PackedAdapter, PackedFactors};
use crate::exec::record_floats;
use crate::model::{LinearId, Linears};

/// The most adapters and calibrations in one composition.
const MAX_PARTS: usize = 64;

/// All that a composition adds to one linear.
#[derive(Debug, Default)]
pub(crate) struct LinearTerms {
    /// Low-rank terms, weights in their scales.
    pub factors: Vec<PackedFactors>,
    pub biases: Vec<WeightedBias>,
}

/// A vector `[n_out]` that is added to outputs, times a weight.
#[derive(Debug)]
pub(crate) struct WeightedBias {
    pub values: Arc<[f32]>,
    pub weight: f32,
}

impl LinearTerms {
    /// Whether nothing is added.
    pub(crate) fn is_empty(&self) -> bool {
        self.factors.is_empty() && self.biases.is_empty()
    }
}

/// Adapters and calibrations that are added to a model together. It owns what it adds, or shares it
/// with the bundle that it is from. A copy is cheap: it is another handle to the same composition.
#[derive(Clone, Debug)]
pub struct Composition {
    inner: Arc<Inner>,
    prompt: Option<Arc<str>>,
}

#[derive(Debug)]
struct Inner {
    linears: Linears,
    /// By [`LinearId::index`].
    terms: Vec<LinearTerms>,
    id: ContentId,
    /// See [`Composition::max_record_floats`].
    max_record_floats: usize,
}

impl Composition {
    /// The sum of `parts`, each with its weight; a calibration's weight is 1.
    ///
    /// # Errors
    ///
    /// A part for another model, a weight that is not finite, or more than 64 parts.
    pub fn new(
        base: &Linears,
        parts: &[(&PackedAdapter, f32)],
    ) -> Result<Composition, CompositionError> {
        if parts.len() > MAX_PARTS {
            return Err(CompositionError::Option {
                reason: "more than 64 adapters and calibrations at once are not supported",
            });
        }
        let mut terms: Vec<LinearTerms> = Vec::new();
        terms.resize_with(base.len(), LinearTerms::default);
        let mut hasher = blake3::Hasher::new();
        for (part, weight) in parts {
            if !weight.is_finite() {
                return Err(CompositionError::Option {
                    reason: "a weight is not finite",
                });
            }
            hasher.update(&part.id().0);
            hasher.update(&weight.to_le_bytes());
            for term in part.linears() {
                add(base, &term, *weight, &mut terms)?;
            }
        }
        let mut max_record_floats = 0;
        for group in base.iter().as_slice().chunk_by(|a, b| a.group == b.group) {
            let of_group = group.iter().map(|linear| &terms[linear.id.index()]);
            max_record_floats = max_record_floats.max(record_floats(of_group));
        }
        let inner = Inner {
            linears: base.clone(),
            terms,
            id: ContentId(*hasher.finalize().as_bytes()),
            max_record_floats,
        };
        Ok(Composition {
            inner: Arc::new(inner),
            prompt: None,
        })
    }

    /// The same, to be asked with this text, in which `{{ input }}` stands for the input.
    pub fn with_prompt(self, prompt: Option<&str>) -> Composition {
        Composition {
            prompt: prompt.map(Arc::from),
            ..self
        }
    }

    /// The hash of the content: of every part's bytes, and the weights. Two compositions with the
    /// same hash give the same results, on one model and in one kind of session.
    pub fn id(&self) -> ContentId {
        self.inner.id
    }

    /// The text that it wants to be asked with, in which `{{ input }}` stands for the input.
    pub fn prompt(&self) -> Option<&str> {
        self.prompt.as_deref()
    }

    /// The linears of the model that it is for.
    pub fn linears(&self) -> &Linears {
        &self.inner.linears
    }

    /// Whether the weights of a linear would have to change for the same result without low-rank
    /// terms; its bias may have to besides, see [`Composition::bias`].
    pub fn changes_weights(&self, id: LinearId) -> bool {
        !self.terms(id).factors.is_empty()
    }

    /// Adds the low-rank terms to rows of a linear's weights, `w` `[rows.len(), n_in]`: what makes
    /// a model with the composition baked in.
    ///
    /// # Panics
    ///
    /// If the shapes do not fit.
    pub fn add_to_weights(&self, id: LinearId, rows: Range<usize>, w: &mut [f32]) {
        for factors in &self.terms(id).factors {
            let (n_in, scale) = (factors.n_in(), factors.scale());
            assert_eq!(w.len(), rows.len() * n_in);
            let (a, b) = (factors.a(), factors.b());
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
        let mut sum = vec![0.0; biases.first()?.values.len()];
        for bias in biases {
            let sum = sum.iter_mut().zip(&*bias.values);
            sum.for_each(|(sum, b)| *sum += bias.weight * b);
        }
        Some(sum)
    }

    /// Bytes of factors and vectors that are read for one token in decode.
    pub fn bytes_per_token(&self) -> usize {
        let of_linear = |terms: &LinearTerms| {
            let factors = terms.factors.iter().map(PackedFactors::n_bytes);
            let biases = terms.biases.iter().map(|bias| 4 * bias.values.len());
            factors.chain(biases).sum::<usize>()
        };
        self.inner.terms.iter().map(of_linear).sum()
    }

    /// What is added to a linear.
    pub(crate) fn terms(&self, id: LinearId) -> &LinearTerms {
        &self.inner.terms[id.index()]
    }

    /// The most floats of one row's ranks that linears with one input have together; see
    /// [`Ranks`](crate::exec::Ranks).
    pub(crate) fn max_record_floats(&self) -> usize {
        self.inner.max_record_floats
    }
}

/// Adds a part's term to those of its linear.
fn add(
    base: &Linears,
    term: &LinearTerm<'_>,
    weight: f32,
    terms: &mut [LinearTerms],
) -> Result<(), CompositionError> {
    let misfit = || CompositionError::Option {
        reason: "an adapter was packed for another model",
    };
    let linear = base.get(term.id).ok_or_else(misfit)?;
    let terms = &mut terms[term.id.index()];
    if let Some(factors) = term.factors {
        if (factors.n_out(), factors.n_in()) != (linear.n_out, linear.n_in) {
            return Err(misfit());
        }
        let factors = factors.times(weight);
        terms
            .factors
            .push(factors.ok_or_else(|| CompositionError::NotFinite {
                name: linear.name.clone(),
            })?);
    }
    if let Some(values) = term.bias {
        if values.len() != linear.n_out {
            return Err(misfit());
        }
        terms.biases.push(WeightedBias {
            values: Arc::clone(values),
            weight,
        });
    }
    Ok(())
}

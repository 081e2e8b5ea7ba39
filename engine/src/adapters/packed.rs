//! An adapter or calibration stored as the kernels want it.

use alloc::borrow::Cow;
use alloc::collections::BTreeMap;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use tandem_formats::adapter::Lora;
use tandem_kernels::{
    DType, Level, LowRank, LowRankType, Matrix, encode_low_rank, encode_rows, largest_magnitude,
};

use super::linear_id::linears;
use super::{Adapter, CompositionError, LinearId, Segment};
use crate::{Config, Model};

/// How factors are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdapterType {
    /// Float32 as it is.
    F32,
    /// Float16.
    F16,
    /// Int8: Q8_0 for A, tiles of int8 for B.
    Q8,
    /// Int4: Q4_0 for A, tiles of int4 for B.
    Q4,
}

impl AdapterType {
    /// All types.
    pub const ALL: [AdapterType; 4] = [
        AdapterType::F32,
        AdapterType::F16,
        AdapterType::Q8,
        AdapterType::Q4,
    ];

    /// The type's name, as `--lora-type` takes it.
    pub fn name(self) -> &'static str {
        match self {
            AdapterType::F32 => "f32",
            AdapterType::F16 => "f16",
            AdapterType::Q8 => "q8",
            AdapterType::Q4 => "q4",
        }
    }

    /// The type of this name.
    pub fn from_name(name: &str) -> Option<AdapterType> {
        AdapterType::ALL.into_iter().find(|t| t.name() == name)
    }

    /// The type that suits a model: int8 for quantized weights, whose input is int8 too, float32
    /// for others and where activations are to stay `exact`.
    pub fn for_model(model: &Model<'_>, exact: bool) -> AdapterType {
        let is_quantized = |l: &crate::weights::LayerWeights<'_>| l.q.w.dtype().is_quantized();
        match model.layers.iter().any(is_quantized) && !exact {
            true => AdapterType::Q8,
            false => AdapterType::F32,
        }
    }

    /// The types of A and B. Rows of A that are no whole number of blocks stay in float32.
    fn types(self, n_in: usize) -> (DType, LowRankType) {
        let types = match self {
            AdapterType::F32 => (DType::F32, LowRankType::F32),
            AdapterType::F16 => (DType::F16, LowRankType::F16),
            AdapterType::Q8 => (DType::Q8_0, LowRankType::Q8),
            AdapterType::Q4 => (DType::Q4_0, LowRankType::Q4),
        };
        match n_in.is_multiple_of(types.0.block_len()) {
            true => types,
            false => AdapterType::F32.types(n_in),
        }
    }
}

/// What tells the contents of adapters and compositions apart: a BLAKE3 hash of all that a result
/// depends on, where a bundle's sections and what is merged from them are represented by the
/// checksums of the sections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ContentId(pub [u8; 32]);

/// The factors of one linear in the kernels' layouts, owned or borrowed from a file.
#[derive(Clone, Debug)]
pub struct Panel<'a> {
    a_type: DType,
    n_in: usize,
    a: Cow<'a, [u8]>,
    b_type: LowRankType,
    n_out: usize,
    b: Cow<'a, [u8]>,
    rank: usize,
    scale: f32,
}

impl<'a> Panel<'a> {
    /// A panel of `a` `[rank, n_in]` and `b` `[n_out, rank]`, or `None` where the bytes are not of
    /// these sizes or the scale is not finite.
    pub fn new(
        (a_type, a): (DType, Cow<'a, [u8]>),
        (b_type, b): (LowRankType, Cow<'a, [u8]>),
        (n_out, rank, n_in): (usize, usize, usize),
        scale: f32,
    ) -> Option<Panel<'a>> {
        Matrix::new(a_type, rank, n_in, &a)?;
        LowRank::new(b_type, n_out, rank, &b)?;
        scale.is_finite().then_some(Panel {
            a_type,
            n_in,
            a,
            b_type,
            n_out,
            b,
            rank,
            scale,
        })
    }

    /// The type and bytes of A.
    pub fn a(&self) -> (DType, &[u8]) {
        (self.a_type, &self.a)
    }

    /// The type and bytes of B.
    pub fn b(&self) -> (LowRankType, &[u8]) {
        (self.b_type, &self.b)
    }

    /// Outputs, rank and inputs.
    pub fn shape(&self) -> (usize, usize, usize) {
        (self.n_out, self.rank, self.n_in)
    }

    /// What `b (a x)` is multiplied with.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Packs `a` `[rank, n_in]` and `b` `[n_out, rank]`; `None` where the scale leaves the range of
    /// float32 or the rank is above [`MAX_RANK`](tandem_kernels::MAX_RANK).
    pub(super) fn pack(
        level: Level,
        (a, b): (&[f32], &[f32]),
        rank: usize,
        scale: f32,
        adapter_type: AdapterType,
    ) -> Option<Panel<'static>> {
        let (n_in, n_out) = (a.len() / rank, b.len() / rank);
        let (a_type, b_type) = adapter_type.types(n_in);
        let a_exponent = exponent(level, a, a_type == DType::F32);
        let b_exponent = exponent(level, b, b_type == LowRankType::F32);
        let mut a_bytes = vec![0; a_type.row_bytes(n_in)?.checked_mul(rank)?];
        encode_rows(level, a_type, a, power(a_exponent), &mut a_bytes);
        let mut b_bytes = vec![0; b_type.n_bytes(n_out, rank)?];
        encode_low_rank(level, b_type, b, rank, power(b_exponent), &mut b_bytes);
        let scale = libm::ldexp(f64::from(scale), -(a_exponent + b_exponent));
        let shape = (n_out, rank, n_in);
        Panel::new(
            (a_type, Cow::Owned(a_bytes)),
            (b_type, Cow::Owned(b_bytes)),
            shape,
            scale as f32,
        )
    }

    /// The term of a composition in which the panel weighs `weight`.
    pub(super) fn segment(&self, weight: f32) -> Option<Segment<'_>> {
        Some(Segment {
            a: Matrix::new(self.a_type, self.rank, self.n_in, &self.a)?,
            b: LowRank::new(self.b_type, self.n_out, self.rank, &self.b)?,
            scale: Some(self.scale * weight).filter(|s| s.is_finite())?,
        })
    }

    /// Hashes shape, types and scale, and the factors themselves unless these are told apart
    /// otherwise.
    fn hash(&self, hasher: &mut blake3::Hasher, with_factors: bool) {
        let numbers = [
            self.a_type as usize,
            self.n_in,
            self.b_type as usize,
            self.n_out,
            self.rank,
        ];
        numbers.iter().for_each(|n| number(hasher, *n));
        hasher.update(&self.scale.to_le_bytes());
        if with_factors {
            hasher.update(self.hash_of_factors().as_bytes());
        }
    }

    /// The hash of the factors' bytes.
    pub(super) fn hash_of_factors(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.a).update(&self.b);
        hasher.finalize()
    }
}

/// The power of two that brings the largest of the values near 1000: the 16-bit scales of blocks
/// would lose precision on the small values that factors often have. 0 where they are to be kept.
fn exponent(level: Level, x: &[f32], keep: bool) -> i32 {
    let mut largest = 0.0;
    largest_magnitude(level, x, &mut largest);
    if keep || largest == 0.0 {
        return 0;
    }
    let (_, exponent) = libm::frexp(f64::from(largest));
    // As far as the power is a normal number.
    (10 - exponent).min(126)
}

fn power(exponent: i32) -> f32 {
    libm::ldexp(1.0, exponent) as f32
}

fn number(hasher: &mut blake3::Hasher, n: usize) {
    hasher.update(&(n as u64).to_le_bytes());
}

/// What one linear gets from an adapter: places in [`PackedAdapter`]'s lists.
#[derive(Clone, Copy, Debug, Default)]
struct Terms {
    panel: Option<usize>,
    bias: Option<usize>,
}

/// An adapter or a calibration as the engine runs it: panels and output vectors, each of which
/// may serve several linears.
#[derive(Clone, Debug)]
pub struct PackedAdapter<'a> {
    panels: Vec<Panel<'a>>,
    biases: Vec<Vec<f32>>,
    linears: BTreeMap<LinearId, Terms>,
    id: ContentId,
}

impl<'a> PackedAdapter<'a> {
    /// Joins panels and output vectors `[n_out]` with the linears that they serve, given by their
    /// places in the lists. A linear has at most one of each.
    ///
    /// `factors` tells the panels' factors apart from any others; without it all of them are read
    /// to find the adapter's [`ContentId`].
    ///
    /// # Errors
    ///
    /// A panel or vector that is not there or does not fit its linear, a linear that the base
    /// lacks or that has two.
    pub fn new(
        base: &Config,
        panels: Vec<Panel<'a>>,
        biases: Vec<Vec<f32>>,
        panel_users: &[(LinearId, usize)],
        bias_users: &[(LinearId, usize)],
        factors: Option<ContentId>,
    ) -> Result<PackedAdapter<'a>, CompositionError> {
        let mut linears: BTreeMap<LinearId, Terms> = BTreeMap::new();
        let unknown = |id: &LinearId| CompositionError::UnknownModule {
            name: id.to_string(),
        };
        let check = |id: &LinearId, found: (usize, usize), before: Option<usize>| {
            let wanted = id.shape(base);
            if !id.is_in(base) || before.is_some() {
                return Err(unknown(id));
            }
            if wanted != found {
                return Err(CompositionError::Shape {
                    name: id.to_string(),
                    wanted,
                    found,
                });
            }
            Ok(())
        };
        for (id, i) in panel_users {
            let panel = panels.get(*i).ok_or_else(|| unknown(id))?;
            let before = linears.entry(*id).or_default().panel.replace(*i);
            check(id, (panel.n_out, panel.n_in), before)?;
        }
        for (id, i) in bias_users {
            let bias = biases.get(*i).ok_or_else(|| unknown(id))?;
            let before = linears.entry(*id).or_default().bias.replace(*i);
            check(id, (bias.len(), id.shape(base).1), before)?;
        }
        let mut hasher = blake3::Hasher::new();
        number(&mut hasher, panels.len());
        for panel in &panels {
            panel.hash(&mut hasher, factors.is_none());
        }
        if let Some(ContentId(factors)) = factors {
            hasher.update(&factors);
        }
        number(&mut hasher, biases.len());
        for bias in &biases {
            number(&mut hasher, bias.len());
            bias.iter().for_each(|x| {
                hasher.update(&x.to_le_bytes());
            });
        }
        for (id, terms) in &linears {
            number(&mut hasher, id.index(base));
            for place in [terms.panel, terms.bias] {
                number(&mut hasher, place.map_or(0, |i| i + 1));
            }
        }
        Ok(PackedAdapter {
            panels,
            biases,
            linears,
            id: ContentId(*hasher.finalize().as_bytes()),
        })
    }

    /// Packs an adapter.
    ///
    /// # Errors
    ///
    /// Factors whose scale leaves the range of float32, or a rank above 65536.
    pub fn pack(
        base: &Config,
        adapter: &Adapter,
        adapter_type: AdapterType,
    ) -> Result<PackedAdapter<'static>, CompositionError> {
        let (mut panels, mut users) = (Vec::new(), Vec::new());
        for (name, lora) in adapter.modules() {
            let Lora { a, b, scale, .. } = lora;
            for (id, rows) in linears(base, name, b.n_rows)?.linears {
                let b = &b.values[rows.start * b.n_cols..rows.end * b.n_cols];
                let factors = (&a.values[..], b);
                let panel = Panel::pack(Level::detect(), factors, a.n_rows, *scale, adapter_type);
                users.push((id, panels.len()));
                panels
                    .push(panel.ok_or_else(|| CompositionError::NotFinite { name: name.clone() })?);
            }
        }
        PackedAdapter::new(base, panels, Vec::new(), &users, &[], None)
    }

    /// The hash of the content.
    pub fn id(&self) -> ContentId {
        self.id
    }

    /// Bytes of the panels and vectors.
    pub fn n_bytes(&self) -> usize {
        let panels = self.panels.iter().map(|p| p.a.len() + p.b.len());
        let biases = self.biases.iter().map(|b| 4 * b.len());
        panels.chain(biases).sum()
    }

    /// The panels.
    pub fn panels(&self) -> &[Panel<'a>] {
        &self.panels
    }

    /// The output vectors, `[n_out]` each.
    pub fn biases(&self) -> &[Vec<f32>] {
        &self.biases
    }

    /// Each linear with the places of its panel and its output vector in these lists.
    pub fn linears(&self) -> impl Iterator<Item = (LinearId, Option<usize>, Option<usize>)> {
        self.linears
            .iter()
            .map(|(id, terms)| (*id, terms.panel, terms.bias))
    }
}

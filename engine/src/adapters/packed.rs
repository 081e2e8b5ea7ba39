//! An adapter or calibration stored as the kernels want it.

use alloc::collections::BTreeMap;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use tandem_formats::Bytes;
use tandem_formats::adapter::Lora;
use tandem_kernels::{
    DType, Level, LowRank, LowRankLayout, LowRankType, Matrix, encode_low_rank, encode_rows,
    largest_magnitude,
};

use super::{Adapter, CompositionError};
use crate::Model;
use crate::model::{LinearId, Linears, Tensor};

/// How factors are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
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
    pub fn for_model(model: &Model, exact: bool) -> AdapterType {
        let mut linears = model.layers().iter().flat_map(|layer| layer.linears());
        match linears.any(|linear| linear.w.dtype().is_quantized()) && !exact {
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

/// Factors in float32: `scale b (a x)`.
#[derive(Clone, Copy)]
pub(super) struct FactorValues<'a> {
    /// `[rank, n_in]`.
    pub a: &'a [f32],
    /// `[n_out, rank]`.
    pub b: &'a [f32],
    pub rank: usize,
    pub scale: f32,
}

/// The factors of one linear in the kernels' layouts, owned or in a file's bytes: `scale b (a x)`.
#[derive(Clone, Debug)]
pub struct PackedFactors {
    /// `[rank, n_in]`.
    a: Tensor,
    b_layout: LowRankLayout,
    /// `[n_out, rank]`.
    b: Bytes,
    scale: f32,
}

impl PackedFactors {
    /// `None` where the bytes of B are not of the size that its layout takes, the ranks differ, or the
    /// scale is not finite.
    pub fn new(a: Tensor, b_layout: LowRankLayout, b: Bytes, scale: f32) -> Option<PackedFactors> {
        let fits = b_layout.n_bytes() == b.len() && b_layout.rank() == a.n_rows();
        (fits && scale.is_finite()).then_some(PackedFactors {
            a,
            b_layout,
            b,
            scale,
        })
    }

    /// A, `[rank, n_in]`.
    #[inline]
    pub fn a(&self) -> Matrix<'_> {
        self.a.view()
    }

    /// B, `[n_out, rank]`.
    #[inline]
    pub fn b(&self) -> LowRank<'_> {
        self.b_layout.view(&self.b)
    }

    /// Outputs.
    pub fn n_out(&self) -> usize {
        self.b_layout.n_out()
    }

    /// Inputs.
    pub fn n_in(&self) -> usize {
        self.a.n_cols()
    }

    /// The rank.
    pub fn rank(&self) -> usize {
        self.b_layout.rank()
    }

    /// What `b (a x)` is multiplied with.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Bytes of both.
    pub fn n_bytes(&self) -> usize {
        self.a.n_bytes() + self.b.len()
    }

    /// Whether both factors are integers.
    pub(crate) fn is_quantized(&self) -> bool {
        self.a.dtype().is_quantized() && self.b_layout.kind().is_quantized()
    }

    /// Packs factors; `None` where the scale leaves the range of float32 or the rank is above
    /// [`MAX_RANK`](tandem_kernels::MAX_RANK).
    pub(super) fn pack(
        level: Level,
        values: FactorValues<'_>,
        adapter_type: AdapterType,
    ) -> Option<PackedFactors> {
        let FactorValues { a, b, rank, scale } = values;
        let (n_in, n_out) = (a.len() / rank, b.len() / rank);
        let (a_type, b_type) = adapter_type.types(n_in);
        let a_exponent = exponent(level, a, a_type == DType::F32);
        let b_exponent = exponent(level, b, b_type == LowRankType::F32);
        let mut a_bytes = vec![0; a_type.row_bytes(n_in)?.checked_mul(rank)?];
        encode_rows(level, a_type, a, power(a_exponent), &mut a_bytes);
        let b_layout = LowRankLayout::new(b_type, n_out, rank)?;
        let mut b_bytes = vec![0; b_layout.n_bytes()];
        encode_low_rank(level, b_type, b, rank, power(b_exponent), &mut b_bytes);
        let scale = libm::ldexp(f64::from(scale), -(a_exponent + b_exponent));
        let a = Tensor::new(a_type, rank, n_in, a_bytes.into())?;
        PackedFactors::new(a, b_layout, b_bytes.into(), scale as f32)
    }

    /// The same times `weight`; `None` where that leaves the range of float32.
    pub(super) fn times(&self, weight: f32) -> Option<PackedFactors> {
        let scale = Some(self.scale * weight);
        Some(PackedFactors {
            scale: scale.filter(|scale| scale.is_finite())?,
            ..self.clone()
        })
    }

    /// Hashes shape, types and scale, and the factors themselves unless these are told apart
    /// otherwise.
    fn hash(&self, hasher: &mut blake3::Hasher, with_factors: bool) {
        let numbers = [
            self.a.dtype() as usize,
            self.n_in(),
            self.b_layout.kind() as usize,
            self.n_out(),
            self.rank(),
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
        hasher.update(self.a.bytes()).update(&self.b);
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
    factors: Option<usize>,
    bias: Option<usize>,
}

/// Terms, and which linears each of them serves.
#[derive(Debug)]
pub struct Users<T> {
    terms: Vec<T>,
    /// Linears, each with the place of its term.
    users: Vec<(LinearId, usize)>,
}

impl<T> Users<T> {
    /// None yet.
    pub fn new() -> Users<T> {
        Users {
            terms: Vec::new(),
            users: Vec::new(),
        }
    }

    /// Adds a term that serves some linears.
    pub fn add(&mut self, term: T, linears: impl IntoIterator<Item = LinearId>) {
        let place = self.terms.len();
        self.users.extend(linears.into_iter().map(|id| (id, place)));
        self.terms.push(term);
    }

    /// Whether no linear is served.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }
}

impl<T> Default for Users<T> {
    fn default() -> Users<T> {
        Users::new()
    }
}

/// An adapter or a calibration as the engine runs it: factors and output vectors, each of which
/// may serve several linears.
#[derive(Clone, Debug)]
pub struct PackedAdapter {
    factors: Vec<PackedFactors>,
    biases: Vec<Arc<[f32]>>,
    linears: BTreeMap<LinearId, Terms>,
    id: ContentId,
}

impl PackedAdapter {
    /// Joins factors and output vectors `[n_out]` with the linears that they serve. A linear has at
    /// most one of each.
    ///
    /// `content` tells the factors apart from any others; without it all of them are read to find the
    /// adapter's [`ContentId`].
    ///
    /// # Errors
    ///
    /// A term that does not fit its linear, a linear that the base lacks or that has two.
    pub fn new(
        base: &Linears,
        factors: Users<PackedFactors>,
        biases: Users<Arc<[f32]>>,
        content: Option<ContentId>,
    ) -> Result<PackedAdapter, CompositionError> {
        let mut linears: BTreeMap<LinearId, Terms> = BTreeMap::new();
        for (id, place) in &factors.users {
            let found = factors.terms.get(*place).map(|f| (f.n_out(), f.n_in()));
            let before = linears.entry(*id).or_default().factors.replace(*place);
            check_user(base, *id, found, before)?;
        }
        for (id, place) in &biases.users {
            let n_in = base.get(*id).map_or(0, |linear| linear.n_in);
            let found = biases.terms.get(*place).map(|bias| (bias.len(), n_in));
            let before = linears.entry(*id).or_default().bias.replace(*place);
            check_user(base, *id, found, before)?;
        }
        let (factors, biases) = (factors.terms, biases.terms);
        let mut hasher = blake3::Hasher::new();
        number(&mut hasher, factors.len());
        for factors in &factors {
            factors.hash(&mut hasher, content.is_none());
        }
        if let Some(ContentId(content)) = content {
            hasher.update(&content);
        }
        number(&mut hasher, biases.len());
        for bias in &biases {
            number(&mut hasher, bias.len());
            bias.iter().for_each(|x| {
                hasher.update(&x.to_le_bytes());
            });
        }
        for (id, terms) in &linears {
            number(&mut hasher, id.index());
            for place in [terms.factors, terms.bias] {
                number(&mut hasher, place.map_or(0, |i| i + 1));
            }
        }
        Ok(PackedAdapter {
            factors,
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
        base: &Linears,
        adapter: &Adapter,
        adapter_type: AdapterType,
    ) -> Result<PackedAdapter, CompositionError> {
        let mut packed = Users::new();
        for (name, lora) in adapter.modules() {
            let Lora { a, b, scale, .. } = lora;
            for (id, rows) in &base.of_tensor(name, b.n_rows)?.linears {
                let values = FactorValues {
                    a: &a.values,
                    b: &b.values[rows.start * b.n_cols..rows.end * b.n_cols],
                    rank: a.n_rows,
                    scale: *scale,
                };
                let factors = PackedFactors::pack(Level::detect(), values, adapter_type);
                let factors =
                    factors.ok_or_else(|| CompositionError::NotFinite { name: name.clone() })?;
                packed.add(factors, [*id]);
            }
        }
        PackedAdapter::new(base, packed, Users::new(), None)
    }

    /// The hash of the content.
    pub fn id(&self) -> ContentId {
        self.id
    }

    /// Bytes of the factors and vectors.
    pub fn n_bytes(&self) -> usize {
        let factors = self.factors.iter().map(PackedFactors::n_bytes);
        let biases = self.biases.iter().map(|b| 4 * b.len());
        factors.chain(biases).sum()
    }

    /// The factors.
    pub fn factors(&self) -> &[PackedFactors] {
        &self.factors
    }

    /// The linears, each with its factors and its output vector `[n_out]`.
    pub(super) fn linears(&self) -> impl Iterator<Item = LinearTerm<'_>> {
        self.linears.iter().map(|(id, terms)| LinearTerm {
            id: *id,
            factors: terms.factors.and_then(|i| self.factors.get(i)),
            bias: terms.bias.and_then(|i| self.biases.get(i)),
        })
    }
}

/// What an adapter adds to one linear.
pub(super) struct LinearTerm<'p> {
    pub id: LinearId,
    pub factors: Option<&'p PackedFactors>,
    pub bias: Option<&'p Arc<[f32]>>,
}

/// Checks that a linear is of the base, gets its first term, and of its shape, outputs and inputs.
fn check_user(
    base: &Linears,
    id: LinearId,
    found: Option<(usize, usize)>,
    before: Option<usize>,
) -> Result<(), CompositionError> {
    let unknown = || CompositionError::UnknownModule {
        name: base.name(id).to_string(),
    };
    let linear = base.get(id).filter(|_| before.is_none());
    let (linear, found) = linear.zip(found).ok_or_else(unknown)?;
    let wanted = (linear.n_out, linear.n_in);
    match wanted == found {
        true => Ok(()),
        false => Err(CompositionError::Shape {
            name: linear.name.clone(),
            wanted,
            found,
        }),
    }
}

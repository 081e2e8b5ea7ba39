//! What a bundle holds, read from a file or about to be written to one.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use bytes::Bytes;
use tandem_kernels::{
    DType, LOW_RANK_TILE, Level, LowRank, LowRankType, decode_low_rank, decode_rows, quant,
};

use super::BaseFingerprint;

/// Everything in a bundle. Read from a file, matrices are in its bytes, which they keep alive.
#[derive(Clone, Debug, PartialEq)]
pub struct Contents {
    /// The bundle's name, for people.
    pub name: String,
    /// `general.architecture` of the base.
    pub architecture: String,
    /// `general.name` of the base, for people.
    pub base_name: Option<String>,
    /// Which base the adapters are for.
    pub base: BaseFingerprint,
    /// The adapters, each under its own name.
    pub adapters: Vec<Adapter>,
    /// The calibrations, each under its own name.
    pub calibrations: Vec<Calibration>,
    /// The compositions, each under its own name.
    pub compositions: Vec<Composition>,
}

/// A LoRA adapter: a low-rank correction of some of the base's linears.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// Its name: letters, digits, `-` and `_`.
    pub name: String,
    /// Where it is from, for people.
    pub origin: String,
    /// How its factors are stored, one of [`FACTOR_TYPES`].
    pub dtype: DType,
    /// The factors, each for another linear.
    pub factors: Vec<Factors>,
}

/// How factors may be stored.
pub const FACTOR_TYPES: [DType; 4] = [DType::F32, DType::F16, DType::Q8_0, DType::Q4_0];

/// The factors of one linear, whose output they change by `scale B (A x)`; B is stored divided by
/// `b_scale`.
#[derive(Clone, Debug, PartialEq)]
pub struct Factors {
    /// The linear: the name of the base's weight without `.weight`, as `blk.0.attn_q`.
    pub linear: String,
    /// Rows of A and columns of B.
    pub rank: usize,
    /// Elements of the linear's input, the columns of A.
    pub n_in: usize,
    /// Elements of its output, the rows of B.
    pub n_out: usize,
    /// alpha / rank, or alpha / sqrt(rank) for rsLoRA.
    pub scale: f32,
    /// What the elements of `b` are multiplied with to give B: a power of two that keeps them in
    /// the range of F16 scales.
    pub b_scale: f32,
    /// A `[rank, n_in]`, row by row, in the adapter's type.
    pub a: Bytes,
    /// B `[n_out, rank]` divided by `b_scale`, laid out as [`low_rank_type`] says: row by row in F32 and F16, packed in
    /// tiles in Q8_0 and Q4_0.
    pub b: Bytes,
}

/// The layout of a B stored as `dtype`; `None` for what is not one of [`FACTOR_TYPES`].
pub fn low_rank_type(dtype: DType) -> Option<LowRankType> {
    match dtype {
        DType::F32 => Some(LowRankType::F32),
        DType::F16 => Some(LowRankType::F16),
        DType::Q8_0 => Some(LowRankType::Q8),
        DType::Q4_0 => Some(LowRankType::Q4),
        _ => None,
    }
}

/// The tiles of a packed B `[n_out, rank]`: bytes of a tile and number of tiles. `None` where the
/// type is not packed or the rank is 0.
pub(super) fn packed_shape(dtype: DType, n_out: usize, rank: usize) -> Option<(usize, usize)> {
    let layout = low_rank_type(dtype).filter(|t| t.is_quantized())?;
    let tile_bytes = layout.n_bytes(LOW_RANK_TILE, rank)?;
    Some((tile_bytes, n_out.div_ceil(LOW_RANK_TILE)))
}

impl Factors {
    /// Bytes that A and B take in `dtype`; `None` where that overflows, rows of A are no whole
    /// number of blocks, or the type is not one of [`FACTOR_TYPES`].
    pub fn n_bytes(&self, dtype: DType) -> Option<(usize, usize)> {
        let a = dtype.row_bytes(self.n_in)?.checked_mul(self.rank)?;
        let b = low_rank_type(dtype)?.n_bytes(self.n_out, self.rank)?;
        Some((a, b))
    }

    /// A `[rank, n_in]` and B `[n_out, rank]` in float32, stored as `dtype`; `None` where the sizes
    /// are not those of [`Factors::n_bytes`].
    pub fn values(&self, dtype: DType) -> Option<(Vec<f32>, Vec<f32>)> {
        if self.n_bytes(dtype)? != (self.a.len(), self.b.len()) {
            return None;
        }
        let level = Level::detect();
        let mut a = vec![0.0; self.rank.checked_mul(self.n_in)?];
        decode_rows(level, dtype, &self.a, 1.0, &mut a);
        let b_view = LowRank::new(low_rank_type(dtype)?, self.n_out, self.rank, &self.b)?;
        let mut b = vec![0.0; self.n_out.checked_mul(self.rank)?];
        decode_low_rank(level, &b_view, self.b_scale, &mut b);
        Some((a, b))
    }
}

/// A learned correction of a composition, small beside its adapters.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    /// Its name: letters, digits, `-` and `_`.
    pub name: String,
    /// What it computes.
    pub kind: CalibrationKind,
    /// The corrections, each for another module.
    pub corrections: Vec<Correction>,
}

/// What a calibration adds to the output of a linear with the input x.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CalibrationKind {
    /// LC: `p`.
    OutputBias,
    /// LC over the columns of the merged weight: `p sum(x)`.
    WeightBias,
    /// LC++: `P2 (P1 x)`.
    LowRank,
    /// `M` between the concatenated factors of all members: `B_cat M A_cat x` in place of the
    /// members' own terms, their weights and scales included.
    Projection,
}

impl CalibrationKind {
    /// Every kind.
    pub const ALL: [CalibrationKind; 4] = [
        CalibrationKind::OutputBias,
        CalibrationKind::WeightBias,
        CalibrationKind::LowRank,
        CalibrationKind::Projection,
    ];

    /// The kind's name in bundles and recipes.
    pub fn name(self) -> &'static str {
        match self {
            CalibrationKind::OutputBias => "output_bias",
            CalibrationKind::WeightBias => "weight_bias",
            CalibrationKind::LowRank => "low_rank",
            CalibrationKind::Projection => "projection",
        }
    }

    /// The kind of this name.
    pub fn from_name(name: &str) -> Option<CalibrationKind> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether the tensor of this name may be stored as `dtype`; Q8_0 is for what meets a rounded
    /// input.
    pub fn stores(self, tensor: &str, dtype: DType) -> bool {
        match dtype {
            DType::F32 | DType::F16 => true,
            DType::Q8_0 => self == CalibrationKind::LowRank && tensor == "p1",
            _ => false,
        }
    }

    /// The names of a correction's tensors, in the order of [`Correction::matrices`].
    pub fn tensors(self) -> &'static [&'static str] {
        match self {
            CalibrationKind::OutputBias | CalibrationKind::WeightBias => &["p"],
            CalibrationKind::LowRank => &["p1", "p2"],
            CalibrationKind::Projection => &["m"],
        }
    }
}

/// A calibration's part for one module.
#[derive(Clone, Debug, PartialEq)]
pub struct Correction {
    /// The module in all layers (`attn_q`), or a single linear (`blk.3.attn_q`), where this takes the
    /// place of the module's.
    pub module: String,
    /// In the order of [`CalibrationKind::tensors`]: `p [1, n_out]`; `P1 [k, n_in]` and
    /// `P2 [n_out, k]`; `M [R, R]`, R being the ranks of the members in their order, added up.
    pub matrices: Vec<Matrix>,
}

/// A matrix of F32, F16 or Q8_0, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Number of rows.
    pub n_rows: usize,
    /// Elements of a row.
    pub n_cols: usize,
    /// One that [`CalibrationKind::stores`].
    pub dtype: DType,
    /// The elements, little-endian.
    pub data: Bytes,
}

impl Matrix {
    /// The elements, row by row; `None` where the data is of another size than they take.
    pub fn values(&self) -> Option<Vec<f32>> {
        let n = self.n_rows.checked_mul(self.n_cols)?;
        if self.dtype.row_bytes(n)? != self.data.len() {
            return None;
        }
        let mut values = vec![0.0; n];
        quant::dequantize(self.dtype, &self.data, &mut values);
        Some(values)
    }
}

/// Adapters that are used together.
#[derive(Clone, Debug, PartialEq)]
pub struct Composition {
    /// Its name: letters, digits, `-` and `_`.
    pub name: String,
    /// The adapters; no adapter twice.
    pub members: Vec<Member>,
    /// How they are made one.
    pub merge: Merge,
    /// The calibration on top, by name.
    pub calibration: Option<String>,
    /// The text that the model is asked with; [`INPUT_MARK`](super::INPUT_MARK) stands for the input.
    pub prompt: Option<String>,
    /// What it is good for, for people.
    pub description: Option<String>,
    /// The merge's result, where it is stored.
    pub merged: Option<MergedFactors>,
}

/// One adapter of a composition.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// The adapter's name.
    pub adapter: String,
    /// Multiplies the adapter's scales.
    pub weight: f32,
}

/// A merge's result: factors as an adapter has them, the weights and scales of the members in them.
#[derive(Clone, Debug, PartialEq)]
pub struct MergedFactors {
    /// How the factors are stored, one of [`FACTOR_TYPES`].
    pub dtype: DType,
    /// The factors, each for another linear.
    pub factors: Vec<Factors>,
}

/// How adapters are made one. What the method does not use is `None`, what it uses is not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Merge {
    /// The method.
    pub method: MergeMethod,
    /// The share of elements kept, above 0 and at most 1.
    pub density: Option<f32>,
    /// The rank of the result.
    pub rank: Option<u32>,
    /// Seed of the random numbers.
    pub seed: Option<u64>,
}

/// The methods of PEFT's `add_weighted_adapter`, by its names, and `slerp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are PEFT's, explained where they are computed
pub enum MergeMethod {
    Cat,
    Linear,
    Svd,
    Ties,
    TiesSvd,
    DareLinear,
    DareLinearSvd,
    DareTies,
    DareTiesSvd,
    MagnitudePrune,
    MagnitudePruneSvd,
    Slerp,
}

impl MergeMethod {
    /// Every method.
    pub const ALL: [MergeMethod; 12] = [
        MergeMethod::Cat,
        MergeMethod::Linear,
        MergeMethod::Svd,
        MergeMethod::Ties,
        MergeMethod::TiesSvd,
        MergeMethod::DareLinear,
        MergeMethod::DareLinearSvd,
        MergeMethod::DareTies,
        MergeMethod::DareTiesSvd,
        MergeMethod::MagnitudePrune,
        MergeMethod::MagnitudePruneSvd,
        MergeMethod::Slerp,
    ];

    /// The method's name in bundles and recipes.
    pub fn name(self) -> &'static str {
        match self {
            MergeMethod::Cat => "cat",
            MergeMethod::Linear => "linear",
            MergeMethod::Svd => "svd",
            MergeMethod::Ties => "ties",
            MergeMethod::TiesSvd => "ties_svd",
            MergeMethod::DareLinear => "dare_linear",
            MergeMethod::DareLinearSvd => "dare_linear_svd",
            MergeMethod::DareTies => "dare_ties",
            MergeMethod::DareTiesSvd => "dare_ties_svd",
            MergeMethod::MagnitudePrune => "magnitude_prune",
            MergeMethod::MagnitudePruneSvd => "magnitude_prune_svd",
            MergeMethod::Slerp => "slerp",
        }
    }

    /// The method of this name.
    pub fn from_name(name: &str) -> Option<MergeMethod> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }

    /// Whether it keeps a share of the elements.
    pub fn has_density(self) -> bool {
        !matches!(
            self,
            MergeMethod::Cat | MergeMethod::Linear | MergeMethod::Svd | MergeMethod::Slerp
        )
    }

    /// Whether it makes a result of a chosen rank.
    pub fn has_rank(self) -> bool {
        self.name().ends_with("svd")
    }

    /// Whether it draws random numbers.
    pub fn has_seed(self) -> bool {
        self.name().starts_with("dare")
    }
}

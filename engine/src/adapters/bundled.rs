//! Compositions of an adapter bundle.

use alloc::borrow::Cow;
use alloc::collections::BTreeMap;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use tandem_formats::adapter::calibration::Parts as CalibrationParts;
use tandem_formats::adapter::{Floats, Lora};
use tandem_formats::bundle::{self, Factors, MergeMethod as Method, Parts, low_rank_type};
use tandem_kernels::{DType, LOW_RANK_TILE, LowRank};

use super::calibration::Kind;
use super::linear_id::{TensorParts, linears};
use super::{
    Adapter, AdapterType, Calibration, CompositionError, ContentId, PackedAdapter, Panel, Workers,
};
use crate::Config;

/// An adapter of a bundle alone, used where it lies; `checksum` is that of its section.
///
/// # Errors
///
/// Factors that do not fit the base.
pub fn from_bundled_adapter<'a>(
    base: &Config,
    adapter: &bundle::Adapter<'a>,
    checksum: u128,
) -> Result<PackedAdapter<'a>, CompositionError> {
    stored(base, adapter.dtype, &adapter.factors, checksum)
}

/// What a bundle's composition adds to the model, each part with its weight, for a
/// [`Composition`](super::Composition).
///
/// Concatenated members and stored merges are used where they lie in the bundle, in its types.
/// What has to be computed (merges that are not stored, projections) and the calibration are
/// packed in `adapter_type`.
///
/// # Errors
///
/// A part that does not fit the base, by name; a merge that cannot be computed, which without the
/// feature `merge` is every one.
pub fn from_bundle<'a>(
    base: &Config,
    parts: &Parts<'_, 'a>,
    adapter_type: AdapterType,
    workers: Workers<'_>,
) -> Result<Vec<(PackedAdapter<'a>, f32)>, CompositionError> {
    let projection = parts.calibration.filter(|c| c.kind == Kind::Projection);
    let mut packed = Vec::new();
    if let Some((merged, checksum)) = parts.merged {
        let merged = stored(base, merged.dtype, &merged.factors, checksum)?;
        packed.push((merged, 1.0));
    } else if parts.composition.merge.method == Method::Cat && projection.is_none() {
        for (adapter, weight, checksum) in &parts.members {
            let adapter = stored(base, adapter.dtype, &adapter.factors, *checksum)?;
            packed.push((adapter, *weight));
        }
    } else if let Some(projection) = projection {
        let mut adapters = Vec::new();
        for (adapter, ..) in &parts.members {
            adapters.push(Adapter::from_factors(
                base,
                adapter.dtype,
                &adapter.factors,
            )?);
        }
        let adapters: Vec<&Adapter> = adapters.iter().collect();
        let weights: Vec<f32> = parts.members.iter().map(|(_, weight, _)| *weight).collect();
        let one = calibration(base, projection)?.project(base, &adapters, &weights)?;
        packed.push((PackedAdapter::pack(base, &one, adapter_type)?, 1.0));
    } else {
        packed.push((merged(base, parts, adapter_type, workers)?, 1.0));
    }
    if let Some(term) = parts.calibration.filter(|_| projection.is_none()) {
        let term = calibration(base, term)?.pack(base, term.kind, adapter_type)?;
        packed.push((term, 1.0));
    }
    Ok(packed)
}

impl Adapter {
    /// An adapter of a bundle in float32: what merges and projections start from.
    ///
    /// # Errors
    ///
    /// Factors that do not fit the base.
    pub fn from_factors(
        base: &Config,
        dtype: DType,
        factors: &[Factors<'_>],
    ) -> Result<Adapter, CompositionError> {
        let mut loras = Vec::new();
        for f in factors {
            let (a, b) = f.values(dtype).ok_or_else(|| misfit(base, f))?;
            let shape = (f.n_out, f.rank, f.n_in);
            loras.push(Lora::new(f.linear.to_string(), a, b, shape, f.scale));
        }
        Adapter::new(base, loras)
    }
}

/// The members, merged and packed module by module.
#[cfg(feature = "merge")]
fn merged(
    base: &Config,
    parts: &Parts<'_, '_>,
    adapter_type: AdapterType,
    workers: Workers<'_>,
) -> Result<PackedAdapter<'static>, CompositionError> {
    use super::merge::{Member, Modules, Stored, merge_and_pack};

    let how = &parts.composition.merge;
    let mut hasher = blake3::Hasher::new();
    hasher.update(how.method.name().as_bytes());
    hasher.update(&[adapter_type as u8]);
    hasher.update(&how.density.unwrap_or_default().to_le_bytes());
    hasher.update(&how.rank.unwrap_or_default().to_le_bytes());
    hasher.update(&how.seed.unwrap_or_default().to_le_bytes());

    let mut modules = Modules::new();
    for (i, (adapter, weight, checksum)) in parts.members.iter().enumerate() {
        let dtype = adapter.dtype;
        let own = stored(base, dtype, &adapter.factors, *checksum)?;
        hasher.update(&own.id().0);
        hasher.update(&weight.to_le_bytes());
        for f in &adapter.factors {
            // The adapter's own hash has only their product.
            hasher.update(&f.scale.to_le_bytes());
            hasher.update(&f.b_scale.to_le_bytes());
            let layout = low_rank_type(dtype);
            let b = layout.and_then(|layout| LowRank::new(layout, f.n_out, f.rank, &f.b));
            let member = Member {
                i,
                shape: (f.n_out, f.rank, f.n_in),
                a: Stored::Rows(dtype, &f.a),
                b: Stored::LowRank(b.ok_or_else(|| misfit(base, f))?, f.b_scale),
                scale: f.scale,
                weight: *weight,
            };
            modules.entry(&*f.linear).or_default().push(member);
        }
    }
    let factors = ContentId(*hasher.finalize().as_bytes());
    merge_and_pack(
        base,
        &modules,
        &how.into(),
        adapter_type,
        workers,
        Some(factors),
    )
}

#[cfg(not(feature = "merge"))]
fn merged(
    _: &Config,
    _: &Parts<'_, '_>,
    _: AdapterType,
    _: Workers<'_>,
) -> Result<PackedAdapter<'static>, CompositionError> {
    Err(CompositionError::Option {
        reason: "this build does not merge adapters: store the merge in the bundle",
    })
}

#[cfg(feature = "merge")]
impl From<&bundle::Merge> for super::MergeOptions {
    fn from(how: &bundle::Merge) -> Self {
        use super::MergeMethod;
        let (method, dense) = match how.method {
            Method::Cat => (MergeMethod::Cat, false),
            Method::Linear => (MergeMethod::Linear, false),
            Method::Svd => (MergeMethod::Svd, false),
            Method::Ties => (MergeMethod::Ties, false),
            Method::TiesSvd => (MergeMethod::Ties, true),
            Method::DareLinear => (MergeMethod::DareLinear, false),
            Method::DareLinearSvd => (MergeMethod::DareLinear, true),
            Method::DareTies => (MergeMethod::DareTies, false),
            Method::DareTiesSvd => (MergeMethod::DareTies, true),
            Method::MagnitudePrune => (MergeMethod::MagnitudePrune, false),
            Method::MagnitudePruneSvd => (MergeMethod::MagnitudePrune, true),
        };
        super::MergeOptions {
            method,
            dense,
            density: how.density.map_or(1.0, f64::from),
            rank: how.rank.map(|rank| rank as usize),
            seed: how.seed.unwrap_or(0),
        }
    }
}

/// The adapter where it lies; `checksum` is that of its section.
fn stored<'a>(
    base: &Config,
    dtype: DType,
    factors: &[Factors<'a>],
    checksum: u128,
) -> Result<PackedAdapter<'a>, CompositionError> {
    let (mut panels, mut users) = (Vec::new(), Vec::new());
    for f in factors {
        // A tensor of the base may hold several linears; each gets its rows of B.
        let TensorParts { linears, n_in } = linears(base, &f.linear, f.n_out)?;
        if n_in != f.n_in {
            return Err(misfit(base, f));
        }
        for (id, rows) in linears {
            let panel = rows_of_b(dtype, f, rows.clone()).and_then(|b| {
                let layout = low_rank_type(dtype)?;
                let shape = (rows.len(), f.rank, f.n_in);
                Panel::new(
                    (dtype, f.a.clone()),
                    (layout, b),
                    shape,
                    f.scale * f.b_scale,
                )
            });
            users.push((id, panels.len()));
            panels.push(panel.ok_or_else(|| misfit(base, f))?);
        }
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&checksum.to_le_bytes());
    let factors = ContentId(*hasher.finalize().as_bytes());
    PackedAdapter::new(base, panels, Vec::new(), &users, &[], Some(factors))
}

/// Rows of B as they are stored; copied where they begin inside a tile. `None` where B is not of
/// the size that its shape takes.
fn rows_of_b<'a>(
    dtype: DType,
    f: &Factors<'a>,
    rows: core::ops::Range<usize>,
) -> Option<Cow<'a, [u8]>> {
    let layout = low_rank_type(dtype)?;
    if layout.is_quantized() && !rows.start.is_multiple_of(LOW_RANK_TILE) {
        let b = LowRank::new(layout, f.n_out, f.rank, &f.b)?;
        let mut copy = vec![0; layout.n_bytes(rows.len(), f.rank)?];
        b.copy_rows(rows, &mut copy);
        return Some(Cow::Owned(copy));
    }
    let start = layout.n_bytes(rows.start, f.rank)?;
    let end = start.checked_add(layout.n_bytes(rows.len(), f.rank)?)?;
    match &f.b {
        Cow::Borrowed(b) => b.get(start..end).map(Cow::Borrowed),
        Cow::Owned(b) => b.get(start..end).map(|b| Cow::Owned(b.to_vec())),
    }
}

fn misfit(base: &Config, f: &Factors<'_>) -> CompositionError {
    let wanted = linears(base, &f.linear, f.n_out).map_or(0, |parts| parts.n_in);
    CompositionError::Shape {
        name: f.linear.to_string(),
        wanted: (f.n_out, wanted),
        found: (f.n_out, f.n_in),
    }
}

fn calibration(
    base: &Config,
    stored: &bundle::Calibration<'_>,
) -> Result<Calibration, CompositionError> {
    let mut modules = BTreeMap::new();
    for correction in &stored.corrections {
        let module = &*correction.module;
        let wrong = |reason| CompositionError::Calibration {
            name: module.to_string(),
            reason,
        };
        let single = module
            .strip_prefix("blk.")
            .and_then(|rest| rest.split_once('.'));
        let key = match single {
            Some((layer, tensor)) => {
                let layer = layer.parse().map_err(|_| wrong("is no layer's"))?;
                (Some(layer), tensor.to_string())
            }
            None => (None, module.to_string()),
        };
        let mut floats = Vec::new();
        for m in &correction.matrices {
            let values = m.values().filter(|v| v.iter().all(|x| x.is_finite()));
            floats.push(Floats {
                n_rows: m.n_rows,
                n_cols: m.n_cols,
                values: values.ok_or_else(|| wrong("holds values that are no finite numbers"))?,
            });
        }
        let mut parts = CalibrationParts::default();
        let mut floats = floats.into_iter();
        match stored.kind {
            Kind::OutputBias | Kind::WeightBias => {
                // A row there, a column here.
                parts.p = floats.next().map(|p| Floats {
                    n_rows: p.n_cols,
                    n_cols: 1,
                    values: p.values,
                });
            }
            Kind::LowRank => (parts.p1, parts.p2) = (floats.next(), floats.next()),
            Kind::Projection => parts.m = floats.next(),
        }
        modules.insert(key, parts);
    }
    Calibration::new(base, modules)
}

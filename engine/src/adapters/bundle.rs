//! Adapter bundles, and their compositions.

use alloc::collections::BTreeMap;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use tandem_formats::Bytes;
use tandem_formats::adapter::calibration::Parts as CalibrationParts;
use tandem_formats::adapter::{Floats, Lora};
use tandem_formats::bundle::{
    self, BaseMatch, Factors, MergeMethod as Method, Parts, low_rank_type,
};
use tandem_kernels::{DType, LOW_RANK_TILE, LowRank, LowRankLayout};

use super::calibration::Kind;
use super::packed::Users;
use super::{
    Adapter, AdapterType, Calibration, Composition, CompositionError, ContentId, PackedAdapter,
    PackedFactors,
};
use crate::exec::Compute;
use crate::model::{Linears, Tensor};
use crate::{Error, Model};

/// A bundle of adapters, and the model that it is for. A copy is cheap: it is another handle to the
/// same bundle.
#[derive(Clone, Debug)]
pub struct Bundle {
    model: Model,
    bundle: Arc<bundle::Bundle>,
    base_match: BaseMatch,
}

impl Bundle {
    /// The bundle in `bytes`, for `model`. Nothing of a bundle runs that is for another model; what is
    /// damaged shows when it is used.
    ///
    /// # Errors
    ///
    /// Bytes that are not a bundle, or a bundle for another model.
    pub fn new(model: &Model, bytes: impl Into<Bytes>) -> Result<Bundle, Error> {
        Bundle::from_parsed(model, Arc::new(bundle::Bundle::parse(bytes)?))
    }

    /// The same of a bundle that was read before: it may be for several models.
    ///
    /// # Errors
    ///
    /// A bundle for another model.
    pub fn from_parsed(model: &Model, bundle: Arc<bundle::Bundle>) -> Result<Bundle, Error> {
        let gguf = model.gguf().map_err(bundle_error)?;
        let base_match = bundle.contents().check_base(&gguf)?;
        Ok(Bundle {
            model: model.clone(),
            bundle,
            base_match,
        })
    }

    /// Whether the model is the very one that the bundle was made with, as far as fingerprints tell.
    pub fn base_match(&self) -> BaseMatch {
        self.base_match
    }

    /// The model that it is for.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// All that is in the file.
    pub fn file(&self) -> &bundle::Bundle {
        &self.bundle
    }

    /// The names of its compositions.
    pub fn compositions(&self) -> impl Iterator<Item = &str> {
        self.bundle.contents().compositions.iter().map(|c| &*c.name)
    }

    /// The composition of this name, ready to run. A merge that is not stored is computed, on all cores.
    ///
    /// # Errors
    ///
    /// A name that the bundle does not have, damage, a merge that cannot be computed.
    #[cfg(feature = "std")]
    pub fn composition(&self, name: &str) -> Result<Composition, Error> {
        let pool = crate::threads::all();
        let adapter_type = AdapterType::for_model(&self.model, false);
        let level = tandem_kernels::Level::detect();
        self.composition_as(name, adapter_type, Compute::new(level, &pool))
    }

    /// The composition of this name, ready to run.
    ///
    /// # Errors
    ///
    /// A name that the bundle does not have, damage, a merge that cannot be computed.
    #[cfg(not(feature = "std"))]
    pub fn composition(&self, name: &str) -> Result<Composition, Error> {
        let adapter_type = AdapterType::for_model(&self.model, false);
        let level = tandem_kernels::Level::detect();
        self.composition_as(
            name,
            adapter_type,
            Compute::new(level, &tandem_kernels::Serial),
        )
    }

    /// The same with what has to be packed in a type of choice, computed as said.
    ///
    /// # Errors
    ///
    /// As [`Bundle::composition`].
    pub fn composition_as(
        &self,
        name: &str,
        adapter_type: AdapterType,
        compute: Compute<'_>,
    ) -> Result<Composition, Error> {
        let base = self.model.linears();
        let parts = self.bundle.parts(name)?;
        let packed = from_bundle(base, &parts, adapter_type, compute)?;
        let packed: Vec<_> = packed
            .iter()
            .map(|(part, weight)| (part, *weight))
            .collect();
        let composition = Composition::new(base, &packed)?;
        Ok(composition.with_prompt(parts.composition.prompt.as_deref()))
    }

    /// An adapter of the bundle alone, as a composition.
    ///
    /// # Errors
    ///
    /// A name that the bundle does not have, or damage.
    pub fn adapter(&self, name: &str) -> Result<Composition, Error> {
        let (adapter, checksum) = self.bundle.adapter(name)?;
        let packed = from_bundled_adapter(self.model.linears(), adapter, checksum)?;
        Ok(Composition::new(self.model.linears(), &[(&packed, 1.0)])?)
    }
}

fn bundle_error(error: tandem_formats::GgufError) -> tandem_formats::BundleError {
    error.into()
}

/// An adapter of a bundle alone, used where it lies; `checksum` is that of its section.
///
/// # Errors
///
/// Factors that do not fit the base.
pub fn from_bundled_adapter(
    base: &Linears,
    adapter: &bundle::Adapter,
    checksum: u128,
) -> Result<PackedAdapter, CompositionError> {
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
pub fn from_bundle(
    base: &Linears,
    parts: &Parts<'_>,
    adapter_type: AdapterType,
    compute: Compute<'_>,
) -> Result<Vec<(PackedAdapter, f32)>, CompositionError> {
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
        packed.push((merged(base, parts, adapter_type, compute)?, 1.0));
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
        base: &Linears,
        dtype: DType,
        factors: &[Factors],
    ) -> Result<Adapter, CompositionError> {
        let mut loras = Vec::new();
        for f in factors {
            let (a, b) = f.values(dtype).ok_or_else(|| misfit(base, f))?;
            loras.push(Lora {
                module: f.linear.to_string(),
                a: Floats {
                    n_rows: f.rank,
                    n_cols: f.n_in,
                    values: a,
                },
                b: Floats {
                    n_rows: f.n_out,
                    n_cols: f.rank,
                    values: b,
                },
                scale: f.scale,
            });
        }
        Adapter::new(base, loras)
    }
}

/// The members, merged and packed module by module.
#[cfg(feature = "merge")]
fn merged(
    base: &Linears,
    parts: &Parts<'_>,
    adapter_type: AdapterType,
    compute: Compute<'_>,
) -> Result<PackedAdapter, CompositionError> {
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
        compute,
        Some(factors),
    )
}

#[cfg(not(feature = "merge"))]
fn merged(
    _: &Linears,
    _: &Parts<'_>,
    _: AdapterType,
    _: Compute<'_>,
) -> Result<PackedAdapter, CompositionError> {
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
            Method::Slerp => (MergeMethod::Slerp, false),
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
fn stored(
    base: &Linears,
    dtype: DType,
    factors: &[Factors],
    checksum: u128,
) -> Result<PackedAdapter, CompositionError> {
    let mut packed = Users::new();
    for f in factors {
        // A tensor of the base may hold several linears; each gets its rows of B.
        let parts = base.of_tensor(&f.linear, f.n_out)?;
        if parts.n_in != f.n_in {
            return Err(misfit(base, f));
        }
        for (id, rows) in &parts.linears {
            let factors = of_rows(dtype, f, rows.clone());
            packed.add(factors.ok_or_else(|| misfit(base, f))?, [*id]);
        }
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&checksum.to_le_bytes());
    let content = ContentId(*hasher.finalize().as_bytes());
    PackedAdapter::new(base, packed, Users::new(), Some(content))
}

/// The factors of some outputs, where they are stored. `None` where they are not of the size that
/// their shape takes.
fn of_rows(dtype: DType, f: &Factors, rows: core::ops::Range<usize>) -> Option<PackedFactors> {
    let a = Tensor::new(dtype, f.rank, f.n_in, f.a.clone())?;
    let layout = LowRankLayout::new(low_rank_type(dtype)?, rows.len(), f.rank)?;
    let b = rows_of_b(layout, f, rows)?;
    PackedFactors::new(a, layout, b, f.scale * f.b_scale)
}

/// Rows of B as they are stored; copied where they begin inside a tile. `None` where B is not of
/// the size that its shape takes.
fn rows_of_b(layout: LowRankLayout, f: &Factors, rows: core::ops::Range<usize>) -> Option<Bytes> {
    let kind = layout.kind();
    if kind.is_quantized() && !rows.start.is_multiple_of(LOW_RANK_TILE) {
        let b = LowRank::new(kind, f.n_out, f.rank, &f.b)?;
        let mut copy = vec![0; layout.n_bytes()];
        b.copy_rows(rows, &mut copy);
        return Some(copy.into());
    }
    let start = match rows.start {
        0 => 0,
        n => kind.n_bytes(n, f.rank)?,
    };
    let end = start.checked_add(layout.n_bytes())?;
    (end <= f.b.len()).then(|| f.b.slice(start..end))
}

fn misfit(base: &Linears, f: &Factors) -> CompositionError {
    let parts = base.of_tensor(&f.linear, f.n_out);
    let wanted = parts.map_or(0, |parts| parts.n_in);
    CompositionError::Shape {
        name: f.linear.to_string(),
        wanted: (f.n_out, wanted),
        found: (f.n_out, f.n_in),
    }
}

fn calibration(
    base: &Linears,
    stored: &bundle::Calibration,
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

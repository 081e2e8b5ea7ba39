//! What must hold of a bundle's contents, whether read or about to be written.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};

use tandem_kernels::DType;

use super::contents::{
    Adapter, Calibration, CalibrationKind, Composition, Contents, Correction, FACTOR_TYPES,
    Factors, Merge, MergeMethod,
};
use super::{BundleError, INPUT_MARK, limits};

/// What the adapters tell of the base's linears. In maps, as a hostile file may hold many.
#[derive(Default)]
struct Linears<'c> {
    /// Elements of the input and output of each linear.
    dims: BTreeMap<&'c str, (usize, usize)>,
    /// The rank that an adapter has at a linear.
    ranks: BTreeMap<(&'c str, &'c str), usize>,
}

impl Contents {
    /// Checks everything that [`BundleError`] lists about contents: names, counts, sizes,
    /// references. The data of the matrices is not looked at.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), BundleError> {
        check_text("bundle name", &self.name)?;
        check_text("architecture", &self.architecture)?;
        check_text("base name", self.base_name.as_deref().unwrap_or(""))?;
        let mut linears = Linears::default();

        let names = self.adapters.iter().map(|a| &*a.name);
        check_names("adapter", names, limits::MAX_ADAPTERS)?;
        for adapter in &self.adapters {
            check_text("origin", &adapter.origin)?;
            check_factors("adapter", &adapter.name, adapter.dtype, &adapter.factors)?;
            linears.add("adapter", &adapter.name, &adapter.factors)?;
            let ranks = adapter.factors.iter();
            let ranks = ranks.map(|f| ((&*adapter.name, &*f.linear), f.rank));
            linears.ranks.extend(ranks);
        }

        let names = self.calibrations.iter().map(|c| &*c.name);
        check_names("calibration", names, limits::MAX_CALIBRATIONS)?;
        for calibration in &self.calibrations {
            check_calibration(calibration)?;
        }

        let names = self.compositions.iter().map(|c| &*c.name);
        check_names("composition", names, limits::MAX_COMPOSITIONS)?;
        for composition in &self.compositions {
            self.check_composition(composition, &mut linears)?;
        }
        Ok(())
    }

    fn check_composition<'c>(
        &'c self,
        composition: &'c Composition,
        linears: &mut Linears<'c>,
    ) -> Result<(), BundleError> {
        let name = || composition.name.to_string();
        check_text("prompt", composition.prompt.as_deref().unwrap_or(""))?;
        check_text(
            "description",
            composition.description.as_deref().unwrap_or(""),
        )?;
        let what = "composition";
        if composition.members.is_empty() {
            return Err(BundleError::Empty { what, name: name() });
        }
        check_count(
            "members",
            &composition.name,
            composition.members.len(),
            limits::MAX_MEMBERS,
        )?;
        let mut members = BTreeSet::new();
        for member in &composition.members {
            if !members.insert(&member.adapter) {
                return Err(BundleError::Duplicate {
                    what: "adapter",
                    name: member.adapter.to_string(),
                    within: name(),
                });
            }
            if !member.weight.is_finite() {
                let what = "weight";
                return Err(BundleError::NotFinite { what, name: name() });
            }
            if find(&self.adapters, &member.adapter).is_none() {
                return Err(BundleError::MissingMember {
                    composition: name(),
                    adapter: member.adapter.to_string(),
                });
            }
        }
        check_merge(&composition.name, &composition.merge)?;
        if composition.merge.method == MergeMethod::Slerp && composition.members.len() > 2 {
            return Err(merge_option(
                &composition.name,
                MergeMethod::Slerp,
                "adapters",
                "are more than two",
            ));
        }
        if let Some(merged) = &composition.merged {
            check_factors(what, &composition.name, merged.dtype, &merged.factors)?;
            linears.add(what, &composition.name, &merged.factors)?;
        }
        if composition.prompt.as_ref().is_some_and(|p| !is_prompt(p)) {
            let composition = name();
            return Err(BundleError::Prompt { composition });
        }
        if let Some(used) = &composition.calibration {
            let calibration = self
                .calibrations
                .iter()
                .find(|c| c.name == *used)
                .ok_or_else(|| BundleError::MissingCalibration {
                    composition: name(),
                    calibration: used.to_string(),
                })?;
            if calibration.kind == CalibrationKind::Projection
                && composition.merge.method != MergeMethod::Cat
            {
                let composition = name();
                return Err(BundleError::ProjectionWithoutCat { composition });
            }
            if calibration.kind == CalibrationKind::Projection && composition.merged.is_some() {
                return Err(merge_option(
                    &composition.name,
                    MergeMethod::Cat,
                    "merged",
                    "does not go with a projection, which stands between the members' factors",
                ));
            }
            check_corrections(composition, calibration, linears)?;
        }
        Ok(())
    }
}

/// Whether a calibration's matrices fit the linears of the composition that it corrects.
fn check_corrections(
    composition: &Composition,
    calibration: &Calibration,
    linears: &Linears<'_>,
) -> Result<(), BundleError> {
    let by_module: BTreeMap<&str, &Correction> = calibration
        .corrections
        .iter()
        .map(|correction| (&*correction.module, correction))
        .collect();
    for (linear, (n_in, n_out)) in &linears.dims {
        let found = by_module.get(linear).or_else(|| {
            let (_, module) = layer_and_module(linear)?;
            by_module.get(module)
        });
        let Some(correction) = found else {
            continue;
        };
        let fits = match (calibration.kind, &*correction.matrices) {
            (CalibrationKind::OutputBias | CalibrationKind::WeightBias, [p]) => p.n_cols == *n_out,
            (CalibrationKind::LowRank, [p1, p2]) => p1.n_cols == *n_in && p2.n_rows == *n_out,
            (CalibrationKind::Projection, [m]) => {
                let members = composition.members.iter();
                let ranks = members.filter_map(|m| linears.ranks.get(&(&*m.adapter, linear)));
                let rank: usize = ranks.sum();
                // No member may change this linear, though another adapter does.
                rank == 0 || m.n_rows == rank
            }
            _ => false,
        };
        if !fits {
            return Err(BundleError::Disagree {
                what: "calibration",
                name: calibration.name.to_string(),
                linear: linear.to_string(),
            });
        }
    }
    Ok(())
}

fn find<'c>(adapters: &'c [Adapter], name: &str) -> Option<&'c Adapter> {
    adapters.iter().find(|a| a.name == name)
}

/// `blk.3.attn_q` as `3` and `attn_q`; `None` for what is in no layer.
pub(super) fn layer_and_module(linear: &str) -> Option<(&str, &str)> {
    let (layer, module) = linear.strip_prefix("blk.")?.split_once('.')?;
    let is_number = !layer.is_empty() && layer.bytes().all(|b| b.is_ascii_digit());
    is_number.then_some((layer, module))
}

pub(super) fn check_count(
    what: &'static str,
    within: &str,
    found: usize,
    max: usize,
) -> Result<(), BundleError> {
    if found > max {
        return Err(BundleError::TooMany {
            what,
            within: within.to_string(),
            found,
            max,
        });
    }
    Ok(())
}

/// Whether `text` may be a composition's prompt: it holds [`INPUT_MARK`] and no other marks that
/// templates have.
pub fn is_prompt(text: &str) -> bool {
    let around = text.replace(INPUT_MARK, "");
    let others = ["{{", "}}", "{%", "%}", "{#", "#}"];
    text.contains(INPUT_MARK) && !others.iter().any(|mark| around.contains(mark))
}

/// Whether `name` may be that of an adapter, calibration or composition.
pub(super) fn check_name(what: &'static str, name: &str) -> Result<(), BundleError> {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    if name.is_empty() || name.len() > limits::MAX_NAME_BYTES || !name.bytes().all(is_plain) {
        let name = name.to_string();
        return Err(BundleError::Name { what, name });
    }
    Ok(())
}

fn check_names<'c>(
    what: &'static str,
    names: impl Iterator<Item = &'c str>,
    max: usize,
) -> Result<(), BundleError> {
    let mut seen = BTreeSet::new();
    for name in names {
        check_name(what, name)?;
        if !seen.insert(name) {
            return Err(BundleError::Duplicate {
                what,
                name: name.to_string(),
                within: String::new(),
            });
        }
    }
    check_count(plural(what), "", seen.len(), max)
}

fn plural(what: &str) -> &'static str {
    match what {
        "adapter" => "adapters",
        "calibration" => "calibrations",
        _ => "compositions",
    }
}

fn check_text(what: &'static str, text: &str) -> Result<(), BundleError> {
    if text.len() > limits::MAX_TEXT_BYTES {
        let found = text.len();
        return Err(BundleError::TextTooLong { what, found });
    }
    Ok(())
}

/// The names of linears or modules: not empty, short, no two alike, nothing invisible in them.
fn check_linears<'c>(
    what: &'static str,
    within: &str,
    linears: impl Iterator<Item = &'c str>,
) -> Result<(), BundleError> {
    let mut seen = BTreeSet::new();
    for linear in linears {
        let is_visible = |b: u8| b.is_ascii_graphic();
        if linear.is_empty()
            || linear.len() > limits::MAX_LINEAR_BYTES
            || !linear.bytes().all(is_visible)
        {
            let name = linear.to_string();
            return Err(BundleError::Name { what, name });
        }
        if !seen.insert(linear) {
            return Err(BundleError::Duplicate {
                what,
                name: linear.to_string(),
                within: within.to_string(),
            });
        }
    }
    check_count("linears", within, seen.len(), limits::MAX_LINEARS)
}

fn check_factors(
    what: &'static str,
    name: &str,
    dtype: DType,
    factors: &[Factors],
) -> Result<(), BundleError> {
    let factor_type = |linear: &str, n_in| BundleError::FactorType {
        name: name.to_string(),
        linear: linear.to_string(),
        dtype,
        n_in,
    };
    if !FACTOR_TYPES.contains(&dtype) {
        return Err(factor_type("", 0));
    }
    if factors.is_empty() {
        let name = name.to_string();
        return Err(BundleError::Empty { what, name });
    }
    check_linears("linear", name, factors.iter().map(|f| &*f.linear))?;
    for f in factors {
        let linear = || f.linear.to_string();
        if f.rank == 0 || f.rank > limits::MAX_RANK || f.n_in == 0 || f.n_out == 0 {
            return Err(BundleError::FactorShape {
                name: name.to_string(),
                linear: linear(),
            });
        }
        if !f.n_in.is_multiple_of(dtype.block_len()) {
            return Err(factor_type(&f.linear, f.n_in));
        }
        if f.n_bytes(dtype) != Some((f.a.len(), f.b.len())) {
            return Err(BundleError::MatrixSize {
                name: name.to_string(),
                linear: linear(),
            });
        }
        if !(f.scale * f.b_scale).is_finite() {
            return Err(BundleError::NotFinite {
                what: "scale",
                name: name.to_string(),
            });
        }
    }
    Ok(())
}

impl<'c> Linears<'c> {
    /// Checks that linears have the dimensions that those before them tell, and notes new ones.
    fn add(
        &mut self,
        what: &'static str,
        name: &str,
        factors: &'c [Factors],
    ) -> Result<(), BundleError> {
        for f in factors {
            let dims = (f.n_in, f.n_out);
            if *self.dims.entry(&f.linear).or_insert(dims) != dims {
                return Err(BundleError::Disagree {
                    what,
                    name: name.to_string(),
                    linear: f.linear.to_string(),
                });
            }
        }
        Ok(())
    }
}

fn check_calibration(calibration: &Calibration) -> Result<(), BundleError> {
    let name = || calibration.name.to_string();
    if calibration.corrections.is_empty() {
        let what = "calibration";
        return Err(BundleError::Empty { what, name: name() });
    }
    let modules = calibration.corrections.iter().map(|c| &*c.module);
    check_linears("module", &calibration.name, modules)?;
    for correction in &calibration.corrections {
        let shapes_agree = match (calibration.kind, &*correction.matrices) {
            (CalibrationKind::OutputBias | CalibrationKind::WeightBias, [p]) => p.n_rows == 1,
            (CalibrationKind::LowRank, [p1, p2]) => {
                p1.n_rows == p2.n_cols && p1.n_rows <= limits::MAX_RANK
            }
            (CalibrationKind::Projection, [m]) => {
                m.n_rows == m.n_cols && m.n_rows <= limits::MAX_RANK * limits::MAX_MEMBERS
            }
            _ => false,
        };
        if !shapes_agree {
            return Err(BundleError::Disagree {
                what: "calibration",
                name: name(),
                linear: correction.module.to_string(),
            });
        }
        let tensors = calibration.kind.tensors().iter();
        for (m, tensor) in correction.matrices.iter().zip(tensors) {
            let is_known = calibration.kind.stores(tensor, m.dtype);
            let n_bytes = m
                .dtype
                .row_bytes(m.n_cols)
                .and_then(|row| row.checked_mul(m.n_rows))
                .filter(|n| *n > 0 && is_known);
            if n_bytes != Some(m.data.len()) {
                return Err(BundleError::MatrixSize {
                    name: name(),
                    linear: correction.module.to_string(),
                });
            }
        }
    }
    Ok(())
}

fn merge_option(
    name: &str,
    method: MergeMethod,
    option: &'static str,
    problem: &'static str,
) -> BundleError {
    BundleError::MergeOption {
        name: name.to_string(),
        method: method.name(),
        option,
        problem,
    }
}

fn check_merge(name: &str, merge: &Merge) -> Result<(), BundleError> {
    let method = merge.method;
    for (option, used, given) in [
        ("density", method.has_density(), merge.density.is_some()),
        ("rank", method.has_rank(), merge.rank.is_some()),
        ("seed", method.has_seed(), merge.seed.is_some()),
    ] {
        let problem = match (used, given) {
            (true, false) => "is missing",
            (false, true) => "is not used by this method",
            _ => continue,
        };
        return Err(merge_option(name, method, option, problem));
    }
    if merge.density.is_some_and(|d| !(d > 0.0 && d <= 1.0)) {
        let problem = "must be above 0 and at most 1";
        return Err(merge_option(name, method, "density", problem));
    }
    let max = limits::MAX_RANK as u32;
    if merge.rank.is_some_and(|r| r == 0 || r > max) {
        let problem = "must be from 1 to 4096";
        return Err(merge_option(name, method, "rank", problem));
    }
    Ok(())
}

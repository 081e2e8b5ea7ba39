//! What a composition costs beside the adapters that are there anyway.

use anyhow::{Context as _, Result};
use tandem_engine::adapters::calibration::Kind;
use tandem_formats::bundle::{Bundle, Factors};

use crate::args::AdapterArgs;
use crate::bundle::{n_parameters, section_bytes};

/// Parameters and bytes that are stored for one composition only.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Extra {
    pub n_parameters: usize,
    pub n_bytes: usize,
}

impl Extra {
    pub(super) fn plus(self, other: Extra) -> Extra {
        Extra {
            n_parameters: self.n_parameters + other.n_parameters,
            n_bytes: self.n_bytes + other.n_bytes,
        }
    }

    /// Of a bundle's composition: its calibration, its stored merge, and those of its adapters that
    /// no other composition uses. Of an adapter alone: nothing, where a composition uses it.
    pub(super) fn of_bundle(bundle: &Bundle, name: &str) -> Extra {
        let contents = bundle.contents();
        let mut extra = Extra::default();
        let mut add = |n_parameters, what, name: &str| {
            extra.n_parameters += n_parameters;
            extra.n_bytes += section_bytes(bundle, what, name);
        };
        let composition = contents.compositions.iter().find(|c| c.name == name);
        if let Some(calibration) = composition.and_then(|c| c.calibration.as_ref()) {
            let calibration = contents
                .calibrations
                .iter()
                .find(|c| c.name == *calibration);
            let n = calibration.map_or(0, n_parameters);
            add(n, "calibration", calibration.map_or("", |c| &c.name));
        }
        if let Some(merged) = composition.and_then(|c| c.merged.as_ref()) {
            add(n_factors(&merged.factors), "composition", name);
        }
        for adapter in &contents.adapters {
            let mut users = contents
                .compositions
                .iter()
                .filter(|c| c.members.iter().any(|m| m.adapter == adapter.name))
                .map(|c| &*c.name);
            let is_own = match composition {
                Some(_) => users.next() == Some(name) && users.next().is_none(),
                None => adapter.name == name && users.next().is_none(),
            };
            if is_own {
                add(n_factors(&adapter.factors), "adapter", &adapter.name);
            }
        }
        extra
    }

    /// Of files: the calibration's.
    pub(super) fn of_files(args: &AdapterArgs) -> Result<Extra> {
        let (Some(path), Some(kind)) = (&args.calibration, args.kind) else {
            return Ok(Extra::default());
        };
        let name = || format!("cannot use the calibration {}", path.display());
        let bytes = std::fs::read(path).with_context(name)?;
        let modules = tandem_formats::adapter::calibration::read(&bytes).with_context(name)?;
        let parts = modules.values().flat_map(|parts| match kind {
            Kind::OutputBias | Kind::WeightBias => [&parts.p, &None],
            Kind::LowRank => [&parts.p1, &parts.p2],
            Kind::Projection => [&parts.m, &None],
        });
        Ok(Extra {
            n_parameters: parts.flatten().map(|part| part.values.len()).sum(),
            n_bytes: bytes.len(),
        })
    }
}

fn n_factors(factors: &[Factors]) -> usize {
    factors.iter().map(|f| f.rank * (f.n_in + f.n_out)).sum()
}

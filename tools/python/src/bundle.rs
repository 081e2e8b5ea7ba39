//! Bundles, adapters, compositions.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use tandem_engine::adapters::{self, MergeMethod, MergeOptions};
use tandem_engine::{AdapterType, PackedAdapter};
use tandem_formats::bundle::BaseMatch;

use crate::arguments::{from_json, readers};
use crate::error::Result;

/// Adapters, compositions and calibrations for one model, from a file: see `Model.bundle`.
#[pyclass(frozen, module = "tandem")]
pub(crate) struct Bundle(pub(crate) tandem_engine::Bundle);

#[pymethods]
impl Bundle {
    /// What it is called.
    #[getter]
    fn name(&self) -> &str {
        &self.0.file().contents().name
    }

    /// The names of its compositions.
    #[getter]
    fn compositions(&self) -> Vec<&str> {
        self.0.compositions().collect()
    }

    /// The names of its adapters.
    #[getter]
    fn adapters(&self) -> Vec<&str> {
        let adapters = self.0.file().contents().adapters.iter();
        adapters.map(|adapter| &*adapter.name).collect()
    }

    /// Whether the model is the very one that the bundle was made with; otherwise it fits, but its weights are
    /// others.
    #[getter]
    fn is_for_this_base(&self) -> bool {
        self.0.base_match() == BaseMatch::Same
    }

    /// The composition of a name, ready to run. A merge that is not stored is computed.
    fn composition(&self, py: Python<'_>, name: &str) -> Result<Composition> {
        py.detach(|| Ok(Composition(self.0.composition(name)?)))
    }

    /// An adapter of the bundle alone, as a composition.
    fn adapter(&self, py: Python<'_>, name: &str) -> Result<Composition> {
        py.detach(|| Ok(Composition(self.0.adapter(name)?)))
    }

    fn __repr__(&self) -> String {
        format!("<tandem.Bundle {:?}>", self.name())
    }
}

/// A LoRA adapter, from a file: see `Model.adapter`.
#[pyclass(frozen, module = "tandem")]
pub(crate) struct Adapter(pub(crate) adapters::Adapter);

#[pymethods]
impl Adapter {
    /// The names of the model's tensors that it changes.
    #[getter]
    fn modules(&self) -> Vec<&str> {
        self.0.modules().keys().map(String::as_str).collect()
    }

    fn __repr__(&self) -> String {
        format!("<tandem.Adapter of {} modules>", self.0.modules().len())
    }
}

/// What is added to a model's weights: adapters with their weights, and a calibration.
#[pyclass(frozen, module = "tandem")]
pub(crate) struct Composition(pub(crate) tandem_engine::Composition);

#[pymethods]
impl Composition {
    /// What the model is asked with, `{{ input }}` standing for the input; none where there is no such.
    #[getter]
    fn prompt(&self) -> Option<&str> {
        self.0.prompt()
    }

    fn __repr__(&self) -> &'static str {
        "<tandem.Composition>"
    }
}

/// How several adapters become one: the keyword arguments of `Model.compose`.
pub(crate) struct Merge {
    options: MergeOptions,
    lora_type: Option<AdapterType>,
}

impl Merge {
    pub(crate) fn read(options: Option<&Bound<'_, PyDict>>) -> Result<Merge> {
        let mut merge = Merge {
            options: MergeOptions::new(MergeMethod::Cat),
            lora_type: None,
        };
        for read in readers(options)? {
            match &*read.key {
                "merge" => {
                    let name: String = read.value()?;
                    let method = MergeMethod::from_name(&name);
                    let names = MergeMethod::ALL.map(MergeMethod::name);
                    merge.options.method = read.named(method, &names)?;
                }
                "lora_type" => {
                    let name: String = read.value()?;
                    let names = AdapterType::ALL.map(AdapterType::name);
                    merge.lora_type = Some(read.named(AdapterType::from_name(&name), &names)?);
                }
                "density" => merge.options.density = read.value()?,
                "rank" => merge.options.rank = Some(read.value()?),
                "seed" => merge.options.seed = read.value()?,
                _ => return read.unknown(),
            }
        }
        Ok(merge)
    }
}

/// The adapters, each times its weight, in one composition.
pub(crate) fn compose(
    model: &tandem_engine::Model,
    members: &[(&adapters::Adapter, f32)],
    merge: &Merge,
) -> Result<Composition> {
    let lora_type = merge.lora_type;
    let lora_type = lora_type.unwrap_or_else(|| AdapterType::for_model(model, false));
    if merge.options.method == MergeMethod::Cat {
        return packed(model, members, lora_type);
    }
    let (adapters, weights): (Vec<&adapters::Adapter>, Vec<f32>) = members.iter().copied().unzip();
    let pool = tandem_engine::threads::all();
    let compute = tandem_engine::Compute::new(tandem_engine::Level::detect(), &pool);
    let merged = adapters::merge(
        model.linears(),
        &adapters,
        &weights,
        &merge.options,
        compute,
    )?;
    packed(model, &[(&merged, 1.0)], lora_type)
}

fn packed(
    model: &tandem_engine::Model,
    members: &[(&adapters::Adapter, f32)],
    lora_type: AdapterType,
) -> Result<Composition> {
    let base = model.linears();
    let mut packed = Vec::new();
    for (adapter, weight) in members {
        packed.push((PackedAdapter::pack(base, adapter, lora_type)?, *weight));
    }
    let parts: Vec<_> = packed
        .iter()
        .map(|(part, weight)| (part, *weight))
        .collect();
    Ok(Composition(tandem_engine::Composition::new(base, &parts)?))
}

/// Makes a bundle by a recipe in TOML, as `tandem bundle create` does, and tells what is in it.
#[pyfunction]
pub(crate) fn create_bundle<'py>(
    py: Python<'py>,
    recipe: PathBuf,
    out: PathBuf,
) -> PyResult<Bound<'py, PyAny>> {
    let report = py.detach(|| -> Result<String> {
        tandem_tools::bundle::create_by(&recipe, &out)?;
        Ok(tandem_tools::bundle::report(&out)?.to_string())
    });
    from_json(py, &report?)
}

/// What is in a bundle, as `tandem bundle inspect --json` tells it.
#[pyfunction]
pub(crate) fn inspect_bundle(py: Python<'_>, path: PathBuf) -> PyResult<Bound<'_, PyAny>> {
    let report =
        py.detach(|| -> Result<String> { Ok(tandem_tools::bundle::report(&path)?.to_string()) });
    from_json(py, &report?)
}

/// Checks every byte of a bundle, and where a model is given whether it is for that. True where the model is the
/// very one that the bundle was made with, false where its weights are others, none where no model is given.
#[pyfunction]
#[pyo3(signature = (path, model=None))]
pub(crate) fn verify_bundle(
    py: Python<'_>,
    path: PathBuf,
    model: Option<PathBuf>,
) -> Result<Option<bool>> {
    py.detach(|| {
        tandem_tools::bundle::verify_whole(&path)?;
        let fit = model.map(|model| tandem_tools::bundle::fit(&path, &model));
        Ok(fit.transpose()?.map(|fit| fit == BaseMatch::Same))
    })
}

//! Bundles, adapters, compositions.

use std::path::PathBuf;

use pyo3::prelude::*;
use tandem_engine::adapters::{self, MergeMethod, MergeOptions};
use tandem_formats::bundle::BaseMatch;

use crate::arguments::from_json;
use crate::error::{Failure, Result};

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

    fn __repr__(&self) -> String {
        format!("<tandem.Composition {:?}>", self.0.id())
    }
}

/// How several adapters become one: the keyword arguments of `Model.compose`.
pub(crate) struct Merge<'a> {
    pub method: &'a str,
    pub density: f64,
    pub rank: Option<usize>,
    pub seed: u64,
}

/// The adapters, each times its weight, in one composition.
pub(crate) fn compose(
    model: &tandem_engine::Model,
    members: &[(&adapters::Adapter, f32)],
    merge: &Merge<'_>,
) -> Result<Composition> {
    let method = MergeMethod::from_name(merge.method).ok_or_else(|| {
        let names = MergeMethod::ALL.map(MergeMethod::name);
        Failure::Argument(format!(
            "there is no merge {:?}; there are {}",
            merge.method,
            names.join(", ")
        ))
    })?;
    if method == MergeMethod::Cat {
        return Ok(Composition(model.compose(members.iter().copied())?));
    }
    let mut options = MergeOptions::new(method);
    options.density = merge.density;
    options.rank = merge.rank;
    options.seed = merge.seed;
    let (adapters, weights): (Vec<&adapters::Adapter>, Vec<f32>) = members.iter().copied().unzip();
    let pool = tandem_engine::threads::all();
    let compute = tandem_engine::Compute::new(tandem_engine::Level::detect(), &pool);
    let merged = adapters::merge(model.linears(), &adapters, &weights, &options, compute)?;
    Ok(Composition(model.compose([(&merged, 1.0)])?))
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
        let (_, fit) = tandem_tools::bundle::check(&path, model.as_deref())?;
        Ok(fit.map(|fit| fit == BaseMatch::Same))
    })
}

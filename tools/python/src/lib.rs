//! The Tandem inference engine for Python: the module `tandem._tandem`, whose names `tandem` gives on.
//!
//! Whatever takes longer than a moment runs without Python's lock. Nothing here waits for a lock of its own
//! while it has Python's.

mod arguments;
mod bundle;
mod conversation;
mod error;
mod floats;
mod generation;
mod interrupt;
mod model;
mod process;
mod session;
mod training;
mod weights;

use pyo3::prelude::*;

/// The engine of `tandem`.
#[pymodule]
mod _tandem {
    #[pymodule_export]
    use crate::bundle::{
        Adapter, Bundle, Composition, create_bundle, inspect_bundle, verify_bundle,
    };
    #[pymodule_export]
    use crate::floats::Floats;
    #[pymodule_export]
    use crate::generation::{Generation, Timings};
    #[pymodule_export]
    use crate::model::Model;
    #[pymodule_export]
    use crate::session::Session;
    #[pymodule_export]
    use crate::training::{calibrate, train_lora};
    #[pymodule_export]
    use crate::weights::quantize;

    use super::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}

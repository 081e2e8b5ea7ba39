//! Quantizing.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyDict;
use tandem_tools::quantize::{Args, parse_target};

use crate::error::{Failure, Result};
use crate::interrupt::{Done, with_events};

/// Stores a model's weights in another type, as `tandem quantize` does: "Q4_0", "Q4_K_M", "Q8_0" ... `pure` stores
/// all matrices in it. `progress` is called with how many weights are done, and of how many. Gives the bytes of
/// the weights before and after, and which matrices got another type, if any.
#[pyfunction]
#[pyo3(signature = (input, output, r#type, *, pure=false, progress=None))]
pub(crate) fn quantize<'py>(
    py: Python<'py>,
    input: PathBuf,
    output: PathBuf,
    r#type: &str,
    pure: bool,
    progress: Option<Bound<'py, PyAny>>,
) -> Result<Bound<'py, PyDict>> {
    let args = Args {
        input,
        output,
        target: parse_target(r#type).map_err(Failure::Argument)?,
        pure,
    };
    let stop = std::sync::atomic::AtomicBool::new(false);
    let told = |done: Done| done.tell(progress.as_ref());
    let done = with_events(py, &stop, told, |sender| -> Result<_> {
        let pool = rayon::ThreadPoolBuilder::new().build();
        let pool = pool.map_err(anyhow::Error::from)?;
        let advance = &mut |n_done, n| {
            anyhow::ensure!(!stop.load(std::sync::atomic::Ordering::Relaxed), "stopped");
            Ok(sender.send(Done { n_done, n })?)
        };
        let fallbacks = Mutex::new(None);
        let note = |text: &str| {
            let place = fallbacks.lock();
            *place.unwrap_or_else(PoisonError::into_inner) = Some(text.to_string());
        };
        let done = pool.install(|| tandem_tools::quantize::quantize(&args, &note, advance))?;
        let fallbacks = fallbacks.into_inner();
        Ok((done, fallbacks.unwrap_or_else(PoisonError::into_inner)))
    })?;
    let (done, fallbacks) = done?;
    let report = PyDict::new(py);
    report.set_item("n_bytes", done.n_bytes)?;
    report.set_item("n_bytes_before", done.n_bytes_before)?;
    report.set_item("n_elements", done.n_elements)?;
    report.set_item("fallbacks", fallbacks)?;
    Ok(report)
}

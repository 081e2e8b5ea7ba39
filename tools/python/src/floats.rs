//! Numbers that Python, and NumPy, read where they lie.

use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

use crate::error::Result;

/// Rows of float32, as `[n_rows, n_cols]`, or one row, `[n]`; `numpy.asarray` takes them without a copy.
#[pyclass(frozen, module = "tandem")]
pub(crate) struct Floats {
    data: Vec<f32>,
    n_cols: usize,
    is_matrix: bool,
}

impl Floats {
    /// A row.
    pub(crate) fn row(data: Vec<f32>) -> Floats {
        Floats {
            n_cols: data.len(),
            data,
            is_matrix: false,
        }
    }

    /// Rows of `n_cols`, at least 1.
    pub(crate) fn rows(data: Vec<f32>, n_cols: usize) -> Floats {
        Floats {
            data,
            n_cols,
            is_matrix: true,
        }
    }
}

/// Room for so many floats.
pub(crate) fn room(n_rows: usize, n_cols: usize) -> Result<Vec<f32>> {
    let n = n_rows.saturating_mul(n_cols);
    let n_bytes = n.saturating_mul(size_of::<f32>());
    let mut data = Vec::new();
    // A system that overcommits would give more than there is, and end the process later.
    let is_there = tandem_engine::free_memory().is_none_or(|free| n_bytes < free);
    if !is_there || data.try_reserve_exact(n).is_err() {
        return Err(tandem_engine::SessionError::OutOfMemory { n_bytes }.into());
    }
    Ok(data)
}

#[pymethods]
impl Floats {
    /// (rows, columns), or (length,).
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        match self.is_matrix {
            true => PyTuple::new(py, [self.__len__(), self.n_cols]),
            false => PyTuple::new(py, [self.n_cols]),
        }
    }

    fn __len__(&self) -> usize {
        match self.is_matrix {
            true => self.data.len() / self.n_cols,
            false => self.n_cols,
        }
    }

    /// A row, or a number.
    fn __getitem__<'py>(&self, py: Python<'py>, index: isize) -> PyResult<Bound<'py, PyAny>> {
        let n = self.__len__();
        let place = match index < 0 {
            true => n.checked_add_signed(index),
            false => Some(index.unsigned_abs()),
        };
        let place = place.filter(|i| *i < n);
        let place = place.ok_or_else(|| PyIndexError::new_err("no such row"))?;
        match self.is_matrix {
            true => {
                let row = &self.data[place * self.n_cols..][..self.n_cols];
                Ok(PyList::new(py, row)?.into_any())
            }
            false => Ok(self.data[place].into_pyobject(py)?.into_any()),
        }
    }

    /// The numbers, as lists.
    fn tolist<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        match self.is_matrix {
            true => {
                let rows = self.data.chunks_exact(self.n_cols);
                let rows: PyResult<Vec<_>> = rows.map(|row| PyList::new(py, row)).collect();
                PyList::new(py, rows?)
            }
            false => PyList::new(py, &self.data),
        }
    }

    /// Where the numbers lie, for NumPy; they can be read only.
    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let interface = PyDict::new(py);
        interface.set_item("shape", self.shape(py)?)?;
        interface.set_item(
            "typestr",
            if cfg!(target_endian = "little") {
                "<f4"
            } else {
                ">f4"
            },
        )?;
        interface.set_item("data", (self.data.as_ptr() as usize, true))?;
        interface.set_item("version", 3)?;
        Ok(interface)
    }

    fn __repr__(&self) -> String {
        match self.is_matrix {
            true => format!("<tandem.Floats of {} x {}>", self.__len__(), self.n_cols),
            false => format!("<tandem.Floats of {}>", self.n_cols),
        }
    }
}

//! Weight matrices that keep their file's bytes alive.

use core::ops::Range;

use tandem_formats::{Bytes, DType};
use tandem_kernels::{Matrix, MatrixLayout};

/// A weight matrix `[n_rows, n_cols]`: type, shape and a range of the model's bytes, in use until the
/// last tensor of the model is gone.
#[derive(Clone, Debug)]
pub struct Tensor {
    dtype: DType,
    n_rows: usize,
    n_cols: usize,
    layout: MatrixLayout,
    data: Bytes,
}

impl Tensor {
    /// `None` where the bytes are no such matrix, or the type holds no weights.
    pub(crate) fn new(dtype: DType, n_rows: usize, n_cols: usize, data: Bytes) -> Option<Tensor> {
        let layout = MatrixLayout::new(dtype, n_rows, n_cols)?;
        (layout.n_bytes() == data.len()).then_some(Tensor {
            dtype,
            n_rows,
            n_cols,
            layout,
            data,
        })
    }

    /// The weights, for the kernels.
    #[inline]
    pub fn view(&self) -> Matrix<'_> {
        self.layout.view(&self.data)
    }

    /// The rows, one after the other, as they are stored.
    pub fn bytes(&self) -> &[u8] {
        &self.data
    }

    /// How the weights are stored.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Rows: the outputs of a linear.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Columns: the inputs of a linear.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// Bytes of all weights.
    pub fn n_bytes(&self) -> usize {
        self.data.len()
    }

    /// Whether both are the same range of the same bytes, as tied embeddings are.
    pub fn is_same(&self, other: &Tensor) -> bool {
        self.data.as_ptr_range() == other.data.as_ptr_range() && self.layout == other.layout
    }

    /// The rows `rows` alone; `None` where there are no such rows.
    pub(crate) fn rows(&self, rows: Range<usize>) -> Option<Tensor> {
        let row_bytes = self.dtype.row_bytes(self.n_cols)?;
        let bytes = rows.start.checked_mul(row_bytes)?..rows.end.checked_mul(row_bytes)?;
        if bytes.start > bytes.end || bytes.end > self.data.len() {
            return None;
        }
        Tensor::new(self.dtype, rows.len(), self.n_cols, self.data.slice(bytes))
    }
}

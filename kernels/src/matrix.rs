//! A weight matrix, checked once so that kernels cannot fail.

use crate::DType;

/// Type and shape of weights `[n_rows, n_cols]`, for whoever owns their bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixLayout {
    dtype: DType,
    n_rows: usize,
    n_cols: usize,
    n_bytes: usize,
}

impl MatrixLayout {
    /// `None` where rows are no whole blocks, their bytes overflow, or the type holds no weights
    /// (integers, F64).
    pub fn new(dtype: DType, n_rows: usize, n_cols: usize) -> Option<MatrixLayout> {
        let is_weight =
            dtype.is_quantized() || matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
        let n_bytes = dtype.row_bytes(n_cols)?.checked_mul(n_rows)?;
        is_weight.then_some(MatrixLayout {
            dtype,
            n_rows,
            n_cols,
            n_bytes,
        })
    }

    /// Bytes of all weights.
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// The weights that `data` holds.
    ///
    /// # Panics
    ///
    /// If that is not as many bytes.
    #[inline]
    pub fn view<'a>(&self, data: &'a [u8]) -> Matrix<'a> {
        assert_eq!(data.len(), self.n_bytes);
        Matrix {
            dtype: self.dtype,
            n_rows: self.n_rows,
            n_cols: self.n_cols,
            data,
        }
    }
}

/// Weights `w` `[n_rows, n_cols]` of any type, borrowed from a file.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    dtype: DType,
    n_rows: usize,
    n_cols: usize,
    data: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// A view of `data`, or `None` where it is not `n_rows` rows of whole blocks, or the type
    /// holds no weights (integers, F64).
    pub fn new(dtype: DType, n_rows: usize, n_cols: usize, data: &'a [u8]) -> Option<Matrix<'a>> {
        let layout = MatrixLayout::new(dtype, n_rows, n_cols)?;
        (layout.n_bytes == data.len()).then(|| layout.view(data))
    }

    /// How the weights are stored.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Rows: the outputs of a matmul.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Columns: the inputs of a matmul.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// Bytes of all weights.
    pub fn n_bytes(&self) -> usize {
        self.data.len()
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.n_cols / self.dtype.block_len() * self.dtype.block_bytes()
    }

    /// The bytes of row `r`.
    ///
    /// # Panics
    ///
    /// If there is no such row.
    pub fn row(&self, r: usize) -> &'a [u8] {
        let n = self.row_bytes();
        &self.data[r * n..][..n]
    }

    /// The rows `rows` alone.
    ///
    /// # Panics
    ///
    /// If the range is not inside the matrix.
    pub fn rows(&self, rows: core::ops::Range<usize>) -> Matrix<'a> {
        let n = self.row_bytes();
        Matrix {
            n_rows: rows.len(),
            data: &self.data[rows.start * n..rows.end * n],
            ..*self
        }
    }
}

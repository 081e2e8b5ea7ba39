//! One tensor of a GGUF file, and the check of its shape that reader and writer share.

use alloc::string::ToString;

use super::error::GgufError;
use super::limits::MAX_DIMS;
use tandem_kernels::DType;

/// One tensor: its data borrows the file's bytes.
#[derive(Clone, Copy, PartialEq)]
pub struct Tensor<'a> {
    /// The tensor's name, unique in its model.
    pub name: &'a str,
    /// How the elements are stored.
    pub dtype: DType,
    /// The rows, one after the other. It begins at a multiple of the file's alignment *within the
    /// file*; in memory it is as aligned as the bytes given to the reader are.
    pub data: &'a [u8],
    pub(super) shape: Shape,
}

impl Tensor<'_> {
    /// The 1 to 4 dimensions in ggml's order: the first is the contiguous one, the row's length.
    /// A matrix that maps `n_in` values to `n_out` has the shape `[n_in, n_out]`.
    pub fn shape(&self) -> &[usize] {
        self.shape.dims()
    }

    /// Number of elements.
    pub fn n_elements(&self) -> usize {
        self.shape.n_elements
    }

    /// Elements in a row: the first dimension.
    pub fn n_cols(&self) -> usize {
        self.shape.dims[0]
    }

    /// Number of rows: the product of the other dimensions.
    pub fn n_rows(&self) -> usize {
        self.shape.n_elements / self.shape.dims[0].max(1)
    }
}

impl core::fmt::Debug for Tensor<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        // Without the data, which may be gigabytes.
        f.debug_struct("Tensor")
            .field("name", &self.name)
            .field("dtype", &self.dtype)
            .field("shape", &self.shape())
            .field("n_bytes", &self.data.len())
            .finish()
    }
}

/// Checked dimensions and what follows from them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Shape {
    // Those past `n_dims` are 1.
    dims: [usize; MAX_DIMS],
    n_dims: usize,
    n_elements: usize,
    /// Bytes of the tensor's data.
    pub(super) n_bytes: usize,
}

impl Shape {
    /// The shape of tensor `name`. `offset` is where the first dimension stands, for errors.
    pub(super) fn new(
        name: &str,
        dims: &[u64],
        dtype: DType,
        offset: usize,
    ) -> Result<Shape, GgufError> {
        if dims.is_empty() || dims.len() > MAX_DIMS {
            return Err(GgufError::TensorDims {
                name: name.to_string(),
                offset: offset.saturating_sub(4),
                found: dims.len() as u64,
            });
        }
        let too_large = || GgufError::TensorSize {
            name: name.to_string(),
            offset,
        };
        let mut shape = Shape {
            dims: [1; MAX_DIMS],
            n_dims: dims.len(),
            n_elements: 1,
            n_bytes: 0,
        };
        for (i, (to, from)) in shape.dims.iter_mut().zip(dims).enumerate() {
            *to = usize::try_from(*from).map_err(|_| too_large())?;
            if *to == 0 {
                return Err(GgufError::ZeroDim {
                    name: name.to_string(),
                    offset: offset + 8 * i,
                });
            }
            shape.n_elements = shape.n_elements.checked_mul(*to).ok_or_else(too_large)?;
        }
        let n_cols = shape.dims[0];
        if !n_cols.is_multiple_of(dtype.block_len()) {
            return Err(GgufError::PartialBlock {
                name: name.to_string(),
                offset,
                dtype,
                n_cols,
            });
        }
        // Elements are a multiple of the row, hence of the block.
        shape.n_bytes = dtype.row_bytes(shape.n_elements).ok_or_else(too_large)?;
        Ok(shape)
    }

    pub(super) fn dims(&self) -> &[usize] {
        self.dims.get(..self.n_dims).unwrap_or(&self.dims)
    }
}

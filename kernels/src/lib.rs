//! Block formats and kernels: the arithmetic of the Tandem inference engine.
//!
//! `no_std`, no allocation: every function works on slices that the caller owns.
//! Start reading at [`DType`] (what a weight matrix may be stored as), then [`quant`] (how each
//! format unpacks), then the operations, which are named by what they compute.
//!
//! Conventions: `w` weights, `x` input, `y` output; shapes in comments are `[rows, columns]`,
//! row-major, the last index contiguous; counts carry their unit (`n_rows`, `n_bytes`).

#![cfg_attr(not(feature = "std"), no_std)]

mod dtype;
pub mod quant;

pub use dtype::DType;

//! Block formats and kernels: the arithmetic of the Tandem inference engine.
//!
//! ```
//! use tandem_kernels::{DType, Input, Level, Matrix, TileMut, matmul, quant};
//!
//! // Weights of 32 outputs and 32 inputs, stored in 8 bits, times one token.
//! let weights = [0.5; 32 * 32];
//! let mut bytes = vec![0; 32 * DType::Q8_0.row_bytes(32).unwrap()];
//! quant::quantize(DType::Q8_0, &weights, &mut bytes);
//! let w = Matrix::new(DType::Q8_0, 32, 32, &bytes).unwrap();
//! let (x, mut y) = ([1.0; 32], [0.0; 32]);
//! matmul(Level::detect(), &w, 0..32, &Input::F32(&x), &mut TileMut::new(&mut y, 32));
//! assert!((y[0] - 16.0).abs() < 0.1);
//! ```
//!
//! Start reading at [`DType`] (what a weight matrix may be stored as), then [`quant`] (how each
//! format unpacks), then the operations, which are named by what they compute.
//!
//! Conventions: `w` weights, `x` input, `y` output; shapes in comments are `[rows, columns]`,
//! row-major, the last index contiguous; counts carry their unit (`n_rows`, `n_bytes`).
//!
//! # What it promises
//!
//! No allocation: every function works on slices that the caller owns. With int8 inputs [`matmul()`] gives
//! the same bits on all levels, and everywhere a token's result does not depend on the others beside it.
//! Weights of any content are safe.
//!
//! # What it refuses
//!
//! Slices that do not have the length that their shape says are the caller's mistake: functions that
//! take several panic, as each says; what a file may have wrong is a `None` of [`Matrix::new`] and
//! [`DType::row_bytes`]. A [`Level`] that the CPU does not have cannot be made.
//!
//! # Cargo features
//!
//! - `std` (default): the CPU's instructions are asked for at run time, and [`ThreadPool`]. Without it
//!   the crate needs neither `std` nor `alloc`, and a level is picked by the target's features.

#![cfg_attr(not(feature = "std"), no_std)]

mod activation;
mod attention;
mod delta;
mod dtype;
mod elementwise;
mod input;
pub mod lanes;
mod level;
mod low_rank;
mod matmul;
mod matrix;
mod merge;
mod norm;
mod parallel;
pub mod quant;
mod rope;
mod scan;
mod simd;
mod softmax;
mod state;
#[cfg(feature = "std")]
mod thread_pool;

pub use activation::{Activation, Xielu, activate, gate, softplus};
pub use attention::{KEY_GROUP, KvHead, MAX_HEAD_DIM, MAX_QUERY_GROUP, attention, store_key};
pub use delta::{DeltaStep, delta_step};
pub use dtype::DType;
pub use elementwise::{add_product, multiply_by, product};
pub use input::{
    Input, Q8_BLOCK, Q8_GROUP, Q8_SUPER, Q8Rows, Q8Super, quantize_q8, quantize_q8_columns,
};
pub use level::Level;
pub use low_rank::{
    LOW_RANK_TILE, LowRank, LowRankInput, LowRankLayout, LowRankTerm, LowRankType, MAX_RANK,
    RankScale, add_low_rank, decode_low_rank, decode_rows, encode_low_rank, encode_rows,
    largest_magnitude, quantize_h,
};
pub use matmul::matmul;
pub use matrix::{Matrix, MatrixLayout};
pub use merge::{
    Largest, Magnitudes, WIDE_COLS, WideMatrix, add_gram, add_transposed_product, elected_mean,
    keep_largest, keep_largest_as_pytorch, keep_random, multiply, transpose, weighted_sum, widen,
};
pub use norm::{keep_outliers, layer_norm, rms_norm, rms_norm_in_place};
pub use parallel::{Handover, Limited, Pool, Serial, SharedMatrix, TileMut};
pub use rope::{RopeScaling, RopeStyle, rope, rope_angles, rope_frequencies};
pub use scan::{ScanStep, scan_step};
pub use simd::TILE_ROWS;
pub use softmax::{log_sum_exp, max, softmax};
#[cfg(feature = "std")]
pub use thread_pool::ThreadPool;

//! Block formats and kernels: the arithmetic of the Tandem inference engine.
//!
//! `no_std`, no allocation: every function works on slices that the caller owns.
//! Start reading at [`DType`] (what a weight matrix may be stored as), then [`quant`] (how each
//! format unpacks), then the operations, which are named by what they compute.
//!
//! Conventions: `w` weights, `x` input, `y` output; shapes in comments are `[rows, columns]`,
//! row-major, the last index contiguous; counts carry their unit (`n_rows`, `n_bytes`).

#![cfg_attr(not(feature = "std"), no_std)]

mod activation;
mod attention;
mod combine;
mod dtype;
mod factors;
mod input;
pub mod lanes;
mod level;
mod low_rank;
mod matmul;
mod matrix;
mod norm;
mod parallel;
mod product;
pub mod quant;
mod rope;
mod select;
mod simd;
mod softmax;
#[cfg(feature = "std")]
mod thread_pool;

pub use activation::{Activation, gate};
pub use attention::{KEY_GROUP, KvHead, MAX_HEAD_DIM, MAX_QUERY_GROUP, attention, store_key};
pub use combine::{Largest, Magnitudes, elected_mean, keep_largest, keep_random, weighted_sum};
pub use dtype::DType;
pub use factors::{decode_low_rank, decode_rows, encode_low_rank, encode_rows, largest_magnitude};
pub use input::{
    Input, Q8_BLOCK, Q8_GROUP, Q8_SUPER, Q8Rows, Q8Super, quantize_q8, quantize_q8_columns,
};
pub use level::Level;
pub use low_rank::{
    LOW_RANK_TILE, LowRank, LowRankInput, LowRankTerm, LowRankType, MAX_RANK, RankScale,
    add_low_rank, quantize_h,
};
pub use matmul::matmul;
pub use matrix::Matrix;
pub use norm::{layer_norm, rms_norm, rms_norm_in_place};
pub use parallel::{Handover, Limited, Pool, Serial, SharedMatrix, TileMut};
pub use product::{WIDE_COLS, add_gram, add_transposed_product, multiply, transpose, widen};
pub use rope::{RopeScaling, RopeStyle, rope, rope_angles, rope_frequencies};
pub use select::keep_largest_as_pytorch;
pub use simd::TILE_ROWS;
pub use softmax::softmax;
#[cfg(feature = "std")]
pub use thread_pool::ThreadPool;

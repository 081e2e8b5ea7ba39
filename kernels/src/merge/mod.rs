//! What merging adapters into one takes, and running a model does not: weighted sums and elections,
//! selection of the largest, matrix products.

mod combine;
mod product;
mod select;

pub use combine::{Largest, Magnitudes, elected_mean, keep_largest, keep_random, weighted_sum};
pub use product::{
    WIDE_COLS, WideMatrix, add_gram, add_transposed_product, multiply, transpose, widen,
};
pub use select::keep_largest_as_pytorch;

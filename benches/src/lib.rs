//! Shared by the microbenchmarks.

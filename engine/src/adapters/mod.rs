//! LoRA adapters: from files to what the forward pass adds to its linears.
//!
//! An [`Adapter`] is what a file holds, in the terms of a base model. Adapters can be merged into
//! one by [`merge()`], as PEFT does. [`PackedAdapter`] is an adapter, or a [calibration], stored as
//! the kernels want it, and a [`Composition`] a weighted list of such: with weights `w_i`, scales
//! `s_i` and a calibration's vector `p`, one linear computes
//!
//! ```text
//! y = W x + sum_i w_i s_i B_i (A_i x) + p
//! ```
//!
//! which is the merge `cat`, exactly and without touching the adapters' bytes, so that any number
//! of compositions share them. The low-rank and the weight-bias calibration are terms of the sum.

mod adapter;
mod bundle;
pub mod calibration;
mod composition;
mod error;
#[cfg(feature = "merge")]
mod merge;
mod packed;
#[cfg(feature = "merge")]
mod slerp;
#[cfg(feature = "merge")]
mod svd;

pub use adapter::Adapter;
pub use bundle::{Bundle, from_bundle, from_bundled_adapter};
pub use calibration::Calibration;
pub use composition::Composition;
pub(crate) use composition::LinearTerms;
pub use error::CompositionError;
#[cfg(feature = "merge")]
pub use merge::{MergeMethod, MergeOptions, merge, merge_packed};
pub use packed::{AdapterType, ContentId, PackedAdapter, PackedFactors, Users};
pub use tandem_kernels::LowRankType;

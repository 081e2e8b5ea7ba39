//! Running linears: what they run on, their inputs, several at once, what adapters add to them.

mod activations;
mod batch;
mod compute;
mod linear;
mod low_rank_pass;
mod routes;
mod scratch;

pub(crate) use activations::LinearInput;
pub use batch::MAX_SPANS;
#[cfg(feature = "std")]
pub(crate) use batch::Size;
pub(crate) use batch::{Batch, BatchPart};
pub use compute::Compute;
pub(crate) use compute::{Step, TOKENS_PER_TASK};
#[cfg(feature = "std")]
pub(crate) use linear::outputs_per_task;
pub(crate) use linear::{GatedBuffers, GatedPair, Job, matmul_gated, matmul_many};
pub(crate) use low_rank_pass::{Ranks, batch_floats, record_floats};
pub(crate) use routes::Routes;
pub(crate) use scratch::{RopeAngles, Scratch};

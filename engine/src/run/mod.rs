//! Running models: the worker that evaluates sequences, the session that answers texts.

mod draft;
#[cfg(feature = "std")]
mod follow;
mod generate;
#[cfg(feature = "std")]
mod memory;
mod options;
mod pool;
mod sampler;
mod session;
mod stop;
#[cfg(feature = "std")]
pub mod threads;
mod worker;

pub use draft::{DraftCounts, Drafts, MAX_DRAFT};
#[cfg(feature = "std")]
pub use generate::Timings;
pub use generate::{Generation, StopReason, TokenFilter};
#[cfg(feature = "std")]
pub use memory::{GroupLimit, free_memory, group_limits};
pub use options::{MAX_BATCH, SessionOptions};
pub use pool::SharedPool;
pub use sampler::{MAX_PENALTY_WINDOW, Sampler, Sampling, argmax};
pub use session::{Memory, Session, SessionBuilder};
pub use stop::{Released, StopStrings};
pub use worker::{Span, Worker};

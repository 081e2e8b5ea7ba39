//! The Tandem inference engine: language models from GGUF files on CPUs, with several LoRA adapters at
//! once.
//!
//! ```no_run
//! use tandem_engine::{Model, Sampling};
//!
//! let model = Model::open("model.gguf")?;
//! let mail = model.bundle("mail.tandem")?.composition("reply-witty")?;
//! let mut session = model.session().composition(&mail).build()?;
//! for piece in session.generate("A letter ...", &Sampling::default())? {
//!     print!("{}", piece?);
//! }
//! # Ok::<(), tandem_engine::Error>(())
//! ```
//!
//! A [`Model`] owns its weights, a [`Composition`] what it adds to them; both are cheap to copy and to
//! share between threads. A [`Session`] answers one text at a time. Whoever serves many at once takes a
//! [`Sequence`] for each and a [`Worker`] that evaluates several of them in one pass, each with its own
//! composition.
//!
//! The way through the engine, for readers: [`Session::generate`] picks tokens, [`Worker::forward`]
//! runs rows of tokens through the layers, which are made of [`blocks`]; these run their linears over
//! the threads, and the kernels compute.
//!
//! # What it promises
//!
//! Files and prompts are not trusted: what is malformed, misshapen or not supported is an error by
//! name, never a panic, and nothing is passed over that would change a result. A sequence's result does
//! not depend on who shares its pass. A session's step allocates nothing.
//!
//! # Cargo features
//!
//! - `std` (default): threads, memory-mapped files, byte-level vocabularies, chat templates. Without it
//!   the crate needs `alloc` only: models and bundles are byte slices, and texts are encoded by
//!   SentencePiece vocabularies.
//! - `merge` (default): adapters merged into one by TIES, DARE, SVD and others; brings a linear algebra
//!   library. The plain sum of adapters does not need it.
//! - `constraint`: answers held to JSON schemas and regular expressions; brings llguidance. Without it a
//!   [`TokenFilter`] of your own does.
//! - `c-api`: the interface for C, see `include/tandem.h`.

#![cfg_attr(not(feature = "std"), no_std)]
#![deny(unsafe_code)]

extern crate alloc;

pub mod adapters;
pub mod blocks;
mod buffer;
#[cfg(feature = "c-api")]
pub mod c_api;
pub mod chat;
#[cfg(feature = "constraint")]
pub mod constraint;
mod error;
mod exec;
pub mod model;
mod run;
mod sequence;
pub mod tokenizer;

pub use adapters::{
    Adapter, AdapterType, Bundle, Composition, CompositionError, ContentId, PackedAdapter,
};
pub use chat::{Message, Prompt};
pub use error::{Error, ModelError, SessionError};
pub use exec::{Compute, MAX_SPANS};
pub use model::{Architecture, Config, LinearId, Linears, Model, NormKind};
pub use run::{
    DraftCounts, Drafts, Generation, MAX_BATCH, MAX_DRAFT, MAX_PENALTY_WINDOW, Memory, Released,
    Sampler, Sampling, Session, SessionBuilder, SessionOptions, SharedPool, Span, StopReason,
    StopStrings, TokenFilter, Worker, argmax,
};
#[cfg(feature = "std")]
pub use run::{GroupLimit, Timings, free_memory, group_limits, threads};
pub use sequence::{Sequence, Snapshot};
pub use tandem_formats as formats;
#[cfg(feature = "std")]
pub use tandem_kernels::ThreadPool;
pub use tandem_kernels::{DType, Level, Pool, Serial};

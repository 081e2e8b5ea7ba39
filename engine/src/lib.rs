//! The Tandem inference engine: a model from a GGUF file, a session that runs it, a sampler that
//! picks tokens.
//!
//! The way through it: [`Model::load`] checks a file's metadata ([`Config`]) and borrows its
//! tensors ([`weights`]); a [`Session`] owns everything that changes (the KV cache, the scratch
//! buffers) and evaluates tokens; `forward` and `layer` are the network itself.
//!
//! `no_std` with `alloc`; the feature `std` adds threads, files, chat templates, and turning text into
//! tokens by byte-level vocabularies.

#![cfg_attr(not(feature = "std"), no_std)]
#![deny(unsafe_code)]

extern crate alloc;

pub mod adapters;
#[cfg(feature = "c-api")]
pub mod c_api;
#[cfg(feature = "std")]
pub mod chat_template;
mod config;
mod error;
mod forward;
mod generate;
mod kv_cache;
mod layer;
mod linear;
#[cfg(feature = "std")]
mod memory;
pub mod prompt;
mod rank_pass;
mod sampler;
mod scratch;
mod session;
#[cfg(feature = "std")]
pub mod threads;
pub mod tokenizer;
pub mod weights;

pub use adapters::{Adapter, AdapterType, Composition, CompositionError, ContentId, PackedAdapter};
pub use config::{Arch, Config, LocalAttention, NormKind};
pub use error::{ModelError, SessionError};
pub use generate::{StopReason, generate};
pub use kv_cache::KvCache;
#[cfg(feature = "std")]
pub use memory::free_memory;
pub use sampler::{MAX_PENALTY_WINDOW, Sampler, SamplerOptions, argmax};
pub use session::{MAX_BATCH, Memory, Session, SessionOptions};
#[cfg(feature = "std")]
pub use tandem_kernels::ThreadPool;
pub use tandem_kernels::{DType, Level, Pool, Serial};
pub use weights::Model;

//! File formats of the Tandem inference engine: [GGUF](gguf), the container of models,
//! [LoRA adapters](adapter), and [bundles](bundle) of such.
//!
//! ```
//! use tandem_formats::{Gguf, Value, Writer};
//!
//! let mut writer = Writer::new();
//! writer.add("general.architecture", Value::Str("llama"))?;
//! let bytes = writer.to_vec(&[])?;
//! let gguf = Gguf::parse(&bytes)?;
//! assert_eq!(gguf.get_str("general.architecture")?, Some("llama"));
//! # Ok::<(), tandem_formats::GgufError>(())
//! ```
//!
//! [`Gguf::parse`] reads a file from a byte slice, [`Writer`] writes one; [`bundle::Bundle::parse`] and
//! [`bundle::Contents`] do so for bundles.
//!
//! # What it promises
//!
//! Files are not trusted: every count, length, offset and product is checked before it is used, nothing
//! is allocated because a file says so, and what is wrong is told by an error that names it, never by a
//! panic. Files are replaced whole or not at all.
//!
//! # What it refuses
//!
//! Anything that is malformed, doubled, cut off or of a version not known, also where a reader could go
//! on: [`GgufError`], [`BundleError`] and [`AdapterError`] say what. A bundle's sections are checked
//! against their checksums when they are used.
//!
//! # Cargo features
//!
//! - `std` (default): `file` maps files into memory, joins the parts of split models and replaces files
//!   atomically. Without it the crate needs `alloc` only.

#![cfg_attr(not(feature = "std"), no_std)]
#![deny(unsafe_code)]

extern crate alloc;

pub mod adapter;
pub mod bundle;
#[cfg(feature = "std")]
pub mod file;
pub mod gguf;
#[cfg(feature = "std")]
mod mmap;

pub use adapter::AdapterError;
pub use bundle::BundleError;
pub use bytes::Bytes;
#[cfg(feature = "std")]
pub use file::{FileError, GgufFiles, write_atomically};
#[cfg(feature = "std")]
pub use gguf::DataWriter;
pub use gguf::{Array, Element, Gguf, GgufError, Tensor, Value, ValueType, Writer};
#[cfg(feature = "std")]
pub use mmap::Mapping;
pub use tandem_kernels::DType;

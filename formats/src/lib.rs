//! File formats of the Tandem inference engine: [GGUF](gguf), the container of models, and
//! [LoRA adapters](adapter), and [bundles](bundle) of such.
//!
//! [`Gguf::parse`] reads a file from a byte slice, [`Writer`] writes one. With the feature `std`,
//! `file` maps files into memory, joins the parts of split models and replaces files atomically;
//! without it the crate needs `alloc` only.
//!
//! Files are not trusted: every count, length, offset and product is checked before it is used,
//! and what is wrong is told by a [`GgufError`] or a [`BundleError`].

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
#[cfg(feature = "std")]
pub use file::{FileError, GgufFiles, write_atomically};
#[cfg(feature = "std")]
pub use gguf::DataWriter;
pub use gguf::{Array, Element, Gguf, GgufError, Tensor, Value, ValueType, Writer};
#[cfg(feature = "std")]
pub use mmap::Mapping;
pub use tandem_kernels::DType;

//! Adapter bundles: LoRA adapters for one base model, the compositions they are used in, and the
//! learned calibrations of those, in one file that is mapped into memory and used in place.
//!
//! A bundle is a GGUF file; `BUNDLE.md` beside this crate's manifest specifies what is in it.
//! [`Bundle::parse`] opens one, [`Contents`] is what it holds and also what is written:
//!
//! ```
//! use tandem_formats::bundle::{BaseFingerprint, Bundle, Contents};
//!
//! let contents = Contents {
//!     name: "empty".into(),
//!     architecture: "llama".into(),
//!     base_name: None,
//!     base: BaseFingerprint::default(),
//!     adapters: Vec::new(),
//!     calibrations: Vec::new(),
//!     compositions: Vec::new(),
//! };
//! let file = contents.to_vec()?;
//! assert_eq!(Bundle::parse(file)?.contents(), &contents);
//! # Ok::<(), tandem_formats::BundleError>(())
//! ```

mod check;
mod contents;
mod error;
mod fingerprint;
pub mod limits;
mod read;
mod verify;
mod write;

pub use check::is_prompt;
pub use contents::{
    Adapter, Calibration, CalibrationKind, Composition, Contents, Correction, FACTOR_TYPES,
    Factors, Matrix, Member, Merge, MergeMethod, MergedFactors, low_rank_type,
};
pub use error::BundleError;
pub use fingerprint::BaseFingerprint;
pub use read::Bundle;
pub use verify::{BaseMatch, Parts};

/// The version of the format that is read and written.
pub const VERSION: u32 = 1;
/// `general.type` of a bundle.
pub const GENERAL_TYPE: &str = "adapter_bundle";
/// Where a composition's prompt takes the input.
pub const INPUT_MARK: &str = "{{ input }}";

/// The alignment of the tensor data: a cache line, so that no tile of a packed B begins in the
/// middle of one more often than it must.
const ALIGNMENT: u32 = 64;
/// The tensor of the checksums, the last one in the file.
const CHECKSUMS: &str = "bundle.checksums";

/// The key of a property of the adapter, calibration or composition (`what`) called `name`.
fn key(what: &str, name: &str, property: &str) -> alloc::string::String {
    alloc::format!("bundle.{what}.{name}.{property}")
}

/// The name of a tensor of a section.
fn tensor_name(section: &str, name: &str, linear: &str, factor: &str) -> alloc::string::String {
    alloc::format!("{section}.{name}.{linear}.{factor}")
}

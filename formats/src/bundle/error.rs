//! Everything that can be wrong with an adapter bundle.

use alloc::string::String;
use core::fmt;

use tandem_kernels::DType;

use crate::GgufError;

/// Why a bundle was refused, by the reader or by the writer, or does not fit its base.
///
/// Names and keys are those of the file; [`Display`](fmt::Display) prints them escaped, as they are
/// not trusted.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum BundleError {
    /// The GGUF file that carries the bundle, or the base, is not valid.
    Gguf(GgufError),
    /// A GGUF file of another kind: its `general.type` is not [`GENERAL_TYPE`](super::GENERAL_TYPE).
    NotABundle {
        /// The type found, `None` where the file has none, as a model need not.
        found: Option<String>,
    },
    /// A version of the format other than [`VERSION`](super::VERSION).
    Version {
        /// The version found.
        found: u32,
    },
    /// A metadata key that must be there is not.
    MissingKey {
        /// The key.
        key: String,
    },
    /// A metadata key that this version of the format does not have.
    UnknownKey {
        /// The key.
        key: String,
    },
    /// A metadata value that is none of those the format has: an unknown kind of calibration or
    /// method of merging, a hash that is no 32 hexadecimal digits, text that is not UTF-8.
    Value {
        /// The key.
        key: String,
        /// The value found, lossily as text.
        found: String,
        /// What is valid.
        wanted: &'static str,
    },
    /// Arrays that describe the same things and differ in length.
    Lengths {
        /// The key of the array that disagrees.
        key: String,
        /// Its length.
        found: usize,
        /// The length of the others.
        wanted: usize,
    },
    /// A tensor that must be there is not.
    MissingTensor {
        /// The tensor's name.
        name: String,
    },
    /// A tensor that nothing in the bundle uses.
    UnknownTensor {
        /// The tensor's name.
        name: String,
    },
    /// A tensor of a type that is not valid in its place.
    TensorType {
        /// The tensor's name.
        name: String,
        /// Its type.
        found: DType,
        /// What is valid.
        wanted: &'static str,
    },
    /// A tensor of another shape than its place calls for.
    TensorShape {
        /// The tensor's name.
        name: String,
        /// Its first two dimensions in ggml's order; the second is 0 unless there are two.
        found: [usize; 2],
        /// What is needed; 0 stands for any.
        wanted: [usize; 2],
    },
    /// A tensor whose data does not follow that of the tensor before it in the file's list, or
    /// that stands among those of another section.
    TensorOrder {
        /// The tensor's name.
        name: String,
    },
    /// Bytes after the last tensor that are no padding.
    Trailing {
        /// Where they begin.
        offset: usize,
    },
    /// A name that is empty, too long or of other characters than the format allows.
    Name {
        /// What is called so.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// Text longer than [`MAX_TEXT_BYTES`](super::limits::MAX_TEXT_BYTES).
    TextTooLong {
        /// What it is.
        what: &'static str,
        /// Bytes found.
        found: usize,
    },
    /// Two things of a kind with one name.
    Duplicate {
        /// The kind.
        what: &'static str,
        /// The name.
        name: String,
        /// The adapter, calibration or composition they are in, empty for these themselves.
        within: String,
    },
    /// More of something than the format's [limit](super::limits).
    TooMany {
        /// What is counted.
        what: &'static str,
        /// The adapter, calibration or composition it is counted in, empty for these themselves.
        within: String,
        /// The count found.
        found: usize,
        /// The largest count accepted.
        max: usize,
    },
    /// An adapter without linears, a calibration without modules, a composition without members.
    Empty {
        /// Adapter, calibration or composition.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// Factors in a type that does not fit them, or is not one of
    /// [`FACTOR_TYPES`](super::FACTOR_TYPES).
    FactorType {
        /// The adapter or composition.
        name: String,
        /// The linear; empty where none of them would fit.
        linear: String,
        /// The type.
        dtype: DType,
        /// Elements of the linear's input.
        n_in: usize,
    },
    /// A rank of zero or above [`MAX_RANK`](super::limits::MAX_RANK), an empty output, or sizes
    /// that overflow.
    FactorShape {
        /// The adapter or composition.
        name: String,
        /// The linear.
        linear: String,
    },
    /// A matrix given to the writer with more or fewer bytes than its shape and type call for.
    MatrixSize {
        /// The adapter, calibration or composition.
        name: String,
        /// The linear or module.
        linear: String,
    },
    /// A scale or weight that is infinite or not a number.
    NotFinite {
        /// What it is.
        what: &'static str,
        /// The adapter or composition.
        name: String,
    },
    /// A linear that has other dimensions in one adapter than in another, or than a calibration
    /// needs; they cannot all be for one base.
    Disagree {
        /// What disagrees with those before it.
        what: &'static str,
        /// The adapter, calibration or composition.
        name: String,
        /// The linear or module.
        linear: String,
    },
    /// A property that the method of merging needs and does not have, or has and does not use, or
    /// that is out of range.
    MergeOption {
        /// The composition.
        name: String,
        /// The method.
        method: &'static str,
        /// The property.
        option: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A composition of an adapter that the bundle does not hold.
    MissingMember {
        /// The composition.
        composition: String,
        /// The adapter.
        adapter: String,
    },
    /// A composition with a calibration that the bundle does not hold.
    MissingCalibration {
        /// The composition.
        composition: String,
        /// The calibration.
        calibration: String,
    },
    /// A projection on a composition whose adapters are not concatenated.
    ProjectionWithoutCat {
        /// The composition.
        composition: String,
    },
    /// A prompt with no place for the input, or with other `{{ }}` or `{% %}`.
    Prompt {
        /// The composition.
        composition: String,
    },
    /// No adapter, calibration or composition of this name.
    NoSuch {
        /// What was asked for.
        what: &'static str,
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A section whose bytes are not those that were written.
    Damaged {
        /// The kind of section: header, adapter, calibration or composition.
        what: &'static str,
        /// Its name, empty for the header.
        name: String,
    },
    /// The bundle is for another base model.
    OtherBase {
        /// The base that the bundle names.
        wanted: String,
        /// What differs.
        differs: &'static str,
    },
    /// A linear that the base does not have, or has with other dimensions.
    BaseLinear {
        /// The adapter, calibration or composition.
        name: String,
        /// The linear or module.
        linear: String,
    },
}

impl From<GgufError> for BundleError {
    fn from(e: GgufError) -> Self {
        BundleError::Gguf(e)
    }
}

impl core::error::Error for BundleError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            BundleError::Gguf(e) => Some(e),
            _ => None,
        }
    }
}

impl fmt::Display for BundleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use BundleError::*;
        match self {
            // The source is left to the chain of sources.
            Gguf(_) => f.write_str("not a valid GGUF file"),
            NotABundle { found: Some(found) } => write!(
                f,
                "not an adapter bundle: general.type is {found:?} instead of {:?}",
                super::GENERAL_TYPE
            ),
            NotABundle { found: None } => {
                f.write_str("not an adapter bundle: the file has no general.type")
            }
            Version { found } => write!(
                f,
                "version {found} of the bundle format; version {} is read",
                super::VERSION
            ),
            MissingKey { key } => write!(f, "the file has no key {key:?}"),
            UnknownKey { key } => write!(f, "key {key:?} is not part of the format"),
            Value { key, found, wanted } => {
                write!(f, "key {key:?} is {found:?}; {wanted} is needed")
            }
            Lengths { key, found, wanted } => {
                write!(f, "key {key:?} has {found} elements; {wanted} are needed")
            }
            MissingTensor { name } => write!(f, "the file has no tensor {name:?}"),
            UnknownTensor { name } => write!(f, "nothing in the bundle uses tensor {name:?}"),
            TensorType {
                name,
                found,
                wanted,
            } => write!(f, "tensor {name:?} is of type {found}; {wanted} is needed"),
            TensorShape {
                name,
                found,
                wanted,
            } => write!(
                f,
                "tensor {name:?} has shape {found:?}; {wanted:?} is needed, 0 standing for any"
            ),
            TensorOrder { name } => {
                write!(f, "tensor {name:?} is not in the place of its section")
            }
            Trailing { offset } => write!(f, "bytes after the last tensor, at offset {offset}"),
            Name { what, name } => match *what {
                "linear" | "module" => write!(
                    f,
                    "{what} {name:?}: a name has 1 to {} printable characters",
                    super::limits::MAX_LINEAR_BYTES
                ),
                _ => write!(
                    f,
                    "{what} {name:?}: a name has 1 to {} letters, digits, - or _",
                    super::limits::MAX_NAME_BYTES
                ),
            },
            TextTooLong { what, found } => write!(
                f,
                "{what} of {found} bytes; at most {} are accepted",
                super::limits::MAX_TEXT_BYTES
            ),
            Duplicate { what, name, within } => {
                write!(f, "{what} {name:?} occurs twice{}", In(within))
            }
            TooMany {
                what,
                within,
                found,
                max,
            } => write!(
                f,
                "{found} {what}{}; at most {max} are accepted",
                In(within)
            ),
            Empty { what, name } => write!(f, "{what} {name:?} is empty"),
            FactorType {
                name,
                linear,
                dtype,
                ..
            } if linear.is_empty() => write!(
                f,
                "{name:?}: factors cannot be stored in {dtype}; F32, F16, Q8_0 and Q4_0 are supported"
            ),
            FactorType {
                name,
                linear,
                dtype,
                n_in,
            } => write!(
                f,
                "{name:?}, {linear:?}: an input of {n_in} elements is no whole number of {dtype} blocks of {}; use F16",
                dtype.block_len()
            ),
            FactorShape { name, linear } => write!(
                f,
                "{name:?}, {linear:?}: the rank must be from 1 to {} and the output not empty",
                super::limits::MAX_RANK
            ),
            MatrixSize { name, linear } => write!(
                f,
                "{name:?}, {linear:?}: the data is not of the size that shape and type call for"
            ),
            NotFinite { what, name } => write!(f, "{name:?} has a {what} that is no finite number"),
            Disagree { what, name, linear } => write!(
                f,
                "{what} {name:?}: {linear:?} has other dimensions than elsewhere in the bundle"
            ),
            MergeOption {
                name,
                method,
                option,
                problem,
            } => write!(
                f,
                "composition {name:?}, merge {method}: {option} {problem}"
            ),
            MissingMember {
                composition,
                adapter,
            } => write!(
                f,
                "composition {composition:?} needs adapter {adapter:?}, which the bundle does not hold"
            ),
            MissingCalibration {
                composition,
                calibration,
            } => write!(
                f,
                "composition {composition:?} needs calibration {calibration:?}, which the bundle does not hold"
            ),
            ProjectionWithoutCat { composition } => write!(
                f,
                "composition {composition:?}: a projection goes with merge cat only"
            ),
            Prompt { composition } => write!(
                f,
                "composition {composition:?}: the prompt must hold {} and no other {{{{ }}}} or {{% %}}",
                super::INPUT_MARK
            ),
            NoSuch { what, name, known } if known.is_empty() => {
                write!(f, "no {what} {name:?}: the bundle has none")
            }
            NoSuch { what, name, known } => {
                write!(f, "no {what} {name:?} in the bundle; it has {known}")
            }
            Damaged { what, name } if name.is_empty() => write!(f, "the {what} is damaged"),
            Damaged { what, name } => write!(f, "{what} {name:?} is damaged"),
            OtherBase { wanted, differs } => write!(
                f,
                "the bundle is for another base model, {wanted:?}: {differs} differ"
            ),
            BaseLinear { name, linear } => write!(
                f,
                "{name:?}: the base has no {linear:?} of the same dimensions"
            ),
        }
    }
}

/// " in NAME", nothing for an empty name.
struct In<'a>(&'a str);

impl fmt::Display for In<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            "" => Ok(()),
            name => write!(f, " in {name:?}"),
        }
    }
}

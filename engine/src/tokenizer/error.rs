//! Everything that can be wrong with a vocabulary, or with a text for it.

use alloc::string::String;
use core::fmt;

use tandem_formats::gguf::{GgufError, ValueType};

/// Why a file's tokenizer was refused, or why a text or an id does not fit it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A metadata value could not be read.
    Gguf(GgufError),
    /// The file says that it has no tokenizer, or has no `tokenizer.ggml.model`.
    NoTokenizer,
    /// `tokenizer.ggml.model` names a kind of tokenizer that is not supported.
    UnsupportedModel {
        /// The name in the file.
        name: String,
    },
    /// `tokenizer.ggml.pre` names a pre-tokenizer that is not known.
    UnknownPreTokenizer {
        /// The name in the file.
        name: String,
    },
    /// Metadata that this kind of tokenizer needs is absent.
    MissingKey {
        /// The key.
        key: &'static str,
    },
    /// An array has elements of another type than its key calls for.
    ElementType {
        /// The key.
        key: &'static str,
        /// What is needed.
        wanted: &'static str,
        /// The type in the file.
        found: ValueType,
    },
    /// An array has another length than the list of tokens.
    Count {
        /// The key.
        key: &'static str,
        /// The number of tokens.
        wanted: usize,
        /// The array's length.
        found: usize,
    },
    /// A byte-level vocabulary, by which text is encoded with the feature `std` only.
    NeedsStd,
    /// The list of tokens is empty.
    NoTokens,
    /// The texts of the tokens take more than 4 GB.
    TooLong,
    /// A token's type is a number without a meaning.
    UnknownKind {
        /// The token.
        id: u32,
        /// The number in the file.
        found: i32,
    },
    /// A token of kind byte whose text is not of the form `<0x0A>`.
    ByteToken {
        /// The token.
        id: u32,
    },
    /// A token of a byte-level vocabulary is not UTF-8.
    TokenUtf8 {
        /// The token.
        id: u32,
    },
    /// The text of a control or user-defined token is longer than any real one.
    SpecialLength {
        /// The token.
        id: u32,
        /// Bytes of its text.
        n_bytes: usize,
    },
    /// A merge is not two texts with a space between them.
    Merge {
        /// Its index in the list of merges.
        index: usize,
    },
    /// The merges do not fit the tokens: one names a token that does not exist.
    MergeToken {
        /// What the BPE library says, with the token's text.
        message: String,
    },
    /// A pre-tokenizer's expression was refused by the regex library.
    Regex {
        /// What the library says.
        message: String,
    },
    /// The BPE library failed on a text.
    Bpe {
        /// What the library says.
        message: String,
    },
    /// The text has a byte for which the vocabulary has no token, not even an unknown one.
    NoTokenForByte {
        /// The byte.
        byte: u8,
    },
    /// The file wants a token added to every text but does not say which.
    NoSpecial {
        /// The key that should.
        key: &'static str,
    },
    /// An id is not below the number of tokens.
    IdOutOfRange {
        /// The id.
        id: u32,
        /// The number of tokens.
        n_tokens: usize,
    },
}

impl fmt::Display for TokenizerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use TokenizerError::*;
        match self {
            Gguf(e) => write!(f, "the tokenizer's metadata cannot be read: {e}"),
            NoTokenizer => f.write_str("the file has no tokenizer"),
            UnsupportedModel { name } => write!(
                f,
                "tokenizer.ggml.model is {name:?}; \"llama\" and \"gpt2\" are supported"
            ),
            UnknownPreTokenizer { name } => {
                write!(
                    f,
                    "tokenizer.ggml.pre is {name:?}, an unknown pre-tokenizer"
                )
            }
            MissingKey { key } => write!(f, "the tokenizer needs {key}, which is absent"),
            ElementType { key, wanted, found } => {
                write!(f, "{key} is an array of {found}; {wanted} is needed")
            }
            Count { key, wanted, found } => write!(
                f,
                "{key} has {found} elements, but there are {wanted} tokens"
            ),
            NeedsStd => f.write_str(
                "this build encodes text by SentencePiece vocabularies only, not byte-level ones",
            ),
            NoTokens => f.write_str("tokenizer.ggml.tokens is empty"),
            TooLong => f.write_str("tokenizer.ggml.tokens takes more than 4 GB"),
            UnknownKind { id, found } => {
                write!(f, "token {id} has type {found}; 0 to 6 are known")
            }
            ByteToken { id } => write!(f, "token {id} is a byte, but its text is not <0xNN>"),
            TokenUtf8 { id } => write!(f, "token {id} is not UTF-8"),
            SpecialLength { id, n_bytes } => {
                write!(f, "special token {id} has a text of {n_bytes} bytes")
            }
            Merge { index } => write!(
                f,
                "element {index} of tokenizer.ggml.merges is not a pair of texts"
            ),
            MergeToken { message } => write!(
                f,
                "tokenizer.ggml.merges does not fit tokenizer.ggml.tokens: {message}"
            ),
            Regex { message } => write!(f, "the pre-tokenizer cannot be built: {message}"),
            Bpe { message } => write!(f, "the text cannot be merged into tokens: {message}"),
            NoTokenForByte { byte } => {
                write!(f, "the vocabulary has no token for byte 0x{byte:02X}")
            }
            NoSpecial { key } => write!(
                f,
                "a token is to be added to every text, but {key} is absent"
            ),
            IdOutOfRange { id, n_tokens } => {
                write!(f, "token id {id}: there are {n_tokens} tokens")
            }
        }
    }
}

impl core::error::Error for TokenizerError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            TokenizerError::Gguf(e) => Some(e),
            _ => None,
        }
    }
}

impl From<GgufError> for TokenizerError {
    fn from(e: GgufError) -> Self {
        TokenizerError::Gguf(e)
    }
}

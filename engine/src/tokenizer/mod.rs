//! Text to token ids and back, by the vocabulary that a GGUF file carries.
//!
//! [`Vocab`] turns ids into bytes, [`StreamDecoder`] does so one id at a time and never splits a
//! character, [`Tokenizer`] turns text into ids. Three kinds of vocabulary are read: SentencePiece BPE
//! with scores (`tokenizer.ggml.model` = `llama`), and BPE with merges of bytes (`gpt2`) and of characters
//! (`gemma4`), which encode with the feature `std` only.
//!
//! The ids are those of llama.cpp, which is what the files are made for; where its behaviour is
//! followed in a detail, the comment there says so.

#[cfg(feature = "std")]
mod byte_level;
#[cfg(feature = "std")]
mod character_level;
mod encode;
mod end_of_generation;
mod error;
mod pre_tokenizer;
mod sentencepiece;
mod special;
mod stream;
mod text_index;
mod vocab;

pub(crate) use encode::Part;
pub use encode::{EncodeOptions, Tokenizer};
pub use error::TokenizerError;
pub use stream::StreamDecoder;
pub use vocab::{ControlTokens, TokenKind, Vocab, VocabModel};

/// What finds a token by its text: one byte string after the other, so a hash table where there is
/// a source of the random numbers that it needs.
#[cfg(feature = "std")]
type Map<K, V> = std::collections::HashMap<K, V>;
#[cfg(not(feature = "std"))]
type Map<K, V> = alloc::collections::BTreeMap<K, V>;

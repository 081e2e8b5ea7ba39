//! Text to token ids and back, by the vocabulary that a GGUF file carries.
//!
//! [`Vocab`] turns ids into bytes and needs no std; [`StreamDecoder`] does so one id at a time and
//! never splits a character. `Tokenizer` (std) turns text into ids. Two kinds of vocabulary are
//! read: SentencePiece BPE with scores (`tokenizer.ggml.model` = `llama`) and byte-level BPE with
//! merges (`gpt2`).
//!
//! The ids are those of llama.cpp, which is what the files are made for; where its behaviour is
//! followed in a detail, the comment there says so.

mod error;
mod pre_tokenizer;
mod stream;
mod vocab;

#[cfg(feature = "std")]
mod encode;
#[cfg(feature = "std")]
mod sentencepiece;
#[cfg(feature = "std")]
mod special;

#[cfg(feature = "std")]
pub use encode::{EncodeOptions, Tokenizer};
pub use error::TokenizerError;
pub use stream::StreamDecoder;
pub use vocab::{ControlTokens, TokenKind, Vocab, VocabModel};

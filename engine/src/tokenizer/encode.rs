//! Text to ids.

use alloc::boxed::Box;
use alloc::vec::Vec;
#[cfg(not(feature = "std"))]
use core::cell::OnceCell as Once;
#[cfg(feature = "std")]
use std::sync::OnceLock as Once;

use tandem_formats::gguf::Gguf;

use super::Map;
#[cfg(feature = "std")]
use super::byte_level::ByteLevel;
use super::error::TokenizerError;
#[cfg(feature = "std")]
use super::pre_tokenizer::PreTokenizer;
use super::sentencepiece::SentencePiece;
use super::special::{Fragment, Specials};
use super::vocab::{BOS_ID, EOS_ID, Vocab, VocabModel};

/// How a text is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Add the tokens that the file wants before and after every text (BOS, EOS).
    pub add_special: bool,
    /// Read the texts of control tokens, such as `<|im_end|>`, as these tokens. Not for text from
    /// outside: it could end its own turn.
    pub parse_special: bool,
}

/// Turns text into ids and back.
///
/// Opening one checks the vocabulary but builds nothing large: what encoding needs is built on its
/// first use, decoding does without it. Without the feature `std` it encodes by SentencePiece
/// vocabularies only, and cannot be shared between threads.
pub struct Tokenizer<'a> {
    vocab: Vocab<'a>,
    encoder: Once<Result<Encoder<'a>, TokenizerError>>,
}

impl<'a> Tokenizer<'a> {
    /// Reads the tokenizer of a file.
    ///
    /// # Errors
    /// As [`Vocab::from_gguf`], and [`TokenizerError::UnknownPreTokenizer`].
    pub fn from_gguf(gguf: &Gguf<'a>) -> Result<Tokenizer<'a>, TokenizerError> {
        let vocab = Vocab::from_gguf(gguf)?;
        #[cfg(feature = "std")]
        if vocab.model() == VocabModel::ByteLevel {
            PreTokenizer::check_name(vocab.pre_tokenizer())?;
        }
        Ok(Tokenizer {
            vocab,
            encoder: Once::new(),
        })
    }

    /// The vocabulary, which decodes.
    pub fn vocab(&self) -> &Vocab<'a> {
        &self.vocab
    }

    /// The ids of a text, which may be any bytes. Those that form no character are encoded as they
    /// are, so that decoding to bytes gives them back, or as U+FFFD where a byte-level vocabulary
    /// lacks a token for them.
    ///
    /// The few byte-level vocabularies that lack tokens for bytes of real characters (Falcon's, for
    /// some control characters) leave these bytes out, as those models' own tokenizers do.
    ///
    /// # Errors
    /// What is wrong with the vocabulary and shows only when it is used to encode, on every call;
    /// [`TokenizerError::NoTokenForByte`] for a text that a SentencePiece one cannot express;
    /// [`TokenizerError::NoSpecial`] when a token is to be added that the file does not name;
    /// [`TokenizerError::NeedsStd`].
    pub fn encode(
        &self,
        text: impl AsRef<[u8]>,
        options: EncodeOptions,
    ) -> Result<Vec<u32>, TokenizerError> {
        let encoder = self.encoder.get_or_init(|| Encoder::new(&self.vocab));
        let encoder = encoder.as_ref().map_err(Clone::clone)?;

        let mut ids = Vec::new();
        if options.add_special && self.vocab.add_bos() {
            let bos = self.vocab.bos();
            ids.push(bos.ok_or(TokenizerError::NoSpecial { key: BOS_ID })?);
        }
        let mut after_special = true;
        let fragments = encoder.specials.split(text.as_ref(), options.parse_special);
        for fragment in fragments {
            match fragment {
                Fragment::Token(id) => {
                    ids.push(id);
                    after_special = true;
                }
                Fragment::Text(text) => {
                    match &encoder.model {
                        EncoderModel::SentencePiece(model) => {
                            let space_first = after_special && self.vocab.add_space_prefix();
                            model.encode(text, space_first, &mut ids)?;
                        }
                        #[cfg(feature = "std")]
                        EncoderModel::ByteLevel(model) => model.encode(text, &mut ids)?,
                    }
                    after_special = false;
                }
            }
        }
        if options.add_special && self.vocab.add_eos() {
            let eos = self.vocab.eos();
            ids.push(eos.ok_or(TokenizerError::NoSpecial { key: EOS_ID })?);
        }
        Ok(ids)
    }
}

impl core::fmt::Debug for Tokenizer<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        // The vocabulary itself is too long to be of use.
        f.debug_struct("Tokenizer")
            .field("model", &self.vocab.model())
            .field("n_tokens", &self.vocab.n_tokens())
            .finish_non_exhaustive()
    }
}

struct Encoder<'a> {
    specials: Specials<'a>,
    model: EncoderModel<'a>,
}

enum EncoderModel<'a> {
    SentencePiece(Box<SentencePiece<'a>>),
    #[cfg(feature = "std")]
    ByteLevel(Box<ByteLevel>),
}

impl<'a> Encoder<'a> {
    fn new(vocab: &Vocab<'a>) -> Result<Encoder<'a>, TokenizerError> {
        let mut by_text = Map::new();
        for id in 0..vocab.n_tokens() as u32 {
            // Several empty texts do no harm: nothing is ever looked up by them.
            let Some(text) = vocab.token_text(id).filter(|t| !t.is_empty()) else {
                continue;
            };
            if let Some(first) = by_text.insert(text, id) {
                return Err(TokenizerError::DuplicateToken { first, second: id });
            }
        }
        let model = match vocab.model() {
            VocabModel::SentencePiece => {
                EncoderModel::SentencePiece(Box::new(SentencePiece::new(vocab, by_text)?))
            }
            #[cfg(feature = "std")]
            VocabModel::ByteLevel => {
                EncoderModel::ByteLevel(Box::new(ByteLevel::new(vocab, &by_text)?))
            }
            #[cfg(not(feature = "std"))]
            VocabModel::ByteLevel => return Err(TokenizerError::NeedsStd),
        };
        Ok(Encoder {
            specials: Specials::new(vocab)?,
            model,
        })
    }
}

//! Text to ids.

use alloc::boxed::Box;
use alloc::vec::Vec;

use once_cell::race::OnceBox;
use tandem_formats::Bytes;
use tandem_formats::gguf::Gguf;

#[cfg(feature = "std")]
use super::byte_level::ByteLevel;
#[cfg(feature = "std")]
use super::character_level::CharacterLevel;
use super::error::TokenizerError;
#[cfg(feature = "std")]
use super::pre_tokenizer::PreTokenizer;
use super::sentencepiece::SentencePiece;
use super::special::{Fragment, Specials};
use super::text_index::TextIndex;
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
/// vocabularies only.
pub struct Tokenizer {
    vocab: Vocab,
    encoder: OnceBox<Result<Encoder, TokenizerError>>,
}

impl Tokenizer {
    /// Reads the tokenizer of a file.
    ///
    /// # Errors
    /// As [`Vocab::from_gguf`], and [`TokenizerError::UnknownPreTokenizer`].
    pub fn from_gguf(gguf: &Gguf<'_>) -> Result<Tokenizer, TokenizerError> {
        Tokenizer::read(gguf, &Bytes::copy_from_slice)
    }

    /// The same, where `keep` gives owned bytes for those of the file.
    pub(crate) fn read(
        gguf: &Gguf<'_>,
        keep: &dyn Fn(&[u8]) -> Bytes,
    ) -> Result<Tokenizer, TokenizerError> {
        let vocab = Vocab::read(gguf, keep)?;
        #[cfg(feature = "std")]
        if vocab.model() == VocabModel::ByteLevel {
            PreTokenizer::check_name(vocab.pre_tokenizer())?;
        }
        Ok(Tokenizer {
            vocab,
            encoder: OnceBox::new(),
        })
    }

    /// The vocabulary, which decodes.
    pub fn vocab(&self) -> &Vocab {
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
        let encoder = self.encoder()?;
        let mut ids = Vec::new();
        if options.add_special && self.vocab.add_bos() {
            let bos = self.vocab.bos();
            ids.push(bos.ok_or(TokenizerError::NoSpecial { key: BOS_ID })?);
        }
        let mut after_special = true;
        let fragments = encoder.specials.split(text.as_ref(), options.parse_special);
        for fragment in fragments {
            match fragment {
                Fragment::Token(id) => ids.push(id),
                Fragment::Text(text) => self.encode_text(encoder, text, after_special, &mut ids)?,
            }
            after_special = matches!(fragment, Fragment::Token(_));
        }
        if options.add_special && self.vocab.add_eos() {
            let eos = self.vocab.eos();
            ids.push(eos.ok_or(TokenizerError::NoSpecial { key: EOS_ID })?);
        }
        Ok(ids)
    }

    /// The ids of parts that follow each other. Texts beside each other are one text, whatever part they
    /// are in: nothing shows where a part ends.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode).
    pub(crate) fn encode_parts<'t>(
        &self,
        parts: impl Iterator<Item = Part<'t>>,
    ) -> Result<Vec<u32>, TokenizerError> {
        let encoder = self.encoder()?;
        let mut ids = Vec::new();
        let mut text: Vec<u8> = Vec::new();
        let mut after_special = true;
        for part in parts {
            let bytes = part.text.as_bytes();
            for fragment in encoder.specials.split(bytes, part.parse_special) {
                match fragment {
                    Fragment::Text(more) => text.extend_from_slice(more),
                    Fragment::Token(id) => {
                        self.encode_text(encoder, &text, after_special, &mut ids)?;
                        text.clear();
                        ids.push(id);
                        after_special = true;
                    }
                }
            }
        }
        self.encode_text(encoder, &text, after_special, &mut ids)?;
        Ok(ids)
    }

    fn encoder(&self) -> Result<&Encoder, TokenizerError> {
        let encoder = self
            .encoder
            .get_or_init(|| Box::new(Encoder::new(&self.vocab)));
        encoder.as_ref().map_err(Clone::clone)
    }

    /// The ids of a text without special tokens, which may be empty.
    fn encode_text(
        &self,
        encoder: &Encoder,
        text: &[u8],
        after_special: bool,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        if text.is_empty() {
            return Ok(());
        }
        match &encoder.model {
            EncoderModel::SentencePiece(model) => {
                let space_first = after_special && self.vocab.add_space_prefix();
                model.encode(text, space_first, ids)
            }
            #[cfg(feature = "std")]
            EncoderModel::ByteLevel(model) => model.encode(text, ids),
            #[cfg(feature = "std")]
            EncoderModel::CharacterLevel(model) => model.encode(text, ids),
        }
    }
}

/// A part of a text.
pub(crate) struct Part<'t> {
    pub text: &'t str,
    /// See [`EncodeOptions::parse_special`].
    pub parse_special: bool,
}

impl core::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        // The vocabulary itself is too long to be of use.
        f.debug_struct("Tokenizer")
            .field("model", &self.vocab.model())
            .field("n_tokens", &self.vocab.n_tokens())
            .finish_non_exhaustive()
    }
}

struct Encoder {
    specials: Specials,
    model: EncoderModel,
}

enum EncoderModel {
    SentencePiece(Box<SentencePiece>),
    #[cfg(feature = "std")]
    ByteLevel(Box<ByteLevel>),
    #[cfg(feature = "std")]
    CharacterLevel(Box<CharacterLevel>),
}

impl Encoder {
    fn new(vocab: &Vocab) -> Result<Encoder, TokenizerError> {
        let index = TextIndex::new(vocab);
        let model = match vocab.model() {
            VocabModel::SentencePiece => {
                EncoderModel::SentencePiece(Box::new(SentencePiece::new(index)?))
            }
            #[cfg(feature = "std")]
            VocabModel::ByteLevel => EncoderModel::ByteLevel(Box::new(ByteLevel::new(&index)?)),
            #[cfg(feature = "std")]
            VocabModel::CharacterLevel => {
                EncoderModel::CharacterLevel(Box::new(CharacterLevel::new(index)?))
            }
            #[cfg(not(feature = "std"))]
            VocabModel::ByteLevel | VocabModel::CharacterLevel => {
                return Err(TokenizerError::NeedsStd);
            }
        };
        Ok(Encoder {
            specials: Specials::new(vocab)?,
            model,
        })
    }
}

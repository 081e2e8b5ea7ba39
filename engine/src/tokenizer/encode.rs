//! Text to ids.

use std::boxed::Box;
use std::collections::HashMap;
use std::string::{String, ToString};
use std::sync::OnceLock;
use std::vec::Vec;

use tandem_formats::gguf::Gguf;
use tokenizers::Model;
use tokenizers::models::bpe::{BPE, Vocab as BpeVocab};

use super::error::TokenizerError;
use super::pre_tokenizer::PreTokenizer;
use super::sentencepiece::SentencePiece;
use super::special::{Fragment, Specials};
use super::vocab::{BOS_ID, EOS_ID, MERGES, TokenKind, Vocab, VocabModel, byte_to_char};

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
/// first use, decoding does without it.
pub struct Tokenizer<'a> {
    vocab: Vocab<'a>,
    encoder: OnceLock<Result<Encoder<'a>, TokenizerError>>,
}

impl<'a> Tokenizer<'a> {
    /// Reads the tokenizer of a file.
    ///
    /// # Errors
    /// As [`Vocab::from_gguf`], and [`TokenizerError::UnknownPreTokenizer`].
    pub fn from_gguf(gguf: &Gguf<'a>) -> Result<Tokenizer<'a>, TokenizerError> {
        let vocab = Vocab::from_gguf(gguf)?;
        if vocab.model() == VocabModel::ByteLevel {
            PreTokenizer::check_name(vocab.pre_tokenizer())?;
        }
        Ok(Tokenizer {
            vocab,
            encoder: OnceLock::new(),
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
    /// [`TokenizerError::NoSpecial`] when a token is to be added that the file does not name.
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
    ByteLevel(Box<ByteLevel>),
}

impl<'a> Encoder<'a> {
    fn new(vocab: &Vocab<'a>) -> Result<Encoder<'a>, TokenizerError> {
        let mut by_text = HashMap::with_capacity(vocab.n_tokens());
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
            VocabModel::ByteLevel => {
                EncoderModel::ByteLevel(Box::new(ByteLevel::new(vocab, &by_text)?))
            }
        };
        Ok(Encoder {
            specials: Specials::new(vocab)?,
            model,
        })
    }
}

/// Byte-level BPE, by the `tokenizers` crate.
struct ByteLevel {
    pre_tokenizer: PreTokenizer,
    bpe: BPE,
    /// Whether the character that stands for a byte is a token that decodes to it.
    has_byte: [bool; 256],
}

impl ByteLevel {
    fn new(vocab: &Vocab<'_>, by_text: &HashMap<&[u8], u32>) -> Result<Self, TokenizerError> {
        let mut tokens = BpeVocab::with_capacity(by_text.len());
        let mut longest = 0;
        for (text, &id) in by_text {
            longest = longest.max(text.len());
            let text = std::str::from_utf8(text).map_err(|_| TokenizerError::TokenUtf8 { id })?;
            tokens.insert(text.to_string(), id);
        }
        let mut has_byte = [false; 256];
        for byte in 0..=255 {
            let written = byte_to_char(byte);
            let id = by_text.get(written.encode_utf8(&mut [0; 4]).as_bytes());
            // DeepSeek's vocabulary has user-defined tokens in the place of the bytes that no UTF-8
            // text contains; they decode to the character, not the byte.
            let kind = id.and_then(|id| vocab.kind(*id));
            has_byte[usize::from(byte)] = kind == Some(TokenKind::Normal);
        }
        let pre_tokenizer = PreTokenizer::by_name(vocab.pre_tokenizer())?;
        let bpe = BPE::builder()
            .vocab_and_merges(tokens, read_merges(vocab, longest)?)
            .ignore_merges(pre_tokenizer.ignores_merges())
            .build()
            .map_err(|e| TokenizerError::MergeToken {
                message: e.to_string(),
            })?;
        Ok(ByteLevel {
            pre_tokenizer,
            bpe,
            has_byte,
        })
    }

    fn encode(&self, text: &[u8], ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        for chunk in text.utf8_chunks() {
            for piece in self.pre_tokenizer.split(chunk.valid()) {
                self.encode_piece(piece.as_bytes(), ids)?;
            }
            // The pre-tokenizer knows characters only, so other bytes are a piece of their own.
            let invalid = chunk.invalid();
            let has_all = invalid.iter().all(|b| self.has_byte[usize::from(*b)]);
            let replacement = "\u{FFFD}".as_bytes();
            self.encode_piece(if has_all { invalid } else { replacement }, ids)?;
        }
        Ok(())
    }

    fn encode_piece(&self, piece: &[u8], ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let written: String = piece.iter().map(|b| byte_to_char(*b)).collect();
        let tokens = self.bpe.tokenize(&written);
        let tokens = tokens.map_err(|e| TokenizerError::Bpe {
            message: e.to_string(),
        })?;
        ids.extend(tokens.iter().map(|t| t.id));
        Ok(())
    }
}

fn read_merges(vocab: &Vocab<'_>, longest: usize) -> Result<Vec<(String, String)>, TokenizerError> {
    let merges = vocab.merges();
    let merges = merges.and_then(|m| Some((m.len(), m.iter_str()?)));
    let (n_merges, merges) = merges.ok_or(TokenizerError::MissingKey { key: MERGES })?;
    let mut pairs = Vec::with_capacity(n_merges);
    let mut seen = std::collections::HashSet::with_capacity(n_merges);
    for (index, merge) in merges.enumerate() {
        // Of a merge given twice the first rank counts, as in llama.cpp; the crate would take the
        // last.
        if !seen.insert(merge) {
            continue;
        }
        let merge = std::str::from_utf8(merge).ok();
        // A space is never a part of a token, where it is written U+0120.
        let pair = merge.and_then(|m| m.split_once(' '));
        let pair = pair.filter(|(a, b)| !a.is_empty() && !b.is_empty() && !b.contains(' '));
        let (left, right) = pair.ok_or(TokenizerError::Merge { index })?;
        // The crate looks the joined text up, and panics where it is longer than all tokens.
        if left.len() + right.len() > longest {
            let message = std::format!("there is no token {left}{right}");
            return Err(TokenizerError::MergeToken { message });
        }
        pairs.push((left.to_string(), right.to_string()));
    }
    Ok(pairs)
}

//! The tokens of a file: their bytes, their kinds, and which of them are special.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use tandem_formats::Bytes;
use tandem_formats::gguf::{Array, Gguf, ValueType};

use super::end_of_generation::end_of_generation;
use super::error::TokenizerError;
use super::pre_tokenizer;

/// Which kind of vocabulary a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VocabModel {
    /// SentencePiece BPE: the pair whose joined token has the best score is merged first; a space
    /// is U+2581; characters that no token has are spelled by byte tokens.
    SentencePiece,
    /// Byte-level BPE as in GPT-2: merges in a listed order; each byte is written as a printable
    /// character.
    ByteLevel,
    /// BPE over characters with merges, `gemma4` in the files: spaces are written as U+2581.
    CharacterLevel,
}

/// What a token stands for. The discriminant is the number in `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TokenKind {
    /// A piece of text.
    Normal = 1,
    /// Stands for text that cannot be written in tokens.
    Unknown = 2,
    /// A signal to or from the model, such as the beginning or the end of a text.
    Control = 3,
    /// A piece of text that is matched before all others.
    UserDefined = 4,
    /// A row of the embedding table that means nothing.
    Unused = 5,
    /// One byte, of text that no other token has.
    Byte = 6,
}

impl TokenKind {
    fn from_file(found: i32) -> Option<TokenKind> {
        Some(match found {
            1 => TokenKind::Normal,
            2 => TokenKind::Unknown,
            3 => TokenKind::Control,
            4 => TokenKind::UserDefined,
            // 0 is "undefined", which like "unused" has no text.
            0 | 5 => TokenKind::Unused,
            6 => TokenKind::Byte,
            _ => return None,
        })
    }
}

/// Whether control and unknown tokens are written as their texts or left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlTokens {
    /// Left out.
    Hide,
    /// Written, for example as `<|im_end|>`.
    Show,
}

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
pub(super) const SCORES: &str = "tokenizer.ggml.scores";
const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
pub(super) const MERGES: &str = "tokenizer.ggml.merges";
pub(super) const BOS_ID: &str = "tokenizer.ggml.bos_token_id";
pub(super) const EOS_ID: &str = "tokenizer.ggml.eos_token_id";
const EOT_ID: &str = "tokenizer.ggml.eot_token_id";
const EOM_ID: &str = "tokenizer.ggml.eom_token_id";
const UNKNOWN_ID: &str = "tokenizer.ggml.unknown_token_id";
const PADDING_ID: &str = "tokenizer.ggml.padding_token_id";
/// Spelled so in the files.
const SEPARATOR_ID: &str = "tokenizer.ggml.seperator_token_id";
const CLS_ID: &str = "tokenizer.ggml.cls_token_id";
const MASK_ID: &str = "tokenizer.ggml.mask_token_id";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
const ADD_SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";

/// The tokens of a GGUF file. A copy is cheap: it is another handle to the same tokens.
#[derive(Clone, Debug)]
pub struct Vocab(Arc<Tokens>);

#[derive(Debug)]
struct Tokens {
    model: VocabModel,
    /// The texts as the file has them, each after its length in 8 bytes.
    texts: Bytes,
    /// Where each text begins, and 8 bytes past the end of the last.
    starts: Vec<u32>,
    kinds: Vec<TokenKind>,
    bos: Option<u32>,
    eos: Option<u32>,
    eot: Option<u32>,
    eom: Option<u32>,
    unknown: Option<u32>,
    padding: Option<u32>,
    separator: Option<u32>,
    cls: Option<u32>,
    mask: Option<u32>,
    /// Sorted.
    end_of_generation: Vec<u32>,
    add_bos: bool,
    add_eos: bool,
    add_space_prefix: bool,
    strip_after_special: bool,
    pre: String,
    names_pre: bool,
    // Only `Tokenizer` reads these; checked here so that opening a file reports what is wrong.
    scores: Option<OwnedArray>,
    #[cfg_attr(not(feature = "std"), allow(dead_code))]
    merges: Option<OwnedArray>,
}

/// An array of a file, with the bytes that it is in.
#[derive(Debug)]
struct OwnedArray {
    element: ValueType,
    len: usize,
    bytes: Bytes,
}

impl OwnedArray {
    fn new(array: &Array<'_>, keep: &dyn Fn(&[u8]) -> Bytes) -> OwnedArray {
        OwnedArray {
            element: array.element_type(),
            len: array.len(),
            bytes: keep(array.as_bytes()),
        }
    }

    /// `None` never: it was an array before.
    fn get(&self) -> Option<Array<'_>> {
        Array::from_bytes(self.element, self.len, &self.bytes).ok()
    }
}

impl Vocab {
    /// Reads the tokens of a file, and copies what it needs of it.
    ///
    /// # Errors
    /// [`TokenizerError::NoTokenizer`] where the file has none; other variants for a kind that is
    /// not supported and for metadata that contradicts itself.
    pub fn from_gguf(gguf: &Gguf<'_>) -> Result<Vocab, TokenizerError> {
        Vocab::read(gguf, &Bytes::copy_from_slice)
    }

    /// The same, where `keep` gives owned bytes for those of the file.
    pub(crate) fn read(
        gguf: &Gguf<'_>,
        keep: &dyn Fn(&[u8]) -> Bytes,
    ) -> Result<Vocab, TokenizerError> {
        let model = match gguf.get_str(MODEL)? {
            None | Some("none" | "no_vocab") => return Err(TokenizerError::NoTokenizer),
            Some("llama") => VocabModel::SentencePiece,
            Some("gpt2") => VocabModel::ByteLevel,
            Some("gemma4") => VocabModel::CharacterLevel,
            Some(name) => return Err(TokenizerError::UnsupportedModel { name: name.into() }),
        };
        let array = read_array(gguf, TOKENS)?;
        let texts = array.iter_str();
        let texts = texts.ok_or_else(|| element_type(&array, TOKENS, "str"))?;
        let starts = starts(texts.clone())?;
        let n_tokens = starts.len() - 1;
        let mut kinds = read_kinds(gguf, n_tokens)?;
        for (id, text) in texts.clone().enumerate() {
            if kinds[id] == TokenKind::Byte && byte_of(text).is_none() {
                return Err(TokenizerError::ByteToken { id: id as u32 });
            }
        }

        let pre = gguf.get_str(PRE)?.unwrap_or("default");
        let special = |key| special_id(gguf, key, n_tokens);
        // SentencePiece numbers its own special tokens 0, 1 and 2 unless told otherwise.
        let by_default = |id: u32| {
            let fits = model == VocabModel::SentencePiece && (id as usize) < n_tokens;
            fits.then_some(id)
        };
        let bos = special(BOS_ID).or(by_default(1));
        let eos = special(EOS_ID).or(by_default(2));
        let unknown = special(UNKNOWN_ID).or(by_default(0));
        let (eot, eom) = (special(EOT_ID), special(EOM_ID));

        let named = [eos, eot, eom].into_iter().flatten();
        let end_of_generation = end_of_generation(gguf, texts, named, &mut kinds);

        let sentencepiece = model == VocabModel::SentencePiece;
        let add_bos_by_default = sentencepiece || pre_tokenizer::adds_bos(pre);
        // Some files of Gemma 4 say that texts begin without, and the model fails so; llama.cpp passes that
        // over, too.
        let needs_bos = model == VocabModel::CharacterLevel;
        // Of Phi-3 no metadata says that its special tokens swallow the white space after them, so
        // llama.cpp goes by the model's name.
        let name = gguf.get_str("general.name").ok().flatten().unwrap_or("");
        let name = name.to_ascii_lowercase();
        Ok(Vocab(Arc::new(Tokens {
            model,
            bos,
            eos,
            eot,
            eom,
            unknown,
            padding: special(PADDING_ID),
            separator: special(SEPARATOR_ID),
            cls: special(CLS_ID),
            mask: special(MASK_ID),
            end_of_generation,
            add_bos: gguf.get_bool(ADD_BOS)?.unwrap_or(add_bos_by_default) || needs_bos,
            add_eos: gguf.get_bool(ADD_EOS)?.unwrap_or(false),
            add_space_prefix: sentencepiece && gguf.get_bool(ADD_SPACE_PREFIX)?.unwrap_or(true),
            strip_after_special: name.contains("phi-3") || name.contains("phi3"),
            pre: pre.into(),
            names_pre: gguf.get(PRE).is_some(),
            scores: match model {
                VocabModel::SentencePiece => {
                    let scores = read_scores(gguf, n_tokens)?;
                    scores.map(|scores| OwnedArray::new(&scores, keep))
                }
                VocabModel::ByteLevel | VocabModel::CharacterLevel => None,
            },
            merges: match model {
                VocabModel::SentencePiece => None,
                VocabModel::ByteLevel | VocabModel::CharacterLevel => {
                    Some(OwnedArray::new(&read_merges(gguf)?, keep))
                }
            },
            texts: keep(array.as_bytes()),
            starts,
            kinds,
        })))
    }

    /// Which kind of vocabulary this is.
    pub fn model(&self) -> VocabModel {
        self.0.model
    }

    /// Number of tokens. Ids are below it.
    pub fn n_tokens(&self) -> usize {
        self.0.starts.len() - 1
    }

    /// The name of the pre-tokenizer, `default` where the file has none.
    pub fn pre_tokenizer(&self) -> &str {
        &self.0.pre
    }

    /// Whether the file says which pre-tokenizer it is for, if its kind of vocabulary has one.
    pub fn names_pre_tokenizer(&self) -> bool {
        self.0.model != VocabModel::ByteLevel || self.0.names_pre
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.0.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.0.eos
    }

    /// The token that ends a turn of a conversation, where the file names one.
    pub fn eot(&self) -> Option<u32> {
        self.0.eot
    }

    /// The token that ends a message but not the turn, where the file names one.
    pub fn eom(&self) -> Option<u32> {
        self.0.eom
    }

    /// The token for text that cannot be written in tokens.
    pub fn unknown(&self) -> Option<u32> {
        self.0.unknown
    }

    /// The token that fills up batches.
    pub fn padding(&self) -> Option<u32> {
        self.0.padding
    }

    /// The token between two texts, where the file names one.
    pub fn separator(&self) -> Option<u32> {
        self.0.separator
    }

    /// The token that stands for a whole text, where the file names one.
    pub fn cls(&self) -> Option<u32> {
        self.0.cls
    }

    /// The token in the place of a hidden one, where the file names one.
    pub fn mask(&self) -> Option<u32> {
        self.0.mask
    }

    /// Whether [`Vocab::bos`] belongs before every text.
    pub fn add_bos(&self) -> bool {
        self.0.add_bos
    }

    /// Whether [`Vocab::eos`] belongs after every text.
    pub fn add_eos(&self) -> bool {
        self.0.add_eos
    }

    /// Whether encoding puts a space before a text, which decoding takes away again.
    pub fn add_space_prefix(&self) -> bool {
        self.0.add_space_prefix
    }

    /// Whether a model that gives this id has finished its reply.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.0.end_of_generation.binary_search(&id).is_ok()
    }

    /// The token's kind, `None` for an id out of range.
    pub fn kind(&self, id: u32) -> Option<TokenKind> {
        self.0.kinds.get(id as usize).copied()
    }

    /// The token's text as the file has it, `None` for an id out of range.
    pub fn token_text(&self, id: u32) -> Option<&[u8]> {
        let start = *self.0.starts.get(id as usize)? as usize;
        let next = *self.0.starts.get(id as usize + 1)? as usize;
        self.0.texts.get(start..next - LENGTH_BYTES)
    }

    /// The bytes that a token stands for in a text. They may be a part of a character.
    ///
    /// # Errors
    /// [`TokenizerError::IdOutOfRange`].
    pub fn token_bytes(&self, id: u32, control: ControlTokens) -> Result<Vec<u8>, TokenizerError> {
        let mut out = Vec::new();
        self.push_bytes(id, control, &mut out)?;
        Ok(out)
    }

    /// As [`Vocab::token_bytes`], appended to `out`.
    ///
    /// # Errors
    /// [`TokenizerError::IdOutOfRange`].
    pub fn push_bytes(
        &self,
        id: u32,
        control: ControlTokens,
        out: &mut Vec<u8>,
    ) -> Result<(), TokenizerError> {
        let (Some(text), Some(kind)) = (self.token_text(id), self.kind(id)) else {
            let n_tokens = self.n_tokens();
            return Err(TokenizerError::IdOutOfRange { id, n_tokens });
        };
        match kind {
            TokenKind::Unused => {}
            TokenKind::Unknown | TokenKind::Control => {
                if control == ControlTokens::Show {
                    out.extend_from_slice(text);
                }
            }
            TokenKind::UserDefined => out.extend_from_slice(text),
            TokenKind::Byte => out.extend(byte_of(text)),
            TokenKind::Normal => match self.0.model {
                VocabModel::SentencePiece | VocabModel::CharacterLevel => push_unescaped(text, out),
                VocabModel::ByteLevel => push_byte_level(text, out),
            },
        }
        Ok(())
    }

    /// The text of a whole sequence, the space that encoding put before it taken away. Bytes that
    /// do not form a character become U+FFFD.
    ///
    /// # Errors
    /// [`TokenizerError::IdOutOfRange`].
    pub fn decode(&self, ids: &[u32], control: ControlTokens) -> Result<String, TokenizerError> {
        let bytes = self.decode_bytes(ids, control)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// As [`Vocab::decode`], but the bytes as they are, whether or not they form characters.
    ///
    /// # Errors
    /// [`TokenizerError::IdOutOfRange`].
    pub fn decode_bytes(
        &self,
        ids: &[u32],
        control: ControlTokens,
    ) -> Result<Vec<u8>, TokenizerError> {
        let mut bytes = Vec::new();
        for &id in ids {
            self.push_bytes(id, control, &mut bytes)?;
        }
        if self.0.add_space_prefix && bytes.first() == Some(&b' ') {
            bytes.remove(0);
        }
        Ok(bytes)
    }

    pub(super) fn strip_after_special(&self) -> bool {
        self.0.strip_after_special
    }

    pub(super) fn scores(&self) -> Option<Array<'_>> {
        self.0.scores.as_ref()?.get()
    }

    #[cfg(feature = "std")]
    pub(super) fn merges(&self) -> Option<Array<'_>> {
        self.0.merges.as_ref()?.get()
    }
}

fn read_array<'a>(gguf: &Gguf<'a>, key: &'static str) -> Result<Array<'a>, TokenizerError> {
    gguf.get_array(key)?
        .copied()
        .ok_or(TokenizerError::MissingKey { key })
}

fn element_type(array: &Array<'_>, key: &'static str, wanted: &'static str) -> TokenizerError {
    let found = array.element_type();
    TokenizerError::ElementType { key, wanted, found }
}

/// Bytes of a string's length in a file.
const LENGTH_BYTES: usize = 8;

/// Where each text begins in the array's bytes, and where one after the last would.
fn starts<'a>(texts: impl Iterator<Item = &'a [u8]>) -> Result<Vec<u32>, TokenizerError> {
    let mut starts = Vec::new();
    let mut start = LENGTH_BYTES;
    for text in texts {
        starts.push(start);
        start += text.len() + LENGTH_BYTES;
    }
    if starts.is_empty() {
        return Err(TokenizerError::NoTokens);
    }
    starts.push(start);
    // Ids are u32, and the reader's limit on arrays is below 2^32.
    let starts = starts
        .into_iter()
        .map(u32::try_from)
        .collect::<Result<_, _>>();
    starts.map_err(|_| TokenizerError::TooLong)
}

fn read_kinds(gguf: &Gguf<'_>, n_tokens: usize) -> Result<Vec<TokenKind>, TokenizerError> {
    let Some(array) = gguf.get_array(TOKEN_TYPE)? else {
        return Ok(alloc::vec![TokenKind::Normal; n_tokens]);
    };
    check_count(array, TOKEN_TYPE, n_tokens)?;
    array
        .iter_i32()
        .ok_or_else(|| element_type(array, TOKEN_TYPE, "i32"))?
        .zip(0..)
        .map(|(found, id)| {
            TokenKind::from_file(found).ok_or(TokenizerError::UnknownKind { id, found })
        })
        .collect()
}

/// The scores, if there are any: without them all are equal, as in llama.cpp.
fn read_scores<'a>(gguf: &Gguf<'a>, n_tokens: usize) -> Result<Option<Array<'a>>, TokenizerError> {
    if gguf.get(SCORES).is_none() {
        return Ok(None);
    }
    let array = read_array(gguf, SCORES)?;
    check_count(&array, SCORES, n_tokens)?;
    if array.iter_f32().is_none() {
        return Err(element_type(&array, SCORES, "f32"));
    }
    Ok(Some(array))
}

fn read_merges<'a>(gguf: &Gguf<'a>) -> Result<Array<'a>, TokenizerError> {
    let array = read_array(gguf, MERGES)?;
    if array.iter_str().is_none() {
        return Err(element_type(&array, MERGES, "str"));
    }
    Ok(array)
}

fn check_count(
    array: &Array<'_>,
    key: &'static str,
    n_tokens: usize,
) -> Result<(), TokenizerError> {
    if array.len() != n_tokens {
        return Err(TokenizerError::Count {
            key,
            wanted: n_tokens,
            found: array.len(),
        });
    }
    Ok(())
}

/// A token that a key names, if there is such a token.
pub(super) fn special_id(gguf: &Gguf<'_>, key: &str, n_tokens: usize) -> Option<u32> {
    // Converters write -1 and ids past the end where there is no such token; llama.cpp passes them over, too.
    let id = gguf.get_u32(key).ok().flatten();
    id.filter(|id| (*id as usize) < n_tokens)
}

/// The byte that a text like `<0x0A>` names.
pub(super) fn byte_of(text: &[u8]) -> Option<u8> {
    let digits = text.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    let &[high, low] = digits else { return None };
    let digit = |b: u8| (b as char).to_digit(16);
    Some((digit(high)? * 16 + digit(low)?) as u8)
}

/// SentencePiece's mark for a space, U+2581.
pub(super) const SPACE_MARK: &str = "\u{2581}";

fn push_unescaped(mut text: &[u8], out: &mut Vec<u8>) {
    while let Some((&byte, rest)) = text.split_first() {
        if let Some(after) = text.strip_prefix(SPACE_MARK.as_bytes()) {
            out.push(b' ');
            text = after;
        } else {
            out.push(byte);
            text = rest;
        }
    }
}

fn push_byte_level(text: &[u8], out: &mut Vec<u8>) {
    for chunk in text.utf8_chunks() {
        for c in chunk.valid().chars() {
            match char_to_byte(c) {
                Some(byte) => out.push(byte),
                // No byte is written so; a token added by hand, perhaps.
                None => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        out.extend_from_slice(chunk.invalid());
    }
}

/// GPT-2 writes the bytes that are printable in Latin-1 as themselves, and the other 68 in order
/// as U+0100 to U+0143.
fn is_printable(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// The byte that this character stands for in a byte-level vocabulary.
pub(super) fn char_to_byte(c: char) -> Option<u8> {
    Some(match u32::from(c) {
        code @ 0..=0xFF => return Some(code as u8).filter(|b| is_printable(*b)),
        n @ 0x100..=0x120 => (n - 0x100) as u8, // 0x00 to 0x20
        n @ 0x121..=0x142 => (n - 0x121) as u8 + 0x7F, // 0x7F to 0xA0
        0x143 => 0xAD,
        _ => return None,
    })
}

/// The character that stands for this byte in a byte-level vocabulary.
#[cfg(feature = "std")]
pub(super) fn byte_to_char(byte: u8) -> char {
    let code = match byte {
        b if is_printable(b) => u16::from(b),
        0x00..=0x20 => 0x100 + u16::from(byte),
        0x7F..=0xA0 => 0x121 + u16::from(byte - 0x7F),
        _ => 0x143, // 0xAD
    };
    // Below the surrogates, so always a character.
    char::from_u32(u32::from(code)).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_their_characters_are_one_to_one() {
        for byte in 0..=255 {
            assert_eq!(char_to_byte(byte_to_char(byte)), Some(byte));
        }
        let written = (0..0x200)
            .filter_map(char::from_u32)
            .filter_map(char_to_byte);
        assert_eq!(written.count(), 256);
        // Two that every GPT-2 vocabulary shows.
        assert_eq!(
            (byte_to_char(b' '), byte_to_char(b'\n')),
            ('\u{120}', '\u{10A}')
        );
    }

    #[test]
    fn byte_tokens() {
        assert_eq!(byte_of(b"<0x0A>"), Some(10));
        assert_eq!(byte_of(b"<0xff>"), Some(255));
        for text in ["<0x>", "<0x1>", "<0x123>", "<0xG0>", "0x0A", "<0x+1>", ""] {
            assert_eq!(byte_of(text.as_bytes()), None);
        }
    }

    #[test]
    fn the_space_mark_becomes_a_space() {
        let mut out = Vec::new();
        push_unescaped("a\u{2581}\u{2581}b\u{2582}".as_bytes(), &mut out);
        assert_eq!(out, "a  b\u{2582}".as_bytes());
    }
}

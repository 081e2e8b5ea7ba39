//! Byte-level BPE, by the `tokenizers` crate.

use std::collections::HashSet;
use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

use tokenizers::Model;
use tokenizers::models::bpe::{BPE, Vocab as BpeVocab};

use super::error::TokenizerError;
use super::pre_tokenizer::PreTokenizer;
use super::text_index::TextIndex;
use super::vocab::{MERGES, TokenKind, Vocab, byte_to_char};

pub(super) struct ByteLevel {
    pre_tokenizer: PreTokenizer,
    bpe: BPE,
    /// Whether the character that stands for a byte is a token that decodes to it.
    has_byte: [bool; 256],
}

impl ByteLevel {
    pub(super) fn new(index: &TextIndex) -> Result<Self, TokenizerError> {
        let vocab = index.vocab();
        let mut has_byte = [false; 256];
        for byte in 0..=255 {
            let written = byte_to_char(byte);
            let id = index.get(written.encode_utf8(&mut [0; 4]).as_bytes());
            // DeepSeek's vocabulary has user-defined tokens in the place of the bytes that no UTF-8
            // text contains; they decode to the character, not the byte.
            let kind = id.and_then(|id| vocab.kind(id));
            has_byte[usize::from(byte)] = kind == Some(TokenKind::Normal);
        }
        let pre_tokenizer = PreTokenizer::by_name(vocab.pre_tokenizer())?;
        let bpe = BPE::builder()
            .vocab_and_merges(read_tokens(vocab)?, read_merges(vocab, index.longest())?)
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

    pub(super) fn encode(&self, text: &[u8], ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
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

/// All tokens that are not empty, by their texts.
pub(super) fn read_tokens(vocab: &Vocab) -> Result<BpeVocab, TokenizerError> {
    let mut tokens = BpeVocab::with_capacity(vocab.n_tokens());
    for id in 0..vocab.n_tokens() as u32 {
        let Some(text) = vocab.token_text(id).filter(|text| !text.is_empty()) else {
            continue;
        };
        let text = core::str::from_utf8(text).map_err(|_| TokenizerError::TokenUtf8 { id })?;
        tokens.insert(text.to_string(), id);
    }
    Ok(tokens)
}

/// The merges, the first to be done first.
pub(super) fn read_merges(
    vocab: &Vocab,
    longest: usize,
) -> Result<Vec<(String, String)>, TokenizerError> {
    let merges = vocab.merges();
    let merges = merges.as_ref().and_then(|m| Some((m.len(), m.iter_str()?)));
    let (n_merges, merges) = merges.ok_or(TokenizerError::MissingKey { key: MERGES })?;
    let mut pairs = Vec::with_capacity(n_merges);
    let mut seen = HashSet::with_capacity(n_merges);
    for (index, merge) in merges.enumerate() {
        // Of a merge given twice the first rank counts, as in llama.cpp; the crate would take the
        // last.
        if !seen.insert(merge) {
            continue;
        }
        let merge = core::str::from_utf8(merge).ok();
        // A space is never a part of a token: it is written U+0120, or U+2581.
        let pair = merge.and_then(|m| m.split_once(' '));
        let pair = pair.filter(|(a, b)| !a.is_empty() && !b.is_empty() && !b.contains(' '));
        let (left, right) = pair.ok_or(TokenizerError::Merge { index })?;
        // The crate looks the joined text up, and panics where it is longer than all tokens.
        if left.len() + right.len() > longest {
            let message = format!("there is no token {left}{right}");
            return Err(TokenizerError::MergeToken { message });
        }
        pairs.push((left.to_string(), right.to_string()));
    }
    Ok(pairs)
}

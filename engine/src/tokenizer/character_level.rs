//! BPE over characters with merges (Gemma 4), by the `tokenizers` crate: as SentencePiece's vocabularies spaces
//! are written U+2581, and characters without a token in bytes; but pairs are merged by their ranks.

use std::string::{String, ToString};
use std::vec::Vec;

use tokenizers::Model;
use tokenizers::models::bpe::BPE;

use super::byte_level::{read_merges, read_tokens};
use super::error::TokenizerError;
use super::text_index::TextIndex;
use super::vocab::{SPACE_MARK, byte_of};

pub(super) struct CharacterLevel {
    index: TextIndex,
    bpe: BPE,
    /// The token for each byte of a character that is no token.
    bytes: [u32; 256],
}

impl CharacterLevel {
    pub(super) fn new(index: TextIndex) -> Result<Self, TokenizerError> {
        let vocab = index.vocab();
        let mut found = [vocab.unknown(); 256];
        for id in 0..vocab.n_tokens() as u32 {
            if let Some(byte) = vocab.token_text(id).and_then(byte_of) {
                found[usize::from(byte)] = Some(id);
            }
        }
        let mut bytes = [0; 256];
        for (byte, id) in (0..=255).zip(found) {
            bytes[usize::from(byte)] = id.ok_or(TokenizerError::NoTokenForByte { byte })?;
        }
        let mut builder = BPE::builder()
            .vocab_and_merges(read_tokens(vocab)?, read_merges(vocab, index.longest())?)
            .byte_fallback(true);
        let unknown = vocab.unknown().and_then(|id| vocab.token_text(id));
        if let Some(text) = unknown.and_then(|text| core::str::from_utf8(text).ok()) {
            builder = builder.unk_token(text.to_string());
        }
        let bpe = builder.build().map_err(|e| TokenizerError::MergeToken {
            message: e.to_string(),
        })?;
        Ok(CharacterLevel { index, bpe, bytes })
    }

    /// Lines are pieces, and so is what is between them: nothing is merged across a line's end.
    pub(super) fn encode(&self, text: &[u8], ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        for chunk in text.utf8_chunks() {
            let is_end = |byte: &u8| *byte == b'\n';
            let text = chunk.valid();
            let mut start = 0;
            for piece in text.as_bytes().chunk_by(|a, b| is_end(a) == is_end(b)) {
                let end = start + piece.len();
                self.encode_piece(&text[start..end], ids)?;
                start = end;
            }
            let invalid = chunk.invalid().iter();
            ids.extend(invalid.map(|byte| self.bytes[usize::from(*byte)]));
        }
        Ok(())
    }

    fn encode_piece(&self, piece: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        // Several ends of lines are one token where there is such, whatever the merges say; so does llama.cpp.
        if piece.starts_with('\n')
            && let Some(id) = self.index.get(piece.as_bytes())
        {
            ids.push(id);
            return Ok(());
        }
        let written: String = piece.replace(' ', SPACE_MARK);
        let tokens = self.bpe.tokenize(&written);
        let tokens = tokens.map_err(|e| TokenizerError::Bpe {
            message: e.to_string(),
        })?;
        ids.extend(tokens.iter().map(|t| t.id));
        Ok(())
    }
}

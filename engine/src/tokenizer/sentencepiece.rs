//! SentencePiece BPE: of all neighbours whose joined text is a token, those with the best score
//! are joined first, the leftmost of equals.
//!
//! This is written by hand because the `tokenizers` crate merges by the rank of a pair, one rank a
//! pair: where tokens have equal scores, or where one token can be made of different pairs, the
//! order is decided by position, which no ranks can express (`ties_go_by_position` below). The
//! crate also spells an unknown character in bytes before it merges, so that a token which
//! contains the character would never be found.

use alloc::collections::BinaryHeap;
use alloc::vec;
use alloc::vec::Vec;
use core::cmp::Ordering;

use super::error::TokenizerError;
use super::text_index::TextIndex;
use super::vocab::{SPACE_MARK, byte_of};

const NONE: usize = usize::MAX;

pub(super) struct SentencePiece {
    index: TextIndex,
    scores: Vec<f32>,
    /// The token for each byte of a character that is no token.
    bytes: [Option<u32>; 256],
}

impl SentencePiece {
    pub(super) fn new(index: TextIndex) -> Result<Self, TokenizerError> {
        let vocab = index.vocab();
        let scores = vocab.scores();
        let scores = match scores.as_ref().and_then(|scores| scores.iter_f32()) {
            // -0.0 and 0.0 are equal scores, but not to `total_cmp`.
            Some(scores) => scores.map(|score| score + 0.0).collect(),
            None => vec![0.0; vocab.n_tokens()],
        };
        let mut bytes = [None; 256];
        for id in 0..vocab.n_tokens() as u32 {
            // By the text, not by the kind: llama.cpp looks for the text.
            if let Some(byte) = vocab.token_text(id).and_then(byte_of) {
                bytes[usize::from(byte)] = Some(id);
            }
        }
        for byte in 0..=255u8 {
            let slot = &mut bytes[usize::from(byte)];
            *slot = slot.or_else(|| index.get(&[byte])).or(vocab.unknown());
        }
        Ok(SentencePiece {
            index,
            scores,
            bytes,
        })
    }

    /// Appends the ids of a text. `space_first` puts a space before it.
    pub(super) fn encode(
        &self,
        text: &[u8],
        space_first: bool,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let mut escaped = Vec::with_capacity(text.len() + text.len() / 4 + SPACE_MARK.len());
        if space_first {
            escaped.extend_from_slice(SPACE_MARK.as_bytes());
        }
        for &byte in text {
            match byte {
                b' ' => escaped.extend_from_slice(SPACE_MARK.as_bytes()),
                byte => escaped.push(byte),
            }
        }
        let mut symbols = self.symbols(&escaped);
        self.merge(&escaped, &mut symbols);

        for symbol in symbols.iter().filter(|s| s.len > 0) {
            let text = &escaped[symbol.start..symbol.start + symbol.len];
            if let Some(id) = self.index.get(text) {
                ids.push(id);
                continue;
            }
            for &byte in text {
                let id = self.bytes[usize::from(byte)];
                ids.push(id.ok_or(TokenizerError::NoTokenForByte { byte })?);
            }
        }
        Ok(())
    }

    /// A symbol a character, and a symbol a byte where the bytes form no characters.
    fn symbols(&self, text: &[u8]) -> Vec<Symbol> {
        let mut symbols = Vec::with_capacity(text.len());
        let mut start = 0;
        let mut push = |len| {
            let index: usize = symbols.len();
            symbols.push(Symbol {
                start,
                len,
                prev: index.checked_sub(1).unwrap_or(NONE),
                next: index + 1,
            });
            start += len;
        };
        for chunk in text.utf8_chunks() {
            chunk.valid().chars().for_each(|c| push(c.len_utf8()));
            chunk.invalid().iter().for_each(|_| push(1));
        }
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
        symbols
    }

    fn merge(&self, text: &[u8], symbols: &mut [Symbol]) {
        let mut queue = BinaryHeap::with_capacity(symbols.len());
        for right in 1..symbols.len() {
            queue.extend(self.pair(text, symbols, right - 1, right));
        }
        while let Some(pair) = queue.pop() {
            let Pair {
                left, right, len, ..
            } = pair;
            // A pair is out of date when either side has since been joined to something else.
            if symbols[left].next != right || symbols[left].len + symbols[right].len != len {
                continue;
            }
            let next = symbols[right].next;
            symbols[left].len = len;
            symbols[left].next = next;
            symbols[right] = Symbol::default();
            if next != NONE {
                symbols[next].prev = left;
                queue.extend(self.pair(text, symbols, left, next));
            }
            let prev = symbols[left].prev;
            if prev != NONE {
                queue.extend(self.pair(text, symbols, prev, left));
            }
        }
    }

    fn pair(&self, text: &[u8], symbols: &[Symbol], left: usize, right: usize) -> Option<Pair> {
        let start = symbols[left].start;
        let len = symbols[left].len + symbols[right].len;
        if len > self.index.longest() {
            return None;
        }
        let id = self.index.get(&text[start..start + len])?;
        let score = *self.scores.get(id as usize)?;
        Some(Pair {
            score,
            left,
            right,
            len,
        })
    }
}

#[derive(Clone, Copy, Default)]
struct Symbol {
    start: usize,
    /// 0 once the symbol has been joined to the one before it.
    len: usize,
    prev: usize,
    next: usize,
}

struct Pair {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_score = self.score.total_cmp(&other.score);
        by_score.then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

#[cfg(test)]
mod tests {
    use tandem_formats::{Gguf, Value, Writer};

    use super::super::vocab::Vocab;
    use super::*;

    fn encode(tokens: &[(&'static str, f32)], text: &str) -> Vec<&'static str> {
        let mut writer = Writer::new();
        writer
            .add("tokenizer.ggml.model", Value::Str("llama"))
            .unwrap();
        let texts = tokens.iter().map(|(text, _)| *text);
        writer.add_strings("tokenizer.ggml.tokens", texts).unwrap();
        let scores: Vec<f32> = tokens.iter().map(|(_, score)| *score).collect();
        writer.add_array("tokenizer.ggml.scores", &scores).unwrap();
        let file = writer.to_vec(&[]).unwrap();
        let vocab = Vocab::from_gguf(&Gguf::parse(&file).unwrap()).unwrap();
        let model = SentencePiece::new(TextIndex::new(&vocab)).unwrap();
        let mut ids = Vec::new();
        model.encode(text.as_bytes(), false, &mut ids).unwrap();
        ids.iter().map(|id| tokens[*id as usize].0).collect()
    }

    #[test]
    fn ties_go_by_position() {
        // Whatever ranks ab, bc and ca were given, one of these three would come out wrong.
        let tokens = [
            ("?", 0.0),
            ("a", 0.0),
            ("b", 0.0),
            ("c", 0.0),
            ("ab", -1.0),
            ("bc", -1.0),
            ("ca", -1.0),
        ];
        assert_eq!(encode(&tokens, "abc"), ["ab", "c"]);
        assert_eq!(encode(&tokens, "bca"), ["bc", "a"]);
        assert_eq!(encode(&tokens, "cab"), ["ca", "b"]);
    }

    #[test]
    fn the_best_score_comes_first() {
        let tokens = [
            ("?", 0.0),
            ("a", 0.0),
            ("b", 0.0),
            ("ab", -2.0),
            ("ba", -1.0),
            ("bab", -3.0),
        ];
        assert_eq!(encode(&tokens, "abab"), ["a", "bab"]);
        assert_eq!(encode(&tokens, "aba"), ["a", "ba"]);
    }

    #[test]
    fn a_token_is_found_though_its_characters_are_none() {
        let tokens = [("?", 0.0), ("\u{E9}\u{E9}", -1.0)];
        assert_eq!(encode(&tokens, "\u{E9}\u{E9}"), ["\u{E9}\u{E9}"]);
        assert_eq!(encode(&tokens, "\u{E9}"), ["?", "?"]);
    }
}

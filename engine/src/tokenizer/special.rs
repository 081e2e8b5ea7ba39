//! Finding the texts of control and user-defined tokens in a text.

use alloc::vec::Vec;

use super::Map;
use super::error::TokenizerError;
use super::vocab::{TokenKind, Vocab};

/// Longest text of a special token. Real ones stay below 100 bytes; the limit bounds the work per
/// byte of text.
const MAX_BYTES: usize = 256;

/// A stretch of a text, or a token in place of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fragment<'t> {
    Text(&'t [u8]),
    Token(u32),
}

/// The special tokens by their texts.
pub(super) struct Specials {
    by_text: Map<Vec<u8>, Special>,
    /// By falling length.
    lengths: Vec<Length>,
    strip_after: bool,
}

#[derive(Clone, Copy)]
struct Special {
    id: u32,
    /// User-defined tokens are pieces of text, the others belong to whoever writes the prompt.
    user_defined: bool,
    /// Swallows the white space after it, where the vocabulary does that at all.
    strips: bool,
}

struct Length {
    n_bytes: usize,
    first: [bool; 256],
}

impl Specials {
    pub(super) fn new(vocab: &Vocab) -> Result<Specials, TokenizerError> {
        let mut by_text = Map::new();
        let mut lengths: Vec<Length> = Vec::new();
        for id in 0..vocab.n_tokens() as u32 {
            let (Some(kind), Some(text)) = (vocab.kind(id), vocab.token_text(id)) else {
                continue;
            };
            let user_defined = kind == TokenKind::UserDefined;
            let special = matches!(kind, TokenKind::Control | TokenKind::Unknown) || user_defined;
            let Some(&first) = text.first().filter(|_| special) else {
                continue;
            };
            let n_bytes = text.len();
            if n_bytes > MAX_BYTES {
                return Err(TokenizerError::SpecialLength { id, n_bytes });
            }
            let strips = !matches!(text, b"<unk>" | b"<s>" | b"<|endoftext|>");
            by_text.insert(
                text.to_vec(),
                Special {
                    id,
                    user_defined,
                    strips,
                },
            );
            match lengths.iter_mut().find(|l| l.n_bytes == n_bytes) {
                Some(length) => length.first[usize::from(first)] = true,
                None => {
                    let mut length = Length {
                        n_bytes,
                        first: [false; 256],
                    };
                    length.first[usize::from(first)] = true;
                    lengths.push(length);
                }
            }
        }
        lengths.sort_by_key(|l| core::cmp::Reverse(l.n_bytes));
        Ok(Specials {
            by_text,
            lengths,
            strip_after: vocab.strip_after_special(),
        })
    }

    /// The text with special tokens cut out of it, the longest ones first wherever they stand, as
    /// llama.cpp does. Without `parse_special` only user-defined ones are.
    pub(super) fn split<'t>(&self, text: &'t [u8], parse_special: bool) -> Vec<Fragment<'t>> {
        let mut fragments = Vec::new();
        if !text.is_empty() {
            fragments.push(Fragment::Text(text));
        }
        for length in &self.lengths {
            let mut cut = Vec::with_capacity(fragments.len());
            for fragment in fragments {
                match fragment {
                    Fragment::Text(text) => self.split_at(length, text, parse_special, &mut cut),
                    token => cut.push(token),
                }
            }
            fragments = cut;
        }
        fragments
    }

    fn split_at<'t>(
        &self,
        length: &Length,
        text: &'t [u8],
        parse_special: bool,
        out: &mut Vec<Fragment<'t>>,
    ) {
        let (mut start, mut at) = (0, 0);
        while let Some(candidate) = text.get(at..at + length.n_bytes) {
            let found = if length.first[usize::from(text[at])] {
                self.by_text.get(candidate)
            } else {
                None
            };
            let Some(special) = found.filter(|s| parse_special || s.user_defined) else {
                at += 1;
                continue;
            };
            if start < at {
                out.push(Fragment::Text(&text[start..at]));
            }
            out.push(Fragment::Token(special.id));
            at += length.n_bytes;
            if self.strip_after && special.strips {
                let is_space = |b: &&u8| matches!(**b, b' ' | b'\t'..=b'\r');
                at += text[at..].iter().take_while(is_space).count();
            }
            start = at;
        }
        if start < text.len() {
            out.push(Fragment::Text(&text[start..]));
        }
    }
}

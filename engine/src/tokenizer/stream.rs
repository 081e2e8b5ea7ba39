//! Ids one by one to text.

use alloc::string::String;
use alloc::vec::Vec;

use super::error::TokenizerError;
use super::vocab::{ControlTokens, Vocab};

/// Turns ids into text as they come. A character whose bytes are spread over several tokens is
/// held back until it is whole; bytes that can never become one are given as U+FFFD.
///
/// The pieces joined together are the text that [`Vocab::decode`] gives for all ids at once.
#[derive(Clone, Debug)]
pub struct StreamDecoder {
    vocab: Vocab,
    control: ControlTokens,
    /// A space at the beginning of the next bytes is to be dropped.
    drop_space: bool,
    /// Bytes not yet given out: between calls, the beginning of a character.
    pending: Vec<u8>,
    text: String,
}

impl Vocab {
    /// A decoder for ids that come one by one from the beginning of a text.
    pub fn stream(&self, control: ControlTokens) -> StreamDecoder {
        StreamDecoder::new(self.clone(), control, self.add_space_prefix())
    }

    /// A decoder for ids that continue a text: a space at their beginning is kept.
    pub fn stream_continuation(&self, control: ControlTokens) -> StreamDecoder {
        StreamDecoder::new(self.clone(), control, false)
    }
}

impl StreamDecoder {
    pub(super) fn new(vocab: Vocab, control: ControlTokens, drop_space: bool) -> Self {
        StreamDecoder {
            vocab,
            control,
            drop_space,
            pending: Vec::new(),
            text: String::new(),
        }
    }

    /// The vocabulary.
    pub fn vocab(&self) -> &Vocab {
        &self.vocab
    }

    /// Takes the next id and gives the text that has become whole by it, often none.
    ///
    /// # Errors
    /// [`TokenizerError::IdOutOfRange`]; the decoder can go on with other ids.
    pub fn push(&mut self, id: u32) -> Result<&str, TokenizerError> {
        let start = self.pending.len();
        self.vocab.push_bytes(id, self.control, &mut self.pending)?;
        if self.drop_space && self.pending.len() > start {
            if self.pending[start] == b' ' {
                self.pending.remove(start);
            }
            self.drop_space = false;
        }
        self.take_whole();
        Ok(&self.text)
    }

    /// Ends the text: what is left of an unfinished character comes out as U+FFFD.
    pub fn finish(&mut self) -> &str {
        self.take_whole();
        if !self.pending.is_empty() {
            self.pending.clear();
            self.text.push(char::REPLACEMENT_CHARACTER);
        }
        &self.text
    }

    /// Moves all but an unfinished character from `pending` to `text`.
    fn take_whole(&mut self) {
        self.text.clear();
        let mut unfinished = 0;
        let mut chunks = self.pending.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            self.text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                continue;
            }
            // No error length means that more bytes could make a character of these; but where
            // others follow already, it is too late.
            let error = core::str::from_utf8(invalid).err();
            if chunks.peek().is_none() && error.is_some_and(|e| e.error_len().is_none()) {
                unfinished = invalid.len();
            } else {
                self.text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        let whole = self.pending.len() - unfinished;
        self.pending.drain(..whole);
    }
}

//! Sequences as bytes, to go on with after a restart.
//!
//! What is written: a mark with the version, a BLAKE3 hash of all that follows, a hash of what it is
//! for (the model, the composition, the cache's type and size), the number of tokens, the tokens, and
//! what each layer remembers. Numbers are little-endian.

use alloc::vec::Vec;

use super::Sequence;
use crate::SessionError;

/// The first bytes, with the version of the format.
const MARK: &[u8; 8] = b"TDMSEQ\0\x02";
/// Bytes of a hash.
const HASH_BYTES: usize = 32;
/// Where what is hashed begins.
const BODY: usize = MARK.len() + HASH_BYTES;

impl Sequence {
    /// What saved sequences of all versions begin with.
    pub const MARK: &[u8] = b"TDMSEQ\0";

    /// The sequence as bytes. They are of use to the same model and composition with the same options
    /// only, and on CPUs of one kind give the same results as the sequence itself.
    ///
    /// # Errors
    ///
    /// A model whose metadata cannot be read again, or too little memory.
    pub fn save(&self) -> Result<Vec<u8>, SessionError> {
        let purpose = self.purpose()?;
        let n_bytes = BODY + HASH_BYTES + 8 + 4 * self.tokens.len() + self.used_bytes();
        let mut out = Vec::new();
        let room = out.try_reserve_exact(n_bytes);
        room.map_err(|_| SessionError::OutOfMemory { n_bytes })?;
        out.extend_from_slice(MARK);
        out.extend_from_slice(&[0; HASH_BYTES]);
        out.extend_from_slice(&purpose);
        out.extend((self.tokens.len() as u64).to_le_bytes());
        for token in &self.tokens {
            out.extend(token.to_le_bytes());
        }
        for state in &self.states {
            state.save(&mut out);
        }
        debug_assert_eq!(out.len(), n_bytes);
        let hash = blake3::hash(&out[BODY..]);
        out[MARK.len()..BODY].copy_from_slice(hash.as_bytes());
        Ok(out)
    }

    /// Bytes of a saved sequence before its tokens.
    pub const SAVED_HEAD: usize = BODY + HASH_BYTES + 8;

    /// The tokens of a saved sequence, of which the first bytes are enough: [`Sequence::SAVED_HEAD`] and four for each
    /// token. They are not verified; `None` where it is none, or too little of it.
    pub fn saved_tokens(saved: &[u8]) -> Option<Vec<u32>> {
        let mut rest = saved.strip_prefix(MARK)?.get(2 * HASH_BYTES..)?;
        let n = rest.split_off(..8)?.first_chunk().copied()?;
        let n_bytes = usize::try_from(u64::from_le_bytes(n))
            .ok()?
            .checked_mul(4)?;
        let ids = rest.get(..n_bytes)?.as_chunks().0;
        Some(ids.iter().map(|id| u32::from_le_bytes(*id)).collect())
    }

    /// Takes what [`Sequence::save`] wrote in the place of what the sequence has. It must be of a
    /// sequence with the same model, composition and options. On an error the sequence is empty.
    ///
    /// # Errors
    ///
    /// Bytes that are no such sequence, or that were changed or cut off.
    pub fn restore(&mut self, saved: &[u8]) -> Result<(), SessionError> {
        self.rewind(0);
        let purpose = self.purpose()?;
        let restored = self.read(saved, &purpose);
        if restored.is_err() {
            self.rewind(0);
        }
        restored
    }

    fn read(&mut self, saved: &[u8], purpose: &[u8; HASH_BYTES]) -> Result<(), SessionError> {
        let refused = |reason| SessionError::Saved { reason };
        let damaged = || refused("the saved sequence is damaged");
        let mut rest = saved;
        if rest.split_off(..MARK.len()) != Some(MARK) {
            return Err(refused(
                "this is no saved sequence, or one of another version",
            ));
        }
        let hash = rest.split_off(..HASH_BYTES).ok_or_else(damaged)?;
        if blake3::hash(rest).as_bytes() != hash {
            return Err(damaged());
        }
        if rest.split_off(..HASH_BYTES) != Some(purpose) {
            return Err(refused(
                "the saved sequence is of another model, composition, or kind of cache",
            ));
        }
        let n = rest.split_off(..8).and_then(<[u8]>::first_chunk);
        let n = n.map(|n| u64::from_le_bytes(*n)).ok_or_else(damaged)?;
        let n = usize::try_from(n).ok().filter(|n| *n <= self.n_ctx());
        let n = n.ok_or_else(damaged)?;
        let ids = rest.split_off(..4 * n).ok_or_else(damaged)?;
        let ids = ids.as_chunks().0.iter().map(|id| u32::from_le_bytes(*id));
        let n_vocab = self.model.config().n_vocab;
        if ids.clone().any(|id| id as usize >= n_vocab) {
            return Err(damaged());
        }
        let positions = n..=self.n_ctx();
        for state in &mut self.states {
            let restored = state.restore(&mut rest, positions.clone());
            restored.ok_or_else(damaged)?;
        }
        if !rest.is_empty() {
            return Err(damaged());
        }
        self.tokens.extend(ids);
        Ok(())
    }

    /// A hash of all that a saved sequence depends on besides its tokens.
    fn purpose(&self) -> Result<[u8; HASH_BYTES], SessionError> {
        let unreadable = |_| SessionError::Saved {
            reason: "the model's metadata cannot be read",
        };
        let fingerprint = self.model.fingerprint().map_err(unreadable)?;
        let mut hasher = blake3::Hasher::new();
        for hash in [
            fingerprint.structure,
            fingerprint.vectors,
            fingerprint.content,
        ] {
            hasher.update(&hash.to_le_bytes());
        }
        let composition = self.composition.as_ref();
        hasher.update(&[u8::from(composition.is_some())]);
        hasher.update(&composition.map_or([0; HASH_BYTES], |c| c.id().0));
        hasher.update(&(self.size.dtype as u32).to_le_bytes());
        for n in [self.size.n_ctx, self.size.n_batch] {
            hasher.update(&(n as u64).to_le_bytes());
        }
        Ok(*hasher.finalize().as_bytes())
    }
}

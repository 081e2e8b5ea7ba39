//! What a recurrent mixer remembers of all tokens together: numbers for each of its heads.

use alloc::vec::Vec;
use core::ops::RangeInclusive;

use crate::SessionError;
use crate::buffer::zeroed;

/// The matrices of one layer's heads. Tokens cannot be taken out of them, so a copy from before the last pass of
/// several tokens is kept to go back to.
pub(crate) struct Matrices {
    /// One head's after the other's.
    pub now: Vec<f32>,
    /// Tokens taken up.
    n_tokens: usize,
    /// `now` as it was.
    kept: Vec<f32>,
    /// Tokens that it had taken up then.
    n_kept: usize,
}

impl Matrices {
    /// Bytes of matrices of so many elements together; `None` where that overflows.
    pub(crate) fn n_bytes(n: usize) -> Option<usize> {
        n.checked_mul(2 * size_of::<f32>())
    }

    /// Of no tokens.
    ///
    /// # Errors
    ///
    /// Too little memory.
    pub(crate) fn new(n: usize) -> Result<Matrices, SessionError> {
        Ok(Matrices {
            now: zeroed(n)?,
            n_tokens: 0,
            kept: zeroed(n)?,
            n_kept: 0,
        })
    }

    /// Keeps the matrices as they are, to go back to.
    pub(crate) fn keep(&mut self) {
        self.kept.copy_from_slice(&self.now);
        self.n_kept = self.n_tokens;
    }

    /// Notes that they have taken so many tokens more up.
    pub(crate) fn advance(&mut self, n: usize) {
        self.n_tokens += n;
    }

    /// The most tokens up to `n` that they can go back to.
    pub(crate) fn target(&self, n: usize) -> usize {
        match (n >= self.n_tokens, self.n_kept <= n) {
            (true, _) => self.n_tokens,
            (false, true) => self.n_kept,
            (false, false) => 0,
        }
    }

    /// Goes back to what [`Matrices::target`] said.
    pub(crate) fn rewind(&mut self, n: usize) {
        if n == self.n_tokens && n > 0 {
            return;
        }
        match n > 0 {
            true => self.now.copy_from_slice(&self.kept),
            false => {
                self.now.fill(0.0);
                self.kept.fill(0.0);
                self.n_kept = 0;
            }
        }
        self.n_tokens = n;
    }

    pub(crate) fn fork(&self) -> Result<Matrices, SessionError> {
        let mut copy = Matrices {
            now: zeroed(self.now.len())?,
            kept: zeroed(self.kept.len())?,
            ..*self
        };
        copy.now.copy_from_slice(&self.now);
        copy.kept.copy_from_slice(&self.kept);
        Ok(copy)
    }

    /// A copy without what was kept, which cannot go back.
    pub(crate) fn compact(&self) -> Result<Matrices, SessionError> {
        let mut copy = Matrices {
            now: zeroed(self.now.len())?,
            kept: Vec::new(),
            n_kept: self.n_tokens,
            ..*self
        };
        copy.now.copy_from_slice(&self.now);
        Ok(copy)
    }

    /// Takes over what others of the same size have, which may be a compact copy.
    pub(crate) fn copy_from(&mut self, other: &Matrices) {
        self.now.copy_from_slice(&other.now);
        let kept = match other.kept.is_empty() {
            true => &other.now,
            false => &other.kept,
        };
        self.kept.copy_from_slice(kept);
        (self.n_tokens, self.n_kept) = (other.n_tokens, other.n_kept);
    }

    /// Bytes that [`Matrices::save`] writes.
    pub(crate) fn saved_bytes(&self) -> usize {
        size_of::<f32>() * self.now.len()
    }

    /// Appends the matrices to `out`.
    pub(crate) fn save(&self, out: &mut Vec<u8>) {
        out.extend(self.now.iter().flat_map(|x| x.to_le_bytes()));
    }

    /// Takes what [`Matrices::save`] wrote, as [`Columns::restore`](super::Columns::restore) does.
    pub(crate) fn restore(
        &mut self,
        saved: &mut &[u8],
        positions: RangeInclusive<usize>,
    ) -> Option<()> {
        let floats = saved.split_off(..size_of::<f32>() * self.now.len())?;
        for (x, bytes) in self.now.iter_mut().zip(floats.as_chunks().0) {
            *x = f32::from_le_bytes(*bytes);
        }
        self.n_tokens = *positions.start();
        self.keep();
        Some(())
    }
}

impl core::fmt::Debug for Matrices {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "matrices of {} tokens", self.n_tokens)
    }
}

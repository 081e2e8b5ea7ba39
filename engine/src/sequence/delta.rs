//! What a delta net remembers: the last columns of its convolution, and a matrix for each head.

use alloc::vec::Vec;
use core::ops::RangeInclusive;

use super::columns::Columns;
use crate::SessionError;
use crate::blocks::DeltaNetConfig;
use crate::buffer::zeroed;

/// The state of one layer. Tokens cannot be taken out of it, so a copy from before the last pass of several
/// tokens is kept to go back to.
pub(crate) struct Delta {
    pub columns: Columns,
    /// `[n_head_v, head_dim, head_dim]`: of each key the values' elements.
    pub matrices: Vec<f32>,
    /// Tokens taken up.
    n_tokens: usize,
    /// `matrices` as they were.
    kept: Vec<f32>,
    /// Tokens that these had taken up.
    n_kept: usize,
}

fn n_floats(config: &DeltaNetConfig) -> Option<usize> {
    config.n_v().checked_mul(config.head_dim)
}

impl Delta {
    /// Bytes of a layer's state; `None` where that overflows.
    pub(crate) fn n_bytes(config: &DeltaNetConfig, n_batch: usize) -> Option<usize> {
        let matrices = n_floats(config)?.checked_mul(2 * size_of::<f32>())?;
        let columns = Columns::n_bytes(config.n_taps, config.n_channels(), n_batch)?;
        matrices.checked_add(columns)
    }

    /// Of no tokens.
    ///
    /// # Errors
    ///
    /// Too little memory.
    pub(crate) fn new(config: &DeltaNetConfig, n_batch: usize) -> Result<Delta, SessionError> {
        let n = n_floats(config).unwrap_or(usize::MAX);
        Ok(Delta {
            columns: Columns::new(config.n_taps, config.n_channels(), n_batch)?,
            matrices: zeroed(n)?,
            n_tokens: 0,
            kept: zeroed(n)?,
            n_kept: 0,
        })
    }

    /// Keeps the state as it is, to go back to.
    pub(crate) fn keep(&mut self) {
        self.kept.copy_from_slice(&self.matrices);
        self.n_kept = self.n_tokens;
    }

    /// Notes that the matrices have taken so many tokens more up.
    pub(crate) fn advance(&mut self, n: usize) {
        self.n_tokens += n;
    }

    /// The most tokens up to `n` that it can go back to.
    pub(crate) fn target(&self, n: usize) -> usize {
        match (n >= self.n_tokens, self.n_kept <= n) {
            (true, _) => self.n_tokens,
            (false, true) => self.n_kept,
            (false, false) => 0,
        }
    }

    /// Goes back to what [`Delta::target`] said.
    pub(crate) fn rewind(&mut self, n: usize) {
        self.columns.rewind(n);
        if n == self.n_tokens && n > 0 {
            return;
        }
        match n > 0 {
            true => self.matrices.copy_from_slice(&self.kept),
            false => {
                self.matrices.fill(0.0);
                self.kept.fill(0.0);
                self.n_kept = 0;
            }
        }
        self.n_tokens = n;
    }

    pub(crate) fn fork(&self) -> Result<Delta, SessionError> {
        let mut copy = Delta {
            columns: self.columns.fork()?,
            matrices: zeroed(self.matrices.len())?,
            kept: zeroed(self.kept.len())?,
            ..*self
        };
        copy.matrices.copy_from_slice(&self.matrices);
        copy.kept.copy_from_slice(&self.kept);
        Ok(copy)
    }

    /// Bytes that [`Delta::save`] writes.
    pub(crate) fn saved_bytes(&self) -> usize {
        self.columns.saved_bytes() + size_of::<f32>() * self.matrices.len()
    }

    /// Appends the state to `out`.
    pub(crate) fn save(&self, out: &mut Vec<u8>) {
        self.columns.save(out);
        out.extend(self.matrices.iter().flat_map(|x| x.to_le_bytes()));
    }

    /// Takes what [`Delta::save`] wrote, as [`Columns::restore`] does.
    pub(crate) fn restore(
        &mut self,
        saved: &mut &[u8],
        positions: RangeInclusive<usize>,
    ) -> Option<()> {
        self.columns.restore(saved, positions.clone())?;
        let floats = saved.split_off(..size_of::<f32>() * self.matrices.len())?;
        for (x, bytes) in self.matrices.iter_mut().zip(floats.as_chunks().0) {
            *x = f32::from_le_bytes(*bytes);
        }
        self.n_tokens = *positions.start();
        self.keep();
        Some(())
    }
}

impl core::fmt::Debug for Delta {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "matrices of {} tokens", self.n_tokens)
    }
}

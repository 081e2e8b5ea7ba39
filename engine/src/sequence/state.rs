//! What one layer remembers.

use alloc::vec::Vec;
use core::ops::RangeInclusive;

use super::{Columns, Kv, KvSize, Matrices};
use crate::SessionError;
use crate::model::MixerConfig;

/// What one layer remembers: what its mixer has of these, which is nothing where it sees what an earlier layer
/// remembers, or where there is none.
#[derive(Debug)]
pub(crate) struct LayerState {
    /// Of attention: keys and values.
    pub kv: Option<Kv>,
    /// Of a convolution: its last input columns.
    pub columns: Option<Columns>,
    /// Of a delta net or Mamba-2.
    pub matrices: Option<Matrices>,
}

impl LayerState {
    /// Bytes of a layer's state; `None` where that overflows.
    pub(crate) fn n_bytes(mixer: &MixerConfig, n_embd: usize, size: KvSize) -> Option<usize> {
        let kv = match mixer.attention().filter(|attention| attention.has_keys()) {
            Some(attention) => size.n_bytes(attention)?,
            None => 0,
        };
        let n_matrices = mixer.n_matrices()?;
        let n_back = Columns::n_back(size.n_batch, n_matrices > 0);
        let columns = match mixer.conv(n_embd) {
            Some(conv) => Columns::n_bytes(conv, n_back)?,
            None => 0,
        };
        let matrices = Matrices::n_bytes(n_matrices)?;
        kv.checked_add(columns)?.checked_add(matrices)
    }

    /// Of no tokens.
    ///
    /// # Errors
    ///
    /// Too little memory, or a cache of a type that does not fit.
    pub(crate) fn new(
        mixer: &MixerConfig,
        n_embd: usize,
        size: KvSize,
    ) -> Result<LayerState, SessionError> {
        let attention = mixer.attention().filter(|attention| attention.has_keys());
        let kv = attention.map(|attention| Kv::new(attention, size));
        // What overflows is more than there is memory, too.
        let n_matrices = mixer.n_matrices().unwrap_or(usize::MAX);
        let n_back = Columns::n_back(size.n_batch, n_matrices > 0);
        let columns = mixer.conv(n_embd);
        let columns = columns.map(|conv| Columns::new(conv, n_back));
        let matrices = (n_matrices > 0).then(|| Matrices::new(n_matrices));
        Ok(LayerState {
            kv: kv.transpose()?,
            columns: columns.transpose()?,
            matrices: matrices.transpose()?,
        })
    }

    /// Takes over what another layer's state of the same kind has, of which it may be a compact copy.
    pub(crate) fn copy_from(&mut self, other: &LayerState) -> Result<(), SessionError> {
        if let (Some(kv), Some(other)) = (&mut self.kv, &other.kv) {
            kv.copy_from(other);
        }
        if let Some(columns) = &other.columns {
            self.columns = Some(columns.fork()?);
        }
        if let (Some(matrices), Some(other)) = (&mut self.matrices, &other.matrices) {
            matrices.copy_from(other);
        }
        Ok(())
    }

    pub(crate) fn fork(&self) -> Result<LayerState, SessionError> {
        self.copy_with(Kv::fork, Matrices::fork)
    }

    /// A copy that takes no more memory than it needs, and cannot go on.
    pub(crate) fn compact(&self) -> Result<LayerState, SessionError> {
        self.copy_with(Kv::compact, Matrices::compact)
    }

    fn copy_with(
        &self,
        kv: fn(&Kv) -> Result<Kv, SessionError>,
        matrices: fn(&Matrices) -> Result<Matrices, SessionError>,
    ) -> Result<LayerState, SessionError> {
        Ok(LayerState {
            kv: self.kv.as_ref().map(kv).transpose()?,
            columns: self.columns.as_ref().map(Columns::fork).transpose()?,
            matrices: self.matrices.as_ref().map(matrices).transpose()?,
        })
    }

    /// The most tokens up to `n` that columns and matrices can each go back to.
    pub(crate) fn target(&self, n: usize) -> usize {
        let (columns, matrices) = (self.columns.as_ref(), self.matrices.as_ref());
        let columns = columns.map_or(n, |columns| columns.target(n));
        let matrices = matrices.map_or(n, |matrices| matrices.target(n));
        columns.min(matrices)
    }

    /// Whether what follows the first `n` tokens can be forgotten.
    pub(crate) fn can_rewind(&self, n: usize) -> bool {
        self.kv.as_ref().is_none_or(|kv| kv.can_rewind(n)) && self.target(n) == n
    }

    /// Keeps what tokens cannot be taken out of, to go back to: the state after the first `n` tokens.
    pub(crate) fn keep(&mut self, n: usize) {
        if let Some(columns) = &mut self.columns {
            columns.keep(n);
        }
        if let Some(matrices) = &mut self.matrices {
            matrices.keep();
        }
    }

    /// Forgets what follows the first `n` tokens.
    pub(crate) fn rewind(&mut self, n: usize) {
        if let Some(kv) = &mut self.kv {
            kv.rewind(n);
        }
        if let Some(columns) = &mut self.columns {
            columns.rewind(n);
        }
        if let Some(matrices) = &mut self.matrices {
            matrices.rewind(n);
        }
    }

    /// Bytes that [`LayerState::save`] writes.
    pub(crate) fn saved_bytes(&self) -> usize {
        let kv = self.kv.as_ref().map_or(0, Kv::saved_bytes);
        let columns = self.columns.as_ref().map_or(0, Columns::saved_bytes);
        let matrices = self.matrices.as_ref().map_or(0, Matrices::saved_bytes);
        kv + columns + matrices
    }

    /// Appends the state to `out`.
    pub(crate) fn save(&self, out: &mut Vec<u8>) {
        if let Some(kv) = &self.kv {
            kv.save(out);
        }
        if let Some(columns) = &self.columns {
            columns.save(out);
        }
        if let Some(matrices) = &self.matrices {
            matrices.save(out);
        }
    }

    /// Takes what [`LayerState::save`] wrote, as [`Columns::restore`] does.
    pub(crate) fn restore(
        &mut self,
        saved: &mut &[u8],
        positions: RangeInclusive<usize>,
    ) -> Option<()> {
        if let Some(kv) = &mut self.kv {
            kv.restore(saved, positions.clone())?;
        }
        if let Some(columns) = &mut self.columns {
            columns.restore(saved, positions.clone())?;
        }
        if let Some(matrices) = &mut self.matrices {
            matrices.restore(saved, positions)?;
        }
        Some(())
    }
}

/// The matrices of a layer of a recurrent mixer.
pub(crate) fn matrices_of(state: &mut LayerState) -> &mut Matrices {
    let Some(matrices) = &mut state.matrices else {
        unreachable!("a recurrent layer has its matrices");
    };
    matrices
}

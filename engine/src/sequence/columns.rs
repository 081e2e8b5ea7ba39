//! What a convolution over time remembers: its input columns of the last tokens.

use alloc::vec::Vec;
use core::ops::RangeInclusive;

use tandem_kernels::SharedMatrix;

use crate::SessionError;
use crate::blocks::Conv;
use crate::buffer::zeroed;

/// So many tokens can be taken back at least where nothing else forbids it: guesses that did not come.
const BACK: usize = 32;

/// The last input columns of one layer's convolution: a ring, in which a position's place is taken by a later
/// one. Those before the last pass of several tokens are kept besides, to go back to.
pub(crate) struct Columns {
    conv: Conv,
    n_places: usize,
    /// The first position whose column is still in the ring.
    first: usize,
    /// `[n_places, n_channels]`.
    ring: Vec<f32>,
    /// The columns that the output at position `n_kept` depends on besides its own, `[n_taps - 1, n_channels]`.
    kept: Vec<f32>,
    n_kept: usize,
}

impl Columns {
    /// Places of the ring: a position's is its remainder.
    pub(crate) fn n_places(&self) -> usize {
        self.n_places
    }

    /// Positions besides those that an output depends on: a batch, where tokens can be taken back one by one, and none
    /// where the layer has matrices, which go back to what is kept alone.
    pub(crate) fn n_back(n_batch: usize, has_matrices: bool) -> usize {
        match has_matrices {
            true => 0,
            false => n_batch.max(BACK),
        }
    }

    /// Bytes of a layer's columns; `None` where that overflows.
    pub(crate) fn n_bytes(conv: Conv, n_back: usize) -> Option<usize> {
        let places = conv.n_taps.checked_add(n_back)?;
        let n = places.checked_add(conv.n_taps - 1)?;
        n.checked_mul(conv.n_channels)?
            .checked_mul(size_of::<f32>())
    }

    /// None yet.
    ///
    /// # Errors
    ///
    /// Too little memory.
    pub(crate) fn new(conv: Conv, n_back: usize) -> Result<Columns, SessionError> {
        let n_places = conv.n_taps.saturating_add(n_back);
        Ok(Columns {
            conv,
            n_places,
            first: 0,
            ring: zeroed(n_places.saturating_mul(conv.n_channels))?,
            kept: zeroed((conv.n_taps - 1).saturating_mul(conv.n_channels))?,
            n_kept: 0,
        })
    }

    /// The ring in tiles of `tile_cols` channels, for columns of positions up to `end`.
    pub(crate) fn share(&mut self, end: usize, tile_cols: usize) -> SharedMatrix<'_> {
        self.first = self.first.max(end.saturating_sub(self.n_places));
        SharedMatrix::new(
            &mut self.ring,
            self.conv.n_channels,
            self.n_places,
            tile_cols,
        )
    }

    /// The first position that the output at position `n` depends on.
    fn first_needed(&self, n: usize) -> usize {
        (n + 1).saturating_sub(self.conv.n_taps)
    }

    /// Keeps the columns that the output at position `n`, the next one, depends on.
    pub(crate) fn keep(&mut self, n: usize) {
        let n_channels = self.conv.n_channels;
        for (position, kept) in
            (self.first_needed(n)..n).zip(self.kept.chunks_exact_mut(n_channels))
        {
            let place = position % self.n_places * n_channels;
            kept.copy_from_slice(&self.ring[place..place + n_channels]);
        }
        self.n_kept = n;
    }

    /// Whether the ring has what the output at position `n` depends on.
    fn is_in_ring(&self, n: usize) -> bool {
        n == 0 || self.first_needed(n) >= self.first
    }

    /// The most positions up to `n` whose following ones can be forgotten.
    pub(crate) fn target(&self, n: usize) -> usize {
        match (self.is_in_ring(n), self.n_kept <= n) {
            (true, _) => n,
            (false, true) => self.n_kept,
            (false, false) => 0,
        }
    }

    /// Forgets the positions from `n` on, which is a target.
    pub(crate) fn rewind(&mut self, n: usize) {
        if n == 0 {
            self.first = 0;
        } else if !self.is_in_ring(n) {
            let n_channels = self.conv.n_channels;
            self.first = self.first_needed(n);
            for (position, kept) in (self.first..n).zip(self.kept.chunks_exact(n_channels)) {
                let place = position % self.n_places * n_channels;
                self.ring[place..place + n_channels].copy_from_slice(kept);
            }
        }
        // What is kept beyond is of tokens that are forgotten.
        self.n_kept = match self.n_kept <= n {
            true => self.n_kept,
            false => 0,
        };
    }

    pub(crate) fn fork(&self) -> Result<Columns, SessionError> {
        let copy = |values: &[f32]| -> Result<Vec<f32>, SessionError> {
            let mut copy = zeroed(values.len())?;
            copy.copy_from_slice(values);
            Ok(copy)
        };
        Ok(Columns {
            ring: copy(&self.ring)?,
            kept: copy(&self.kept)?,
            ..*self
        })
    }

    /// Bytes that [`Columns::save`] writes.
    pub(crate) fn saved_bytes(&self) -> usize {
        size_of::<u64>() + size_of::<f32>() * self.ring.len()
    }

    /// Appends the columns to `out`.
    pub(crate) fn save(&self, out: &mut Vec<u8>) {
        out.extend((self.first as u64).to_le_bytes());
        out.extend(self.ring.iter().flat_map(|x| x.to_le_bytes()));
    }

    /// Takes what [`Columns::save`] wrote from the beginning of `saved`, of which the first
    /// `positions.start()` are tokens, and no more than the whole range can ever have been there; `None` where
    /// it is too short or says otherwise.
    pub(crate) fn restore(
        &mut self,
        saved: &mut &[u8],
        positions: RangeInclusive<usize>,
    ) -> Option<()> {
        let n = *positions.start();
        let first = u64::from_le_bytes(*saved.split_off(..8)?.first_chunk()?);
        let first = usize::try_from(first).ok();
        self.first = first.filter(|first| positions.end() >= first)?;
        let floats = saved.split_off(..size_of::<f32>() * self.ring.len())?;
        for (x, bytes) in self.ring.iter_mut().zip(floats.as_chunks().0) {
            *x = f32::from_le_bytes(*bytes);
        }
        if !self.is_in_ring(n) {
            return None;
        }
        self.keep(n);
        Some(())
    }
}

impl core::fmt::Debug for Columns {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} columns, from {} on", self.n_places, self.first)
    }
}

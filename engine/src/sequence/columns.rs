//! What a convolution over time remembers: its input columns of the last tokens.

use alloc::vec::Vec;
use core::ops::RangeInclusive;

use tandem_kernels::SharedMatrix;

use crate::SessionError;
use crate::blocks::Conv;
use crate::buffer::zeroed;

/// So many tokens can be taken back at least: guesses that did not come.
const BACK: usize = 32;

/// The last input columns of one layer's convolution: a ring, in which a position's place is taken by a later
/// one that no output depends on together with it.
pub(crate) struct Columns {
    n_channels: usize,
    n_taps: usize,
    n_places: usize,
    /// Positions that ever were in the ring, since it was empty: of those before, the last `n_places` still
    /// are.
    n_seen: usize,
    /// `[n_places, n_channels]`.
    data: Vec<f32>,
}

impl Columns {
    /// Places of the ring: a position's is its remainder.
    pub(crate) fn n_places(&self) -> usize {
        self.n_places
    }

    /// Places for what an output depends on, and for a batch besides: one that fails leaves the columns before
    /// it as they were.
    fn places(n_taps: usize, n_batch: usize) -> usize {
        n_taps.saturating_add(n_batch.max(BACK))
    }

    /// Bytes of a layer's columns; `None` where that overflows.
    pub(crate) fn n_bytes(conv: Conv, n_batch: usize) -> Option<usize> {
        let n = Columns::places(conv.n_taps, n_batch).checked_mul(conv.n_channels)?;
        n.checked_mul(size_of::<f32>())
    }

    /// None yet.
    ///
    /// # Errors
    ///
    /// Too little memory.
    pub(crate) fn new(conv: Conv, n_batch: usize) -> Result<Columns, SessionError> {
        let Conv { n_taps, n_channels } = conv;
        let n_places = Columns::places(n_taps, n_batch);
        Ok(Columns {
            n_channels,
            n_taps,
            n_places,
            n_seen: 0,
            data: zeroed(n_places.saturating_mul(n_channels))?,
        })
    }

    /// The ring in tiles of `tile_cols` channels, for columns of positions up to `end`.
    pub(crate) fn share(&mut self, end: usize, tile_cols: usize) -> SharedMatrix<'_> {
        self.n_seen = self.n_seen.max(end);
        SharedMatrix::new(&mut self.data, self.n_channels, self.n_places, tile_cols)
    }

    /// Whether what follows the first `n` positions can be forgotten: whether the columns that the output at
    /// position `n` depends on are still there.
    pub(crate) fn can_rewind(&self, n: usize) -> bool {
        let first_needed = (n + 1).saturating_sub(self.n_taps);
        n == 0 || first_needed + self.n_places >= self.n_seen
    }

    /// Forgets all positions, or, `n` being one that it can go back to, those from `n` on.
    pub(crate) fn rewind(&mut self, n: usize) {
        if n == 0 {
            self.n_seen = 0;
        }
    }

    pub(crate) fn fork(&self) -> Result<Columns, SessionError> {
        let mut data = zeroed(self.data.len())?;
        data.copy_from_slice(&self.data);
        Ok(Columns { data, ..*self })
    }

    /// Bytes that [`Columns::save`] writes.
    pub(crate) fn saved_bytes(&self) -> usize {
        size_of::<u64>() + size_of::<f32>() * self.data.len()
    }

    /// Appends the columns to `out`.
    pub(crate) fn save(&self, out: &mut Vec<u8>) {
        out.extend((self.n_seen as u64).to_le_bytes());
        out.extend(self.data.iter().flat_map(|x| x.to_le_bytes()));
    }

    /// Takes what [`Columns::save`] wrote from the beginning of `saved`, of which the first
    /// `positions.start()` are tokens, and no more than the whole range can ever have been there; `None` where
    /// it is too short or says otherwise.
    pub(crate) fn restore(
        &mut self,
        saved: &mut &[u8],
        positions: RangeInclusive<usize>,
    ) -> Option<()> {
        let n_seen = u64::from_le_bytes(*saved.split_off(..8)?.first_chunk()?);
        let n_seen = usize::try_from(n_seen).ok();
        self.n_seen = n_seen.filter(|n| positions.contains(n))?;
        let floats = saved.split_off(..size_of::<f32>() * self.data.len())?;
        for (x, bytes) in self.data.iter_mut().zip(floats.as_chunks().0) {
            *x = f32::from_le_bytes(*bytes);
        }
        self.can_rewind(*positions.start()).then_some(())
    }
}

impl core::fmt::Debug for Columns {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} columns, {} seen", self.n_places, self.n_seen)
    }
}

//! Keys and values of the tokens that a layer's attention still sees.

use alloc::vec::Vec;
use core::ops::RangeInclusive;

use tandem_kernels::{DType, KEY_GROUP, KvHead, Pool, SharedMatrix, quant, store_key};

use crate::SessionError;
use crate::blocks::{Attention, AttentionConfig};
use crate::buffer::zeroed;

/// The KV cache of one layer: for each KV head the keys, and the values, of all positions together, so
/// that attention reads each head's in one stream. Keys lie as [`store_key`] puts them.
///
/// Where a window is enough it is a ring: a position's place is taken by a later one that no query sees
/// together with it.
pub(crate) struct Kv {
    dtype: DType,
    /// Places for positions, in whole groups of keys.
    n_places: usize,
    head_dim: usize,
    n_head_kv: usize,
    /// Bytes of one head's keys at one position.
    row_bytes: usize,
    window: Option<usize>,
    /// Positions that ever were in the cache, since it was empty: of those before, the last `n_places`
    /// still are.
    n_seen: usize,
    /// `[n_head_kv, n_places, row_bytes]`.
    k: Vec<u8>,
    /// As `k`.
    v: Vec<u8>,
}

/// The sizes of caches.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct KvSize {
    /// F32, F16 or Q8_0.
    pub dtype: DType,
    /// Positions of the context.
    pub n_ctx: usize,
    /// The most that are stored before the first of them is looked at.
    pub n_batch: usize,
}

impl KvSize {
    /// Places for positions; `None` where that overflows.
    fn n_places(self, config: &AttentionConfig) -> Option<usize> {
        let seen = match config.window {
            Some(window) => window.checked_add(self.n_batch)?.min(self.n_ctx),
            None => self.n_ctx,
        };
        seen.checked_next_multiple_of(KEY_GROUP)
    }

    /// Bytes of a layer's cache; `None` where the type does not fit the heads.
    pub(crate) fn n_bytes(self, config: &AttentionConfig) -> Option<usize> {
        if !matches!(self.dtype, DType::F32 | DType::F16 | DType::Q8_0) {
            return None;
        }
        self.dtype
            .row_bytes(config.head_dim)?
            .checked_mul(config.n_head_kv)?
            .checked_mul(self.n_places(config)?)?
            .checked_mul(2)
    }
}

impl Kv {
    /// An empty cache.
    ///
    /// # Errors
    ///
    /// A type that caches cannot have, heads that are not whole blocks of it, or too little memory.
    pub(crate) fn new(config: &AttentionConfig, size: KvSize) -> Result<Kv, SessionError> {
        let sizes = size.n_bytes(config).zip(size.n_places(config));
        let (n_bytes, n_places) = sizes.ok_or(SessionError::Options {
            reason: "the KV cache can be F32, F16 or Q8_0, the last for heads of a multiple of 32",
        })?;
        Ok(Kv {
            dtype: size.dtype,
            n_places,
            head_dim: config.head_dim,
            n_head_kv: config.n_head_kv,
            row_bytes: size.dtype.row_bytes(config.head_dim).unwrap_or(0),
            window: config.window,
            n_seen: 0,
            k: zeroed(n_bytes / 2)?,
            v: zeroed(n_bytes / 2)?,
        })
    }

    fn head_bytes(&self) -> usize {
        self.n_places * self.row_bytes
    }

    /// Stores the keys and values of some tokens, both `[n_tokens, n_head_kv * head_dim]`, at
    /// positions `first` and up.
    pub(crate) fn store(&mut self, pool: &dyn Pool, first: usize, k: &[f32], v: &[f32]) {
        let n_cols = self.n_head_kv * self.head_dim;
        let (head_dim, row_bytes, head_bytes) = (self.head_dim, self.row_bytes, self.head_bytes());
        let (dtype, n_places) = (self.dtype, self.n_places);
        self.n_seen = self.n_seen.max(first + k.len() / n_cols);
        let keys = SharedMatrix::new(&mut self.k, head_bytes, 1, head_bytes);
        let values = SharedMatrix::new(&mut self.v, head_bytes, 1, head_bytes);
        pool.run(self.n_head_kv, &|h| {
            let (mut keys, mut values) = (keys.tile(h, 0), values.tile(h, 0));
            let rows = k.chunks_exact(n_cols).zip(v.chunks_exact(n_cols));
            for (i, (k, v)) in rows.enumerate() {
                let head = h * head_dim..(h + 1) * head_dim;
                let place = match first + i {
                    position if position < n_places => position,
                    position => position % n_places,
                };
                store_key(dtype, &k[head.clone()], place, keys.row(0));
                let value = &mut values.row(0)[place * row_bytes..][..row_bytes];
                quant::quantize(dtype, &v[head], value);
            }
        });
    }

    /// One head, as queries at positions `first` and up see it.
    pub(crate) fn head<'k>(
        &'k self,
        h: usize,
        first: usize,
        attention: &'k Attention,
    ) -> KvHead<'k> {
        let config = &attention.config;
        let group = config.n_head / config.n_head_kv;
        let start = h * self.head_bytes();
        KvHead {
            dtype: self.dtype,
            head_dim: self.head_dim,
            n_places: self.n_places,
            k: &self.k[start..][..self.head_bytes()],
            v: &self.v[start..][..self.head_bytes()],
            first,
            window: self.window,
            scale: config.scale,
            softcap: config.softcap,
            sinks: match attention.sinks.is_empty() {
                true => &[],
                false => &attention.sinks[h * group..][..group],
            },
        }
    }

    /// Whether what follows the first `n` positions can be forgotten: whether all that a query at
    /// position `n` sees of those before is still there.
    pub(crate) fn can_rewind(&self, n: usize) -> bool {
        let first_seen = self
            .window
            .map_or(0, |window| (n + 1).saturating_sub(window));
        n == 0 || first_seen + self.n_places >= self.n_seen
    }

    /// Forgets all positions, or, `n` being one that it can go back to, those from `n` on.
    pub(crate) fn rewind(&mut self, n: usize) {
        if n == 0 {
            self.n_seen = 0;
        }
    }

    /// Places that hold anything.
    fn n_used(&self) -> usize {
        self.n_seen.next_multiple_of(KEY_GROUP).min(self.n_places)
    }

    /// A copy, which reads no places that hold nothing.
    pub(crate) fn fork(&self) -> Result<Kv, SessionError> {
        self.copy(self.n_places)
    }

    /// A copy with no places beyond those that hold something. No more can be stored in it.
    pub(crate) fn compact(&self) -> Result<Kv, SessionError> {
        // In a ring that went around places have an order of their own.
        match self.n_seen > self.n_places {
            true => self.fork(),
            false => self.copy(self.n_used()),
        }
    }

    fn copy(&self, n_places: usize) -> Result<Kv, SessionError> {
        let n_bytes = self.n_head_kv * n_places * self.row_bytes;
        let mut copy = Kv {
            n_places,
            k: zeroed(n_bytes)?,
            v: zeroed(n_bytes)?,
            ..*self
        };
        copy.copy_from(self);
        Ok(copy)
    }

    /// Takes over what the cache of the same layer in another sequence holds, which may be a compact one.
    pub(crate) fn copy_from(&mut self, other: &Kv) {
        self.n_seen = other.n_seen;
        let n_bytes = other.n_used() * self.row_bytes;
        let (from_bytes, to_bytes) = (other.head_bytes().max(1), self.head_bytes().max(1));
        for (from, to) in [(&other.k, &mut self.k), (&other.v, &mut self.v)] {
            let heads = from.chunks_exact(from_bytes);
            for (from, to) in heads.zip(to.chunks_exact_mut(to_bytes)) {
                to[..n_bytes].copy_from_slice(&from[..n_bytes]);
            }
        }
    }

    /// Bytes that [`Kv::save`] writes.
    pub(crate) fn saved_bytes(&self) -> usize {
        size_of::<u64>() + 2 * self.n_head_kv * self.n_used() * self.row_bytes
    }

    /// Appends what the cache holds to `out`.
    pub(crate) fn save(&self, out: &mut Vec<u8>) {
        out.extend((self.n_seen as u64).to_le_bytes());
        let n_bytes = self.n_used() * self.row_bytes;
        for part in [&self.k, &self.v] {
            for head in part.chunks_exact(self.head_bytes().max(1)) {
                out.extend_from_slice(&head[..n_bytes]);
            }
        }
    }

    /// Takes what [`Kv::save`] wrote from the beginning of `saved`, of which the first
    /// `positions.start()` are tokens, and no more than the whole range can ever have been there;
    /// `None` where it is too short or says otherwise.
    pub(crate) fn restore(
        &mut self,
        saved: &mut &[u8],
        positions: RangeInclusive<usize>,
    ) -> Option<()> {
        let n_seen = u64::from_le_bytes(*saved.split_off(..8)?.first_chunk()?);
        let n_seen = usize::try_from(n_seen).ok();
        self.n_seen = n_seen.filter(|n| positions.contains(n))?;
        if !self.can_rewind(*positions.start()) {
            return None;
        }
        let (head_bytes, n_bytes) = (self.head_bytes(), self.n_used() * self.row_bytes);
        for part in [&mut self.k, &mut self.v] {
            for head in part.chunks_exact_mut(head_bytes.max(1)) {
                head[..n_bytes].copy_from_slice(saved.split_off(..n_bytes)?);
            }
        }
        Some(())
    }
}

impl core::fmt::Debug for Kv {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Kv of {} places, {} seen", self.n_places, self.n_seen)
    }
}

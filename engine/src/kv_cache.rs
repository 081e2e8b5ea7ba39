//! Keys and values of the tokens seen so far.

use alloc::vec::Vec;

use tandem_kernels::{DType, KEY_GROUP, KvHead, Pool, SharedMatrix, quant, store_key};

use crate::scratch::zeroed;
use crate::{Config, SessionError};

/// The KV cache: for each layer and KV head the keys, and the values, of all positions together, so
/// that attention reads each head's in one stream. Keys lie as [`store_key`] puts them.
#[derive(Debug)]
pub struct KvCache {
    dtype: DType,
    /// Positions, in whole groups of keys.
    n_positions: usize,
    head_dim: usize,
    n_head_kv: usize,
    /// Bytes of one head's keys at one position.
    row_bytes: usize,
    /// `[n_layer, n_head_kv, n_positions, row_bytes]`.
    k: Vec<u8>,
    /// As `k`.
    v: Vec<u8>,
}

impl KvCache {
    /// Bytes of a cache for `n_ctx` positions; `None` where the type does not fit the heads.
    pub fn n_bytes(config: &Config, dtype: DType, n_ctx: usize) -> Option<usize> {
        if !matches!(dtype, DType::F32 | DType::F16 | DType::Q8_0) {
            return None;
        }
        let row_bytes = dtype.row_bytes(config.head_dim)?;
        row_bytes
            .checked_mul(config.n_head_kv)?
            .checked_mul(n_ctx.checked_next_multiple_of(KEY_GROUP)?)?
            .checked_mul(config.n_layer)?
            .checked_mul(2)
    }

    /// An empty cache of F32, F16 or Q8_0.
    ///
    /// # Errors
    ///
    /// Another type, heads that are no whole number of its blocks, or no memory.
    pub fn new(config: &Config, dtype: DType, n_ctx: usize) -> Result<KvCache, SessionError> {
        let n_bytes = KvCache::n_bytes(config, dtype, n_ctx).ok_or(SessionError::Options {
            reason: "the KV cache can be F32, F16 or Q8_0, the last for heads of a multiple of 32",
        })?;
        Ok(KvCache {
            dtype,
            n_positions: n_ctx.next_multiple_of(KEY_GROUP),
            head_dim: config.head_dim,
            n_head_kv: config.n_head_kv,
            row_bytes: dtype.row_bytes(config.head_dim).unwrap_or(0),
            k: zeroed(n_bytes / 2)?,
            v: zeroed(n_bytes / 2)?,
        })
    }

    fn head_bytes(&self) -> usize {
        self.n_positions * self.row_bytes
    }

    fn layer_bytes(&self) -> usize {
        self.n_head_kv * self.head_bytes()
    }

    /// Stores the keys and values of some tokens, both `[n_tokens, n_head_kv * head_dim]`, at
    /// positions `first` and up.
    pub(crate) fn store(
        &mut self,
        pool: &dyn Pool,
        layer: usize,
        first: usize,
        k: &[f32],
        v: &[f32],
    ) {
        let n_cols = self.n_head_kv * self.head_dim;
        let (head_dim, row_bytes, head_bytes) = (self.head_dim, self.row_bytes, self.head_bytes());
        let (dtype, layer_bytes) = (self.dtype, self.layer_bytes());
        let heads = |cache| SharedMatrix::new(cache, head_bytes, 1, head_bytes);
        let layer = layer * layer_bytes..(layer + 1) * layer_bytes;
        let (keys, values) = (heads(&mut self.k[layer.clone()]), heads(&mut self.v[layer]));
        pool.run(self.n_head_kv, &|h| {
            let (mut keys, mut values) = (keys.tile(h, 0), values.tile(h, 0));
            let rows = k.chunks_exact(n_cols).zip(v.chunks_exact(n_cols));
            for (i, (k, v)) in rows.enumerate() {
                let head = h * head_dim..(h + 1) * head_dim;
                store_key(dtype, &k[head.clone()], first + i, keys.row(0));
                let value = &mut values.row(0)[(first + i) * row_bytes..][..row_bytes];
                quant::quantize(dtype, &v[head], value);
            }
        });
    }

    /// One head of a layer, as queries at positions `first` and up see it.
    pub(crate) fn head(
        &self,
        layer: usize,
        h: usize,
        first: usize,
        window: Option<usize>,
        scale: f32,
    ) -> KvHead<'_> {
        let start = layer * self.layer_bytes() + h * self.head_bytes();
        KvHead {
            dtype: self.dtype,
            head_dim: self.head_dim,
            k: &self.k[start..][..self.head_bytes()],
            v: &self.v[start..][..self.head_bytes()],
            first,
            window,
            scale,
        }
    }
}

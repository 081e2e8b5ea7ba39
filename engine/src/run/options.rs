//! How sequences, workers and sessions are made.

use tandem_kernels::{DType, Level};

use crate::Config;

/// How sequences and workers, or sessions, which are both in one, are made. Start from
/// [`SessionOptions::for_model`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SessionOptions {
    /// Positions of the context: prompt and reply together.
    pub n_ctx: usize,
    /// Tokens evaluated at once in prefill, at most [`MAX_BATCH`].
    pub n_batch: usize,
    /// Type of the KV cache: F32, F16 or Q8_0.
    pub kv_type: DType,
    /// Keep activations in float32 where they would be rounded to int8 for quantized weights.
    pub exact: bool,
    /// Instructions that the kernels may use.
    pub level: Level,
    /// The most threads of the pool that take part in prefill.
    pub n_threads: usize,
    /// The same for single tokens, where memory is the limit and all threads may be too many.
    pub n_threads_decode: usize,
    /// Let the number of threads for single tokens, up to `n_threads`, follow what they take, as other
    /// work comes and goes. Results do not depend on it. Without an operating system it does nothing.
    pub follow_load: bool,
}

impl SessionOptions {
    /// The context of the model, at most 4096 tokens; F16 cache; the best instructions; all threads.
    pub fn for_model(config: &Config) -> SessionOptions {
        SessionOptions {
            n_ctx: config.n_ctx_train.min(4096),
            n_batch: 256,
            kv_type: DType::F16,
            exact: false,
            level: Level::detect(),
            n_threads: usize::MAX,
            n_threads_decode: usize::MAX,
            follow_load: false,
        }
    }

    /// The most rows of a pass.
    pub(crate) fn batch_rows(&self) -> usize {
        self.n_batch.min(self.n_ctx).min(MAX_BATCH)
    }
}

/// The most tokens evaluated at once: buffers grow with them, the speed no longer does.
pub const MAX_BATCH: usize = 1024;

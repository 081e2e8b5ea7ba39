//! How fast memory is read, which is decode's limit.

use std::time::Instant;

use tandem_engine::Pool;

/// A buffer larger than caches as a rule are, read through by all threads.
pub(crate) struct ReadBandwidth {
    buffer: Vec<u64>,
}

impl ReadBandwidth {
    const MAX_BYTES: usize = 1 << 29;
    /// Below it a board's cache would be measured.
    const MIN_BYTES: usize = 1 << 25;
    const TASK_WORDS: usize = 1 << 17;

    /// Allocates the buffer: at most a quarter of the bytes that are free, where that is known, as
    /// there are boards with 512 MB.
    pub(crate) fn new(free: Option<usize>) -> ReadBandwidth {
        let n_bytes = free.map_or(Self::MAX_BYTES, |free| free / 4);
        let n_tasks = n_bytes.clamp(Self::MIN_BYTES, Self::MAX_BYTES) / (8 * Self::TASK_WORDS);
        // Not zeros: pages of zeros may all be one.
        ReadBandwidth {
            buffer: (0..(n_tasks * Self::TASK_WORDS) as u64).collect(),
        }
    }

    /// Bytes a second, read by all threads of the pool.
    pub(crate) fn measure(&self, pool: &dyn Pool) -> f64 {
        let start = Instant::now();
        let tasks = self.buffer.chunks_exact(Self::TASK_WORDS);
        pool.run(tasks.len(), &|i| {
            let words = &self.buffer[i * Self::TASK_WORDS..][..Self::TASK_WORDS];
            // Independent sums, so that the additions do not wait for each other.
            let mut sums = [0_u64; 32];
            for words in words.chunks_exact(32) {
                sums.iter_mut()
                    .zip(words)
                    .for_each(|(s, w)| *s = s.wrapping_add(*w));
            }
            std::hint::black_box(sums);
        });
        (8 * self.buffer.len()) as f64 / start.elapsed().as_secs_f64()
    }
}

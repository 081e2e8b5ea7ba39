//! How many rows of prompts a pass may have, by how long passes took.

use std::time::Duration;

/// How long a pass may take beside an answer that is being written, and beside none.
pub(super) const SHARED_PASS: Duration = Duration::from_millis(100);
pub(super) const LONE_PASS: Duration = Duration::from_millis(200);
/// The fewest rows of a pass, where that many are wanted.
const MIN_ROWS: usize = 16;

/// How long passes take, as measured last.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Seconds of a pass without prompts; 0 before there was one.
    writing: f64,
    /// Seconds that a prompt's row adds; 0 before there was one.
    row: f64,
}

impl Pace {
    /// Notes a pass of so many rows of answers and of prompts.
    pub(super) fn note(&mut self, n_writing: usize, n_prompt: usize, seconds: f64) {
        if n_prompt == 0 && n_writing > 0 {
            self.writing = seconds;
        } else if n_prompt >= MIN_ROWS {
            // All weights are read for a token as they are for many rows, which computing hides where they are
            // many enough: no more than half is taken for that.
            let added = (seconds - self.writing).max(seconds / 2.0);
            self.row = added / n_prompt as f64;
        }
    }

    /// The rows of prompts that a pass may have which is to take so much longer for them.
    pub(super) fn rows_in(&self, limit: Duration) -> usize {
        if self.row == 0.0 {
            return 2 * MIN_ROWS;
        }
        let n = (limit.as_secs_f64() / self.row) as usize;
        // Whole tiles are best.
        (n / MIN_ROWS * MIN_ROWS).max(MIN_ROWS)
    }
}

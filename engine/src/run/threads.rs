//! How many threads decode runs on: as many as it takes to read the weights at full speed, which
//! memory, not the cores, decides.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::vec;
use std::vec::Vec;

use tandem_kernels::{
    Input, Q8_SUPER, Q8Rows, Q8Super, SharedMatrix, ThreadPool, matmul, quantize_q8,
};

use crate::exec::{Size, outputs_per_task};
use crate::{Level, Model, Pool};

/// Bytes of weights read by one timed run: large enough that it takes longer than to start it.
const RUN_BYTES: usize = 2 << 20;
/// Runs of each count; the best one says what the count can do, as noise only slows.
const N_RUNS: usize = 8;
/// No round is begun after this time.
const MAX_TIME: Duration = Duration::from_millis(12);
/// How far from the best speed is as good as the best.
const TOLERANCE: f64 = 0.03;
/// Up to this number every count is tried, beyond it every fourth.
const N_CLOSE: usize = 8;
/// Bytes of the smallest pages.
const PAGE_BYTES: usize = 4096;

/// A thread for each core.
pub fn all() -> ThreadPool {
    ThreadPool::new(std::thread::available_parallelism().map_or(1, usize::from))
}

/// The fewest threads of `pool` that multiply the model's weights as fast as any number of them
/// does, for one token: measured, in some milliseconds, on its largest matrix. All threads, where
/// others use the cores so much that it cannot be measured.
pub fn for_decode(model: &Model, pool: &dyn Pool, level: Level, exact: bool) -> usize {
    let counts = counts(pool.n_threads());
    if counts.len() == 1 {
        return 1;
    }
    let mut weights = Weights::new(model, level, exact);
    weights.map(pool, counts.len() * N_RUNS);
    let mut best = vec![f64::INFINITY; counts.len()];
    let start = Instant::now();
    for _ in 0..N_RUNS {
        // Downwards, so that the threads of each run are still awake from the one before.
        for (n_threads, best) in counts.iter().zip(&mut best).rev() {
            if let Some(time) = weights.time(pool, *n_threads) {
                *best = best.min(time);
            }
        }
        if start.elapsed() > MAX_TIME {
            break;
        }
    }
    match best.iter().all(|time| time.is_finite()) {
        true => fewest(&counts, &best),
        false => pool.n_threads(),
    }
}

/// The numbers of threads that are tried, of at most `n_threads`.
pub fn counts(n_threads: usize) -> Vec<usize> {
    (1..=n_threads)
        .filter(|n| *n <= N_CLOSE || n.is_multiple_of(4))
        .collect()
}

/// The first of `counts` whose time is within the tolerance of the shortest.
pub fn fewest(counts: &[usize], times: &[f64]) -> usize {
    let limit = times.iter().copied().fold(f64::INFINITY, f64::min) * (1.0 + TOLERANCE);
    let first = counts.iter().zip(times).find(|(_, time)| **time <= limit);
    first.map_or(1, |(n, _)| *n)
}

/// The largest matrix of a model, read piece by piece, so that no piece is in a cache from the last
/// time unless all of the matrix is.
struct Weights<'m> {
    w: tandem_kernels::Matrix<'m>,
    level: Level,
    /// An input, `[n_cols]`, and the same rounded to int8 where the session would do that.
    x: Vec<f32>,
    x_q8: Option<Vec<Q8Super>>,
    /// Outputs of one run, `[n_rows]`.
    y: Vec<f32>,
    /// The first row of the next run.
    next: usize,
}

impl<'m> Weights<'m> {
    fn new(model: &'m Model, level: Level, exact: bool) -> Weights<'m> {
        let w = model.output().w.view();
        let x = vec![1.0; w.n_cols()];
        let x_q8 = (w.dtype().is_quantized() && !exact).then(|| {
            let mut rounded = vec![Q8Super::default(); x.len().div_ceil(Q8_SUPER)];
            quantize_q8(level, &x, x.len(), 0, &mut rounded);
            rounded
        });
        let n_rows = (RUN_BYTES / w.row_bytes()).clamp(1, w.n_rows());
        Weights {
            y: vec![0.0; n_rows],
            next: 0,
            w,
            level,
            x,
            x_q8,
        }
    }

    /// Touches the pages that `n_runs` runs will read, so that their mapping is not timed.
    fn map(&self, pool: &dyn Pool, n_runs: usize) {
        let n_rows = (n_runs * self.y.len()).min(self.w.n_rows());
        let n_tasks = 4 * pool.n_threads();
        let task_rows = n_rows.div_ceil(n_tasks);
        pool.run(n_rows.div_ceil(task_rows), &|i| {
            let step = PAGE_BYTES.div_ceil(self.w.row_bytes()).max(1);
            for r in (i * task_rows..n_rows.min((i + 1) * task_rows)).step_by(step) {
                let pages = self.w.row(r).iter().step_by(PAGE_BYTES);
                std::hint::black_box(pages.fold(0, |sum: u8, byte| sum.wrapping_add(*byte)));
            }
        });
    }

    /// Seconds that the next rows take on `n_threads` threads; `None` where one of them got no core
    /// in that time.
    fn time(&mut self, pool: &dyn Pool, n_threads: usize) -> Option<f64> {
        let n_rows = self.y.len();
        if self.next + n_rows > self.w.n_rows() {
            self.next = 0;
        }
        let x = match &self.x_q8 {
            Some(x) => Input::Q8(Q8Rows::new(x, 1)),
            None => Input::F32(&self.x),
        };
        let task_rows = outputs_per_task(n_threads, Size::One, n_rows, n_rows);
        let y = SharedMatrix::new(&mut self.y, n_rows, 1, task_rows);
        let (level, w, first) = (self.level, &self.w, self.next);
        let took_part = Mutex::new(HashSet::new());
        let start = Instant::now();
        pool.run_apart(n_threads, 0, n_rows.div_ceil(task_rows), &|i| {
            let mut y = y.tile(0, i);
            let row = first + i * task_rows;
            matmul(level, w, row..row + y.n_cols(), &x, &mut y);
            let id = std::thread::current().id();
            let mut took_part = took_part.lock().unwrap_or_else(PoisonError::into_inner);
            took_part.insert(id);
        });
        let seconds = start.elapsed().as_secs_f64();
        std::hint::black_box(&self.y);
        self.next += n_rows;
        let took_part = took_part
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        (took_part.len() == n_threads).then_some(seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_fewest_of_equals() {
        assert_eq!(fewest(&[1, 2, 3, 4], &[4.0, 2.0, 1.99, 2.3]), 2);
        assert_eq!(fewest(&[1, 2, 3, 4], &[4.0, 2.0, 1.9, 1.0]), 4);
        assert_eq!(fewest(&[1, 2], &[1.0, 1.0]), 1);
    }
}

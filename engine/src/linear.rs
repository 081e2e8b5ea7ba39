//! Linear layers over the pool: several at once where they share their input.

use tandem_kernels::{Activation, Input, Level, Pool, SharedMatrix, TileMut, gate, matmul};

use crate::weights::Linear;

/// What the network runs on.
#[derive(Clone, Copy)]
pub(crate) struct Exec<'a> {
    pub level: Level,
    pub pool: &'a dyn Pool,
    /// Keep activations in float32 whatever the weights' type.
    pub exact: bool,
}

/// The input of linears: as floats, and as int8 where some of them want that.
#[derive(Clone, Copy)]
pub(crate) struct LinearInput<'a> {
    pub f32: Input<'a>,
    pub q8: Option<Input<'a>>,
}

/// Tasks per thread: enough that a thread which is held up does not hold up the others.
const TASKS_PER_THREAD: usize = 8;
/// The fewest rows of a task: a multiple of every kernel's rows at once.
const MIN_ROWS: usize = 16;

impl Exec<'_> {
    /// Whether these weights want int8 input.
    pub(crate) fn wants_q8(&self, linear: &Linear<'_>) -> bool {
        linear.w.dtype().is_quantized() && !self.exact
    }

    /// The pool for steps so short that for one token a barrier would cost more than it saves.
    pub(crate) fn light_pool(&self, n_tokens: usize) -> &dyn Pool {
        match n_tokens {
            1 => &tandem_kernels::Serial,
            _ => self.pool,
        }
    }

    /// Rows per task for linears of `n_rows` in all, the largest of `max_rows`.
    fn rows_per_task(&self, n_rows: usize, max_rows: usize) -> usize {
        let n_tasks = self.pool.n_threads() * TASKS_PER_THREAD;
        n_rows
            .div_ceil(n_tasks)
            .max(max_rows.div_ceil(SharedMatrix::<f32>::MAX_TILES))
            .next_multiple_of(MIN_ROWS)
    }

    /// `y_i = x w_i^T + bias_i` for several linears of the same input, `y_i` `[n_tokens, n_out_i]`.
    pub(crate) fn linears<const N: usize>(
        &self,
        x: LinearInput<'_>,
        jobs: [(&Linear<'_>, &mut [f32]); N],
    ) {
        let n_rows = |linear: &Linear<'_>| linear.w.n_rows();
        let total = jobs.iter().map(|(l, _)| n_rows(l)).sum();
        let max = jobs.iter().map(|(l, _)| n_rows(l)).max().unwrap_or(1);
        let task_rows = self.rows_per_task(total, max);
        let jobs = jobs.map(|(linear, y)| {
            let n_tokens = y.len() / n_rows(linear);
            (
                linear,
                SharedMatrix::new(y, n_rows(linear), n_tokens, task_rows),
            )
        });
        let n_tasks = jobs
            .iter()
            .map(|(l, _)| n_rows(l).div_ceil(task_rows))
            .sum();
        self.pool.run(n_tasks, &|task| {
            let mut i = task;
            for (linear, y) in &jobs {
                let n = n_rows(linear).div_ceil(task_rows);
                if i < n {
                    return self.rows(linear, x, i * task_rows, &mut y.tile(0, i));
                }
                i -= n;
            }
        });
    }

    /// `y = activation(x gate^T) * (x up^T)`; both buffers `[n_tokens, n_ff]`, the result in
    /// `y`, the other one spoiled.
    pub(crate) fn gated(
        &self,
        x: LinearInput<'_>,
        activation: Activation,
        (gate_w, y): (&Linear<'_>, &mut [f32]),
        (up_w, up): (&Linear<'_>, &mut [f32]),
    ) {
        let n_ff = gate_w.w.n_rows();
        let n_tokens = y.len() / n_ff;
        let task_rows = self.rows_per_task(n_ff, n_ff);
        let y = SharedMatrix::new(y, n_ff, n_tokens, task_rows);
        let up = SharedMatrix::new(up, n_ff, n_tokens, task_rows);
        self.pool.run(n_ff.div_ceil(task_rows), &|i| {
            let (mut y, mut up) = (y.tile(0, i), up.tile(0, i));
            self.rows(gate_w, x, i * task_rows, &mut y);
            self.rows(up_w, x, i * task_rows, &mut up);
            for t in 0..n_tokens {
                gate(self.level, activation, y.row(t), up.row(t));
            }
        });
    }

    /// The outputs `start..start + y.n_cols()` of one linear.
    fn rows(&self, linear: &Linear<'_>, x: LinearInput<'_>, start: usize, y: &mut TileMut<'_>) {
        let x = match x.q8 {
            Some(q8) if self.wants_q8(linear) => q8,
            _ => x.f32,
        };
        let rows = start..start + y.n_cols();
        matmul(self.level, &linear.w, rows.clone(), &x, y);
        if let Some(bias) = linear.bias.get(rows) {
            for t in 0..y.n_rows() {
                y.row(t).iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
        }
    }
}

//! Linears over the pool: several at once where they share their input.

use tandem_kernels::{
    Activation, Matrix, Pool, Q8_SUPER, Q8Super, SharedMatrix, TileMut, matmul, quantize_q8_columns,
};

use super::activations::{Activations, Forms, LinearInput};
use super::batch::{BLOCK_OF_FEW, BLOCK_OF_MANY, BLOCK_OF_ONE, Block, MIN_OUTPUTS, Size};
use super::compute::Step;
use super::low_rank_pass::{Groups, LowRankPass, Ranks, add_bias};
use crate::model::Linear;

/// A linear to be computed, and where its outputs go, `[n_rows, n_out]`.
pub(crate) struct Job<'a> {
    pub linear: &'a Linear,
    pub y: &'a mut [f32],
}

/// The two linears of a gated network, and what is done to the gate.
pub(crate) struct GatedPair<'a> {
    pub gate: &'a Linear,
    pub up: &'a Linear,
    pub activation: Activation,
}

/// Outputs per task for a batch of this size through linears of `n_outputs` in all, the largest of
/// `max_outputs`, on `n_threads`.
pub(crate) fn outputs_per_task(
    n_threads: usize,
    size: Size,
    n_outputs: usize,
    max_outputs: usize,
) -> usize {
    n_outputs
        .div_ceil(n_threads * size.tasks_per_thread())
        .max(max_outputs.div_ceil(SharedMatrix::<f32>::MAX_TILES))
        .next_multiple_of(MIN_OUTPUTS)
}

/// `y_i = x w_i^T + bias_i`, and the compositions' terms, for several linears of the same input.
pub(crate) fn matmul_many<const N: usize>(
    step: &Step<'_>,
    x: LinearInput<'_>,
    jobs: [Job<'_>; N],
    ranks: &mut Ranks,
) {
    let linears = jobs.each_ref().map(|job| job.linear);
    let outputs = linears.iter().map(|linear| linear.w.n_rows());
    let max = outputs.clone().max().unwrap_or(1);
    let (n_threads, n_rows) = (step.pool.n_threads(), step.batch.n_rows());
    let task = outputs_per_task(n_threads, step.batch.size(), outputs.sum(), max);
    let mut groups = Groups::new();
    let run = MatmulMany {
        linears: Linears::new(step, x, linears, ranks, &mut groups),
        y: jobs.map(|job| SharedMatrix::new(job.y, job.linear.w.n_rows(), n_rows, task)),
        task_outputs: task,
    };
    let n_tasks = (0..N).map(|i| run.n_tasks(i)).sum();
    run.linears.run(n_tasks, &|task| run.task(task));
}

/// `y = activation(x gate^T) * (x up^T)`, `[n_rows, n_ff]`, with the compositions' terms, as the input
/// of `next`: as floats or rounded to int8, as that wants it.
pub(crate) fn matmul_gated<'y>(
    step: &Step<'_>,
    x: LinearInput<'_>,
    pair: &GatedPair<'_>,
    next: &Linear,
    buffers: GatedBuffers<'y, '_>,
) -> LinearInput<'y> {
    let GatedBuffers { y, ranks } = buffers;
    let n_ff = pair.gate.w.n_rows();
    let (n_threads, n_rows) = (step.pool.n_threads(), step.batch.n_rows());
    let task = outputs_per_task(n_threads, step.batch.size(), n_ff, n_ff);
    // Rounded block by block where tasks can have whole `Q8Super`s, and no thread more outputs by it.
    let whole = task.next_multiple_of(Q8_SUPER);
    let most = |task: usize| n_ff.div_ceil(task).div_ceil(n_threads) * task;
    let rounds = step.wants_q8(next) && most(whole) <= most(task);
    let (task, wanted) = match rounds {
        true => (
            whole,
            Forms {
                f32: step.wants_f32(next),
                q8: true,
            },
        ),
        false => (
            task,
            Forms {
                f32: true,
                q8: false,
            },
        ),
    };
    {
        let (f32, q8) = y.outputs(n_rows, n_ff, wanted, task);
        let mut groups = Groups::new();
        let run = MatmulGated {
            linears: Linears::new(step, x, [pair.gate, pair.up], ranks, &mut groups),
            activation: pair.activation,
            n_ff,
            f32,
            q8,
            task_outputs: task,
        };
        run.linears.run(n_ff.div_ceil(task), &|task| run.task(task));
    }
    match rounds {
        true => y.ready(n_rows, n_ff, wanted),
        false => y.input(step, n_ff, &[next]),
    }
}

/// What [`matmul_gated`] writes to: its outputs, and the ranks on the way.
pub(crate) struct GatedBuffers<'y, 'r> {
    pub y: &'y mut Activations,
    pub ranks: &'r mut Ranks,
}

/// Linears of one input, and what compositions add to them.
struct Linears<'a, const N: usize> {
    step: &'a Step<'a>,
    x: LinearInput<'a>,
    linears: [&'a Linear; N],
    w: [Matrix<'a>; N],
    low_rank: LowRankPass<'a, N>,
}

impl<'a, const N: usize> Linears<'a, N> {
    fn new<'o: 'a>(
        step: &'o Step<'o>,
        x: LinearInput<'o>,
        linears: [&'o Linear; N],
        ranks: &'o mut Ranks,
        groups: &'a mut Groups<'o, N>,
    ) -> Linears<'a, N> {
        Linears {
            step,
            x,
            linears,
            w: linears.map(|linear| linear.w.view()),
            low_rank: LowRankPass::new(step, x, linears, ranks, groups),
        }
    }

    /// Runs the ranks' tasks, if any, and then `n_tasks` that may wait for them.
    fn run(&self, n_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let pool = &self.step.pool;
        let n_first = self.low_rank.n_tasks();
        let run = |i| match i < n_first {
            true => self.low_rank.compute(i),
            false => task(i - n_first),
        };
        pool.run_apart(pool.n_threads(), n_first, n_first + n_tasks, &run);
    }

    /// A block of the outputs of linear number `i`.
    fn block(&self, i: usize, block: &Block, y: &mut TileMut<'_>) {
        let (linear, w) = (self.linears[i], &self.w[i]);
        let x = match self.x.q8 {
            Some(q8) if self.step.wants_q8(linear) => q8,
            _ => self.x.f32,
        };
        let x = x.tokens(block.rows.clone(), w.n_cols());
        let outputs = block.outputs.clone();
        if block.rows.len() == 1 {
            self.low_rank.prefetch(i, block);
        }
        matmul(self.step.level, w, outputs.clone(), &x, y);
        if let Some(bias) = linear.bias.get(outputs) {
            add_bias(y, bias, 1.0);
        }
        self.low_rank.add(i, block, y);
    }
}

/// The run of [`matmul_many`].
struct MatmulMany<'a, const N: usize> {
    linears: Linears<'a, N>,
    y: [SharedMatrix<'a>; N],
    task_outputs: usize,
}

impl<const N: usize> MatmulMany<'_, N> {
    /// Tasks of linear number `i`.
    fn n_tasks(&self, i: usize) -> usize {
        self.linears.w[i].n_rows().div_ceil(self.task_outputs)
    }

    fn task(&self, task: usize) {
        let (mut i, mut tile) = (0, task);
        while tile >= self.n_tasks(i) {
            tile -= self.n_tasks(i);
            i += 1;
        }
        match self.linears.step.batch.size() {
            Size::One => self.tile::<BLOCK_OF_ONE>(i, tile),
            Size::Few => self.tile::<BLOCK_OF_FEW>(i, tile),
            Size::Many => self.tile::<BLOCK_OF_MANY>(i, tile),
        }
    }

    /// A task's outputs of linear number `i`.
    ///
    /// Never inlined: its buffer would lie on the stack below whatever its caller calls besides.
    #[inline(never)]
    fn tile<const LEN: usize>(&self, i: usize, tile: usize) {
        let mut buffer = [0.0; LEN];
        let (start, mut y) = (tile * self.task_outputs, self.y[i].tile(0, tile));
        for local in self.linears.step.batch.blocks(y.n_cols(), LEN) {
            let mut out = TileMut::new(&mut buffer[..local.len()], local.outputs.len());
            self.linears.block(i, &shifted(&local, start), &mut out);
            store(&mut out, &mut y, &local);
        }
    }
}

/// The run of [`matmul_gated`].
struct MatmulGated<'a> {
    linears: Linears<'a, 2>,
    activation: Activation,
    n_ff: usize,
    f32: Option<SharedMatrix<'a>>,
    q8: Option<SharedMatrix<'a, Q8Super>>,
    task_outputs: usize,
}

impl MatmulGated<'_> {
    fn task(&self, task: usize) {
        match self.linears.step.batch.size() {
            Size::One => self.tile::<BLOCK_OF_ONE>(task),
            Size::Few => self.tile::<BLOCK_OF_FEW>(task),
            Size::Many => self.tile::<BLOCK_OF_MANY>(task),
        }
    }

    /// A task's outputs; never inlined, as [`MatmulMany::tile`].
    #[inline(never)]
    fn tile<const LEN: usize>(&self, tile: usize) {
        let (mut gate, mut up) = ([0.0; LEN], [0.0; LEN]);
        let start = tile * self.task_outputs;
        let mut f32 = self.f32.as_ref().map(|y| y.tile(0, tile));
        let mut q8 = self.q8.as_ref().map(|y| y.tile(tile, 0));
        let n_outputs = self.task_outputs.min(self.n_ff - start);
        let level = self.linears.step.level;
        for local in self.linears.step.batch.blocks(n_outputs, LEN) {
            let n = local.outputs.len();
            let mut gate = TileMut::new(&mut gate[..local.len()], n);
            let mut up = TileMut::new(&mut up[..local.len()], n);
            let block = shifted(&local, start);
            self.linears.block(0, &block, &mut gate);
            self.linears.block(1, &block, &mut up);
            tandem_kernels::gate(level, self.activation, gate.all(), up.all());
            if let Some(q8) = &mut q8 {
                let q8 = &mut q8.cols(local.rows.clone());
                quantize_q8_columns(level, &mut gate, local.outputs.start, q8);
            }
            if let Some(y) = &mut f32 {
                store(&mut gate, y, &local);
            }
        }
    }
}

/// A block of a task whose outputs begin at number `start`.
fn shifted(local: &Block, start: usize) -> Block {
    Block {
        rows: local.rows.clone(),
        outputs: start + local.outputs.start..start + local.outputs.end,
    }
}

/// Copies a block to its place in `y`.
fn store(block: &mut TileMut<'_>, y: &mut TileMut<'_>, place: &Block) {
    for (i, t) in place.rows.clone().enumerate() {
        y.row(t)[place.outputs.clone()].copy_from_slice(block.row(i));
    }
}

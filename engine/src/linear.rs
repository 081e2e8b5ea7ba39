//! Linear layers over the pool: several at once where they share their input.

use core::ops::Range;

use tandem_kernels::{Activation, Input, Level, Limited, Pool, SharedMatrix, TileMut, matmul};

use crate::adapters::{Composition, LinearId, LinearTerms};
use crate::rank_pass::{RankPass, Ranks};
use crate::weights::Linear;

/// What the network runs on.
#[derive(Clone, Copy)]
pub(crate) struct Exec<'a> {
    pub level: Level,
    pub pool: Limited<'a>,
    /// Keep activations in float32 whatever the weights' type.
    pub exact: bool,
    /// What is added to the linears.
    pub composition: Option<&'a Composition<'a>>,
}

/// A linear, and what the composition adds to it.
#[derive(Clone, Copy)]
pub(crate) struct Adapted<'a> {
    pub linear: &'a Linear<'a>,
    pub terms: &'a LinearTerms<'a>,
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
const MIN_ROWS: usize = 32;

/// Rows per task for linears of `n_rows` in all, the largest of `max_rows`, on `n_threads`.
pub(crate) fn rows_per_task(n_threads: usize, n_rows: usize, max_rows: usize) -> usize {
    n_rows
        .div_ceil(n_threads * TASKS_PER_THREAD)
        .max(max_rows.div_ceil(SharedMatrix::<f32>::MAX_TILES))
        .next_multiple_of(MIN_ROWS)
}

impl<'a> Exec<'a> {
    /// The linear with what the composition adds to it.
    pub(crate) fn adapted<'b>(&self, id: LinearId, linear: &'b Linear<'b>) -> Adapted<'b>
    where
        'a: 'b,
    {
        const NONE: &LinearTerms<'static> = &LinearTerms::NONE;
        let terms = self.composition.map_or(NONE, |c| c.terms(id));
        Adapted { linear, terms }
    }

    /// Whether these weights want int8 input.
    pub(crate) fn wants_q8(&self, linear: &Linear<'_>) -> bool {
        linear.w.dtype().is_quantized() && !self.exact
    }

    /// The pool for steps so short that for one token a barrier would cost more than it saves.
    pub(crate) fn light_pool(&self, n_tokens: usize) -> &dyn Pool {
        match n_tokens {
            1 => &tandem_kernels::Serial,
            _ => &self.pool,
        }
    }

    /// `y_i = x w_i^T + bias_i`, and the composition's terms, for several linears of the same
    /// input; `y_i` `[n_tokens, n_out_i]`.
    pub(crate) fn linears<const N: usize>(
        &self,
        x: LinearInput<'_>,
        jobs: [(Adapted<'_>, &mut [f32]); N],
        ranks: &mut Ranks,
    ) {
        let n_rows = |job: &Adapted<'_>| job.linear.w.n_rows();
        let total = jobs.iter().map(|(l, _)| n_rows(l)).sum();
        let max = jobs.iter().map(|(l, _)| n_rows(l)).max().unwrap_or(1);
        let task_rows = rows_per_task(self.pool.n_threads(), total, max);
        let linears = jobs.each_ref().map(|(linear, _)| *linear);
        let n_tokens = jobs.first().map_or(0, |(l, y)| y.len() / n_rows(l));
        let y = jobs.map(|(linear, y)| SharedMatrix::new(y, n_rows(&linear), n_tokens, task_rows));
        let ranks = RankPass::new(self, x, linears, n_tokens, ranks);
        let n_tasks = |linear: &Adapted<'_>| n_rows(linear).div_ceil(task_rows);
        self.run(ranks.as_ref(), linears.iter().map(n_tasks).sum(), &|task| {
            let mut tile = task;
            for (i, linear) in linears.iter().enumerate() {
                if tile < n_tasks(linear) {
                    let (start, y) = (tile * task_rows, &mut y[i].tile(0, tile));
                    return pieces(y, |piece, tokens, rows, _| {
                        let rows = start + rows.start..start + rows.end;
                        self.piece((i, linear), x, (tokens, rows), ranks.as_ref(), piece);
                    });
                }
                tile -= n_tasks(linear);
            }
        });
    }

    /// `y = activation(x gate^T) * (x up^T)`, `[n_tokens, n_ff]`, with the composition's terms.
    pub(crate) fn gated(
        &self,
        x: LinearInput<'_>,
        activation: Activation,
        [gate, up]: [Adapted<'_>; 2],
        y: &mut [f32],
        ranks: &mut Ranks,
    ) {
        let n_ff = gate.linear.w.n_rows();
        let n_tokens = y.len() / n_ff;
        let task_rows = rows_per_task(self.pool.n_threads(), n_ff, n_ff);
        let y = SharedMatrix::new(y, n_ff, n_tokens, task_rows);
        let ranks = RankPass::new(self, x, [gate, up], n_tokens, ranks);
        self.run(ranks.as_ref(), n_ff.div_ceil(task_rows), &|i| {
            let (start, y) = (i * task_rows, &mut y.tile(0, i));
            pieces(y, |piece, tokens, rows, other| {
                let rows = start + rows.start..start + rows.end;
                let other = &mut other[..tokens.len() * rows.len()];
                let up_piece = &mut TileMut::new(other, rows.len());
                self.piece(
                    (0, &gate),
                    x,
                    (tokens.clone(), rows.clone()),
                    ranks.as_ref(),
                    piece,
                );
                self.piece(
                    (1, &up),
                    x,
                    (tokens.clone(), rows),
                    ranks.as_ref(),
                    up_piece,
                );
                for t in 0..tokens.len() {
                    tandem_kernels::gate(self.level, activation, piece.row(t), up_piece.row(t));
                }
            });
        });
    }

    /// Runs the ranks' tasks, if any, and then `n_tasks` that may wait for them.
    fn run<const N: usize>(
        &self,
        ranks: Option<&RankPass<'_, N>>,
        n_tasks: usize,
        task: &(dyn Fn(usize) + Sync),
    ) {
        match ranks {
            None => self.pool.run(n_tasks, task),
            Some(ranks) => {
                let n_first = ranks.n_tasks();
                self.pool
                    .run(n_first + n_tasks, &|i| match i.checked_sub(n_first) {
                        None => ranks.compute(i),
                        Some(i) => task(i),
                    });
            }
        }
    }

    /// The outputs `rows` of the linear number `i` of a run, for the tokens `tokens`.
    fn piece<const N: usize>(
        &self,
        (i, Adapted { linear, terms }): (usize, &Adapted<'_>),
        x: LinearInput<'_>,
        (tokens, rows): (Range<usize>, Range<usize>),
        ranks: Option<&RankPass<'_, N>>,
        y: &mut TileMut<'_>,
    ) {
        let x = match x.q8 {
            Some(q8) if self.wants_q8(linear) => q8,
            _ => x.f32,
        };
        let x = x.tokens(tokens.clone(), linear.w.n_cols());
        matmul(self.level, &linear.w, rows.clone(), &x, y);
        let add = |y: &mut TileMut<'_>, bias: &[f32], weight: f32| {
            for t in 0..y.n_rows() {
                let y = y.row(t).iter_mut();
                y.zip(bias).for_each(|(y, b)| *y += weight * b);
            }
        };
        if let Some(bias) = linear.bias.get(rows.clone()) {
            add(y, bias, 1.0);
        }
        for (bias, weight) in &terms.biases {
            add(y, &bias[rows.clone()], *weight);
        }
        if let Some(ranks) = ranks {
            ranks.add(i, (tokens, rows), y);
        }
    }
}

/// Floats of a piece: 32 outputs of 256 tokens.
const PIECE: usize = 8192;
/// The same for a single token.
const PIECE_OF_ONE: usize = 1024;

/// Fills `y` piece by piece: `fill` gets a piece to fill, its tokens and columns of `y`, and a buffer
/// of the same size.
///
/// Rows of `y` lie as far apart as the model's dimensions say, which are powers of two as a rule:
/// sums that are added to again and again would push each other out of the caches there. And what
/// is done to outputs one after the other, is done while they are near.
fn pieces(
    y: &mut TileMut<'_>,
    fill: impl Fn(&mut TileMut<'_>, Range<usize>, Range<usize>, &mut [f32]),
) {
    match y.n_rows() {
        1 => pieces_of::<PIECE_OF_ONE>(y, fill),
        _ => pieces_of::<PIECE>(y, fill),
    }
}

fn pieces_of<const LEN: usize>(
    y: &mut TileMut<'_>,
    fill: impl Fn(&mut TileMut<'_>, Range<usize>, Range<usize>, &mut [f32]),
) {
    let (mut buffer, mut other) = ([0.0; LEN], [0.0; LEN]);
    let (n_tokens, n_rows) = (y.n_rows(), y.n_cols());
    let piece_tokens = n_tokens.min(LEN / MIN_ROWS);
    let piece_rows = LEN / piece_tokens / MIN_ROWS * MIN_ROWS;
    for r in (0..n_rows).step_by(piece_rows) {
        let rows = r..n_rows.min(r + piece_rows);
        for t in (0..n_tokens).step_by(piece_tokens) {
            let tokens = t..n_tokens.min(t + piece_tokens);
            let buffer = &mut buffer[..tokens.len() * rows.len()];
            let mut piece = TileMut::new(buffer, rows.len());
            fill(&mut piece, tokens.clone(), rows.clone(), &mut other);
            for (i, t) in tokens.enumerate() {
                y.row(t)[rows.clone()].copy_from_slice(piece.row(i));
            }
        }
    }
}

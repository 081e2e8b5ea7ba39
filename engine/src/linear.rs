//! Linear layers over the pool: several at once where they share their input.

use core::ops::Range;

use tandem_kernels::{
    Activation, Input, Level, Limited, Pool, Q8_SUPER, SharedMatrix, TILE_ROWS, TileMut, matmul,
    quantize_q8_columns,
};

use crate::adapters::{Composition, LinearId, LinearTerms, Segment};
use crate::rank_pass::{RankPass, Ranks};
use crate::scratch::Activations;
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

/// The input of linears: as floats, and as int8 where some of them want that. Where none wants
/// floats these may be missing, with no rows.
#[derive(Clone, Copy)]
pub(crate) struct LinearInput<'a> {
    pub f32: Input<'a>,
    pub q8: Option<Input<'a>>,
}

/// Tasks per thread: enough that a thread which is held up does not hold up the others.
const TASKS_PER_THREAD: usize = 8;
/// The same for a single token, whose weights come from memory: each task waits for its first ones,
/// until the memory is ahead of it.
const TASKS_PER_THREAD_OF_ONE: usize = 4;
/// The fewest rows of a task, which every kernel takes without a rest.
const MIN_ROWS: usize = 32;

/// Rows per task for `n_tokens` through linears of `n_rows` in all, the largest of `max_rows`, on
/// `n_threads`.
pub(crate) fn rows_per_task(
    n_threads: usize,
    n_tokens: usize,
    (n_rows, max_rows): (usize, usize),
) -> usize {
    let tasks_per_thread = match n_tokens {
        1 => TASKS_PER_THREAD_OF_ONE,
        _ => TASKS_PER_THREAD,
    };
    n_rows
        .div_ceil(n_threads * tasks_per_thread)
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

    /// Whether this segment of this linear takes int8 input: where the linear does, and both factors
    /// are integers, too.
    pub(crate) fn segment_wants_q8(&self, linear: &Linear<'_>, segment: &Segment<'_>) -> bool {
        let is_quantized = segment.a.dtype().is_quantized() && segment.b.kind().is_quantized();
        is_quantized && self.wants_q8(linear)
    }

    /// Whether the linear, or what is added to it, wants floats.
    fn wants_f32(&self, Adapted { linear, terms }: &Adapted<'_>) -> bool {
        let wants_q8 = |segment| self.segment_wants_q8(linear, segment);
        !self.wants_q8(linear) || !terms.segments.iter().all(wants_q8)
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
        let n_tokens = jobs.first().map_or(0, |(l, y)| y.len() / n_rows(l));
        let task_rows = rows_per_task(self.pool.n_threads(), n_tokens, (total, max));
        let linears = jobs.each_ref().map(|(linear, _)| *linear);
        let y = jobs.map(|(linear, y)| SharedMatrix::new(y, n_rows(&linear), n_tokens, task_rows));
        let ranks = RankPass::new(self, x, linears, n_tokens, ranks);
        let n_tasks = |linear: &Adapted<'_>| n_rows(linear).div_ceil(task_rows);
        self.run(ranks.as_ref(), linears.iter().map(n_tasks).sum(), &|task| {
            let mut tile = task;
            for (i, linear) in linears.iter().enumerate() {
                if tile < n_tasks(linear) {
                    let (start, mut y) = (tile * task_rows, y[i].tile(0, tile));
                    return pieces(n_tokens, y.n_cols(), |piece, tokens, cols, _| {
                        let rows = start + cols.start..start + cols.end;
                        self.piece(
                            (i, linear),
                            x,
                            (tokens.clone(), rows),
                            ranks.as_ref(),
                            piece,
                        );
                        store(piece, &mut y, tokens, cols);
                    });
                }
                tile -= n_tasks(linear);
            }
        });
    }

    /// `y = activation(x gate^T) * (x up^T)`, `[n_tokens, n_ff]`, with the composition's terms, as
    /// the input of `next`: as floats or rounded to int8, as that wants it.
    pub(crate) fn gated<'y>(
        &self,
        x: LinearInput<'_>,
        activation: Activation,
        [gate, up]: [Adapted<'_>; 2],
        (y, n_tokens): (&'y mut Activations, usize),
        next: &Adapted<'_>,
        ranks: &mut Ranks,
    ) -> LinearInput<'y> {
        let n_ff = gate.linear.w.n_rows();
        let n_threads = self.pool.n_threads();
        let task_rows = rows_per_task(n_threads, n_tokens, (n_ff, n_ff));
        // Rounded piece by piece where tasks can have whole `Q8Super`s, and no thread more rows by it.
        let whole = task_rows.next_multiple_of(Q8_SUPER);
        let most_rows = |task_rows: usize| n_ff.div_ceil(task_rows).div_ceil(n_threads) * task_rows;
        let rounds = self.wants_q8(next.linear) && most_rows(whole) <= most_rows(task_rows);
        let (task_rows, wants) = match rounds {
            true => (whole, (self.wants_f32(next), true)),
            false => (task_rows, (true, false)),
        };
        let (f32, q8) = y.outputs(n_tokens, wants, task_rows);
        let ranks = RankPass::new(self, x, [gate, up], n_tokens, ranks);
        self.run(ranks.as_ref(), n_ff.div_ceil(task_rows), &|i| {
            let start = i * task_rows;
            let mut f32 = f32.as_ref().map(|y| y.tile(0, i));
            let mut q8 = q8.as_ref().map(|y| y.tile(i, 0));
            pieces(
                n_tokens,
                task_rows.min(n_ff - start),
                |piece, tokens, cols, other| {
                    let rows = start + cols.start..start + cols.end;
                    let up_piece =
                        &mut TileMut::new(&mut other[..tokens.len() * rows.len()], rows.len());
                    let part = (tokens.clone(), rows);
                    self.piece((0, &gate), x, part.clone(), ranks.as_ref(), piece);
                    self.piece((1, &up), x, part, ranks.as_ref(), up_piece);
                    tandem_kernels::gate(self.level, activation, piece.all(), up_piece.all());
                    if let Some(q8) = &mut q8 {
                        let q8 = &mut q8.cols(tokens.clone());
                        quantize_q8_columns(self.level, piece, cols.start, q8);
                    }
                    if let Some(y) = &mut f32 {
                        store(piece, y, tokens, cols);
                    }
                },
            );
        });
        match rounds {
            true => y.ready(n_tokens, wants),
            false => y.input(self, n_tokens, &[next.linear]),
        }
    }

    /// Runs the ranks' tasks, if any, and then `n_tasks` that may wait for them.
    fn run<const N: usize>(
        &self,
        ranks: Option<&RankPass<'_, N>>,
        n_tasks: usize,
        task: &(dyn Fn(usize) + Sync),
    ) {
        let n_first = ranks.map_or(0, |ranks| ranks.n_tasks());
        let n_threads = self.pool.n_threads();
        let run = |i| match ranks {
            Some(ranks) if i < n_first => ranks.compute(i),
            _ => task(i - n_first),
        };
        self.pool
            .run_apart(n_threads, n_first, n_first + n_tasks, &run);
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
        if tokens.len() == 1 {
            let segments = terms.segments.iter();
            segments.for_each(|segment| segment.b.prefetch(rows.clone()));
        }
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

/// Floats of a piece: what matmul takes at once, of 256 tokens (more take several pieces).
const PIECE: usize = 256 * TILE_ROWS;
/// The same for a single token.
const PIECE_OF_ONE: usize = 1024;

/// Calls `compute` for pieces of outputs `[n_tokens, n_rows]`: with room for the piece, its tokens and
/// its outputs, and a buffer of the same size.
///
/// Rows of a matrix lie as far apart as the model's dimensions say, which are powers of two as a
/// rule: sums that are added to again and again would push each other out of the caches there. And
/// what is done to outputs one after the other, is done while they are near.
fn pieces(
    n_tokens: usize,
    n_rows: usize,
    compute: impl FnMut(&mut TileMut<'_>, Range<usize>, Range<usize>, &mut [f32]),
) {
    match n_tokens {
        1 => pieces_of::<PIECE_OF_ONE>(n_tokens, n_rows, compute),
        _ => pieces_of::<PIECE>(n_tokens, n_rows, compute),
    }
}

fn pieces_of<const LEN: usize>(
    n_tokens: usize,
    n_rows: usize,
    mut compute: impl FnMut(&mut TileMut<'_>, Range<usize>, Range<usize>, &mut [f32]),
) {
    let (mut buffer, mut other) = ([0.0; LEN], [0.0; LEN]);
    let piece_tokens = n_tokens.min(LEN / TILE_ROWS);
    let piece_rows = LEN / piece_tokens / MIN_ROWS * MIN_ROWS;
    for r in (0..n_rows).step_by(piece_rows) {
        let rows = r..n_rows.min(r + piece_rows);
        for t in (0..n_tokens).step_by(piece_tokens) {
            let tokens = t..n_tokens.min(t + piece_tokens);
            let buffer = &mut buffer[..tokens.len() * rows.len()];
            let mut piece = TileMut::new(buffer, rows.len());
            compute(&mut piece, tokens, rows.clone(), &mut other);
        }
    }
}

/// Copies a piece to its tokens and columns of `y`.
fn store(piece: &mut TileMut<'_>, y: &mut TileMut<'_>, tokens: Range<usize>, cols: Range<usize>) {
    for (i, t) in tokens.enumerate() {
        y.row(t)[cols.clone()].copy_from_slice(piece.row(i));
    }
}

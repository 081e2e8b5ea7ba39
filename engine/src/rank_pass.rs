//! The low-rank terms of linears, inside the run that computes the linears themselves.
//!
//! The first tasks of a run compute `h = A x`, one a segment and some tokens; the others compute
//! rows of `W x` and then add `B h`, for which they may have to wait. So an adapter costs no
//! barrier of its own.

use alloc::vec::Vec;
use core::ops::Range;

use tandem_kernels::{
    Handover, LowRankInput, LowRankTerm, Pool, RankScale, TileMut, add_low_rank, matmul, quantize_h,
};

use crate::SessionError;
use crate::adapters::{LinearTerms, Segment};
use crate::linear::{Adapted, Exec, LinearInput};
use crate::scratch::zeroed;

/// The fewest tokens of a task: a multiple of what the kernels do at once.
const MIN_TOKENS: usize = 64;
/// Tasks of each thread where there are tokens enough.
const TASKS_PER_THREAD: usize = 4;
/// Terms added at once.
const TERMS: usize = 4;
/// The most tiles of a [`Handover`].
const MAX_TILES: usize = tandem_kernels::SharedMatrix::<f32>::MAX_TILES;

/// Room for the ranks of one run's segments.
#[derive(Debug, Default)]
pub(crate) struct Ranks {
    /// `[n_batch, n_segments, width]`.
    h: Vec<f32>,
    /// `h` rounded to int8, of the same shape.
    q: Vec<i8>,
    /// Its scales, `[n_batch, n_segments]`.
    scale: Vec<RankScale>,
}

impl Ranks {
    /// For runs of up to `n_segments` with `n_values` in all.
    pub(crate) fn new(
        n_batch: usize,
        (n_segments, n_values): (usize, usize),
    ) -> Result<Ranks, SessionError> {
        // Where a product saturates there is no memory for it either.
        let n = |n: usize| n_batch.saturating_mul(n);
        Ok(Ranks {
            h: zeroed(n(n_values))?,
            q: zeroed(n(n_values))?,
            scale: zeroed(n(n_segments))?,
        })
    }

    /// Bytes of the same.
    pub(crate) fn n_bytes(n_batch: usize, (n_segments, n_values): (usize, usize)) -> usize {
        let n_bytes = n_values
            .saturating_mul(5)
            .saturating_add(size_of::<RankScale>() * n_segments);
        n_batch.saturating_mul(n_bytes)
    }
}

/// The number of segments, and the values that each has room for: the largest rank, filled up so
/// that every layout of B can read whole groups.
pub(crate) fn n_ranks<'a>(terms: impl Iterator<Item = &'a LinearTerms<'a>>) -> (usize, usize) {
    terms
        .flat_map(|terms| &terms.segments)
        .fold((0, 0), |(n, width), s| {
            (n + 1, width.max(s.b.rank().next_multiple_of(8)))
        })
}

/// The ranks of all segments of some linears with the same input.
pub(crate) struct RankPass<'a, const N: usize> {
    exec: Exec<'a>,
    x: LinearInput<'a>,
    linears: [Adapted<'a>; N],
    n_segments: usize,
    width: usize,
    n_tokens: usize,
    task_tokens: usize,
    h: Handover<'a, f32>,
    q: Handover<'a, i8>,
    scale: Handover<'a, RankScale>,
}

impl<'a, const N: usize> RankPass<'a, N> {
    /// `None` where the linears have no segments.
    pub(crate) fn new(
        exec: &Exec<'a>,
        x: LinearInput<'a>,
        linears: [Adapted<'a>; N],
        n_tokens: usize,
        ranks: &'a mut Ranks,
    ) -> Option<RankPass<'a, N>> {
        let (n_segments, width) = n_ranks(linears.iter().map(|l| l.terms));
        if n_segments == 0 {
            return None;
        }
        // Many tokens, as the factors are made ready for each task, but so few that no thread waits
        // long for another's.
        let n_chunks = (TASKS_PER_THREAD * exec.pool.n_threads()).div_ceil(n_segments);
        let task_tokens = n_tokens
            .div_ceil(n_chunks)
            .max(n_tokens.div_ceil(MAX_TILES / n_segments))
            .next_multiple_of(MIN_TOKENS);
        let n_values = n_segments * width;
        let (h, q) = (
            &mut ranks.h[..n_tokens * n_values],
            &mut ranks.q[..n_tokens * n_values],
        );
        let scale = &mut ranks.scale[..n_tokens * n_segments];
        Some(RankPass {
            exec: *exec,
            x,
            linears,
            n_segments,
            width,
            n_tokens,
            task_tokens,
            h: Handover::new(h, n_values, task_tokens, width),
            q: Handover::new(q, n_values, task_tokens, width),
            scale: Handover::new(scale, n_segments, task_tokens, 1),
        })
    }

    /// Tasks that must be the first of the run.
    pub(crate) fn n_tasks(&self) -> usize {
        self.n_segments * self.n_tokens.div_ceil(self.task_tokens)
    }

    /// One of these tasks: `h = A x`, and `h` rounded to int8 where it is added so.
    pub(crate) fn compute(&self, task: usize) {
        let (chunk, s) = (task / self.n_segments, task % self.n_segments);
        let mut all = self
            .linears
            .iter()
            .flat_map(|l| l.terms.segments.iter().map(move |segment| (l, segment)));
        let Some((linear, segment)) = all.nth(s) else {
            unreachable!("there are as many tasks as segments");
        };
        let (level, rank) = (self.exec.level, segment.b.rank());
        let first = chunk * self.task_tokens;
        let tokens = first..self.n_tokens.min(first + self.task_tokens);
        let q8 = self.q8_input(linear, segment);
        let x = q8.unwrap_or(self.x.f32);
        let x = x.tokens(tokens.clone(), segment.a.n_cols());
        self.h.fill(chunk, s, |h| {
            matmul(level, &segment.a, 0..rank, &x, &mut h.cols(0..rank));
            self.q.fill(chunk, s, |q| {
                self.scale.fill(chunk, s, |scale| {
                    for t in (0..tokens.len()).filter(|_| q8.is_some()) {
                        quantize_h(level, &h.row(t)[..rank], q.row(t), &mut scale.row(t)[0]);
                    }
                });
            });
        });
    }

    /// The int8 input, where this segment takes it.
    fn q8_input(
        &self,
        linear: &Adapted<'_>,
        segment: &Segment<'_>,
    ) -> Option<tandem_kernels::Input<'a>> {
        let q8 = self.x.q8;
        q8.filter(|_| self.exec.segment_wants_q8(linear.linear, segment))
    }

    /// Adds to `y` `[tokens, rows]` the terms of the linear number `i`, when the ranks are there.
    pub(crate) fn add(
        &self,
        i: usize,
        (tokens, rows): (Range<usize>, Range<usize>),
        y: &mut TileMut<'_>,
    ) {
        let linear = &self.linears[i];
        let before = self.linears[..i].iter().map(|l| l.terms.segments.len());
        let first = before.sum::<usize>();
        for (c, segments) in linear.terms.segments.chunks(TERMS).enumerate() {
            // An array, where the last stands for what is missing, spares an allocation.
            let terms: [_; TERMS] = core::array::from_fn(|k| {
                let k = k.min(segments.len() - 1);
                let s = first + c * TERMS + k;
                self.term(linear, &segments[k], s, tokens.start)
            });
            let terms = &terms[..segments.len()];
            add_low_rank(self.exec.level, terms, rows.clone(), y);
        }
    }

    /// The term of a linear's segment, number `s` of the run, for the tokens from `first` on.
    fn term<'s>(
        &'s self,
        linear: &Adapted<'_>,
        segment: &'s Segment<'_>,
        s: usize,
        first: usize,
    ) -> LowRankTerm<'s> {
        let stride = self.n_segments * self.width;
        let h = first * stride + s * self.width;
        let h = match self.q8_input(linear, segment) {
            Some(_) => LowRankInput::Q8 {
                q: &self.q.wait(&self.exec.pool)[h..],
                stride,
                scale: &self.scale.wait(&self.exec.pool)[first * self.n_segments + s..],
                scale_stride: self.n_segments,
            },
            None => LowRankInput::F32 {
                h: &self.h.wait(&self.exec.pool)[h..],
                stride,
            },
        };
        LowRankTerm {
            b: segment.b,
            h,
            scale: segment.scale,
        }
    }
}

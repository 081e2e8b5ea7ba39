//! The low-rank terms of linears, inside the run that computes the linears themselves.
//!
//! The first tasks of a run compute `h = A x`, each of a segment and some tokens or, for a single
//! token, of a thread's share of all ranks; the others compute rows of `W x` and then add `B h`,
//! for which they may have to wait. So an adapter costs no barrier of its own.

use alloc::vec::Vec;
use core::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};
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
/// Ranks of a single token that one thread computes are a multiple of it.
const SHARE_MULTIPLE: usize = 4;
/// Terms added at once.
const TERMS: usize = 4;
/// The most tiles of a [`Handover`].
const MAX_TILES: usize = tandem_kernels::SharedMatrix::<f32>::MAX_TILES;

/// Room for the ranks of one run's segments: of each token and segment a record, see [`RecordLayout`],
/// and once more for the ranks of a single token before they are put into records.
#[derive(Debug, Default)]
pub(crate) struct Ranks {
    records: Vec<f32>,
}

impl Ranks {
    /// For runs whose records have up to `n_floats` for each token.
    pub(crate) fn new(n_batch: usize, n_floats: usize) -> Result<Ranks, SessionError> {
        Ok(Ranks {
            // Where the product saturates there is no memory for it either.
            records: zeroed(n_batch.saturating_add(1).saturating_mul(n_floats))?,
        })
    }

    /// Bytes of the same.
    pub(crate) fn n_bytes(n_batch: usize, n_floats: usize) -> usize {
        let n_floats = n_batch.saturating_add(1).saturating_mul(n_floats);
        n_floats.saturating_mul(size_of::<f32>())
    }
}

/// Where a run's ranks are: `[n_tokens, n_segments, record]`, and a record is `width` floats, the
/// same rounded to int8, four to a float's place, and their [`RankScale`].
#[derive(Clone, Copy)]
struct RecordLayout {
    n_segments: usize,
    /// The largest rank, filled up so that every layout of B can read whole groups.
    width: usize,
}

impl RecordLayout {
    /// Of all segments of some linears with the same input.
    fn of<'a>(terms: impl Iterator<Item = &'a LinearTerms<'a>>) -> RecordLayout {
        let segments = terms.flat_map(|terms| &terms.segments);
        let (n_segments, width) = segments.fold((0, 0), |(n, width), s| {
            (n + 1, width.max(s.b.rank().next_multiple_of(8)))
        });
        RecordLayout { n_segments, width }
    }

    /// Floats of the int8 ranks.
    fn q_len(self) -> usize {
        self.width / 4
    }

    /// Floats of a record.
    fn record_len(self) -> usize {
        self.width + self.q_len() + size_of::<RankScale>() / size_of::<f32>()
    }

    /// Floats of a token's records.
    fn token_len(self) -> usize {
        self.n_segments.saturating_mul(self.record_len())
    }
}

/// Floats of one token's records in a run of some linears with the same input.
pub(crate) fn record_floats<'a>(terms: impl Iterator<Item = &'a LinearTerms<'a>>) -> usize {
    RecordLayout::of(terms).token_len()
}

/// The ranks of all segments of some linears with the same input.
pub(crate) struct RankPass<'a, const N: usize> {
    exec: Exec<'a>,
    x: LinearInput<'a>,
    linears: [Adapted<'a>; N],
    layout: RecordLayout,
    n_tokens: usize,
    task_tokens: usize,
    /// Where there is a single token.
    single: Option<SingleToken<'a>>,
    records: Handover<'a, f32>,
}

/// The ranks of a single token before they are put into records: those of all segments one after
/// the other, in equal shares of the threads.
struct SingleToken<'a> {
    ranks: Handover<'a, f32>,
    n_ranks: usize,
    share: usize,
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
        let layout = RecordLayout::of(linears.iter().map(|l| l.terms));
        let n_segments = layout.n_segments;
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
        let n_floats = n_tokens * layout.token_len();
        let (records, rest) = ranks.records.split_at_mut(n_floats);
        let single = (n_tokens == 1).then(|| {
            let segments = linears.iter().flat_map(|l| &l.terms.segments);
            let n_ranks: usize = segments.map(|segment| segment.b.rank()).sum();
            let share = n_ranks.div_ceil(exec.pool.n_threads().min(MAX_TILES));
            let share = share.next_multiple_of(SHARE_MULTIPLE);
            SingleToken {
                ranks: Handover::new(&mut rest[..n_ranks], n_ranks, 1, share),
                n_ranks,
                share,
            }
        });
        let record_cols = match &single {
            Some(_) => layout.token_len(),
            None => layout.record_len(),
        };
        Some(RankPass {
            exec: *exec,
            x,
            linears,
            layout,
            n_tokens,
            task_tokens,
            single,
            records: Handover::new(records, layout.token_len(), task_tokens, record_cols),
        })
    }

    /// Tasks that must be the first of the run.
    pub(crate) fn n_tasks(&self) -> usize {
        match &self.single {
            Some(single) => single.n_ranks.div_ceil(single.share),
            None => self.layout.n_segments * self.n_tokens.div_ceil(self.task_tokens),
        }
    }

    /// One of these tasks.
    pub(crate) fn compute(&self, task: usize) {
        match &self.single {
            Some(single) => self.compute_share(single, task),
            None => {
                let (chunk, s) = (task / self.layout.n_segments, task % self.layout.n_segments);
                self.compute_segment(chunk, s);
            }
        }
    }

    /// The segments of all linears.
    fn segments(&self) -> impl Iterator<Item = (&Adapted<'a>, &'a Segment<'a>)> {
        let linears = self.linears.iter();
        linears.flat_map(|linear| linear.terms.segments.iter().map(move |s| (linear, s)))
    }

    /// For a single token the ranks of share `task`, and the records when all ranks are there.
    fn compute_share(&self, single: &SingleToken<'_>, task: usize) {
        let first = task * single.share;
        let share = first..single.n_ranks.min(first + single.share);
        let is_last = single.ranks.fill(0, task, |ranks| {
            let mut start = 0;
            for (linear, segment) in self.segments() {
                let end = start + segment.b.rank();
                let part = start.max(share.start)..end.min(share.end);
                if !part.is_empty() {
                    let x = self.q8_input(linear, segment).unwrap_or(self.x.f32);
                    let x = x.tokens(0..1, segment.a.n_cols());
                    let rows = part.start - start..part.end - start;
                    let y = &mut ranks.cols(part.start - first..part.end - first);
                    matmul(self.exec.level, &segment.a, rows, &x, y);
                }
                start = end;
            }
        });
        if !is_last {
            return;
        }
        let mut ranks = single.ranks.wait(&self.exec.pool);
        self.records.fill(0, 0, |records| {
            let records = records.row(0).chunks_exact_mut(self.layout.record_len());
            for ((linear, segment), record) in self.segments().zip(records) {
                let (h, others) = ranks.split_at(segment.b.rank());
                record[..h.len()].copy_from_slice(h);
                self.round(linear, segment, record);
                ranks = others;
            }
        });
    }

    /// The records of segment `s` and the tokens of chunk `chunk`.
    fn compute_segment(&self, chunk: usize, s: usize) {
        let Some((linear, segment)) = self.segments().nth(s) else {
            return;
        };
        let (level, rank) = (self.exec.level, segment.b.rank());
        let first = chunk * self.task_tokens;
        let tokens = first..self.n_tokens.min(first + self.task_tokens);
        let x = self.q8_input(linear, segment).unwrap_or(self.x.f32);
        let x = x.tokens(tokens.clone(), segment.a.n_cols());
        self.records.fill(chunk, s, |records| {
            matmul(level, &segment.a, 0..rank, &x, &mut records.cols(0..rank));
            for t in 0..tokens.len() {
                self.round(linear, segment, records.row(t));
            }
        });
    }

    /// Rounds the ranks of a record to int8, where they are added so.
    fn round(&self, linear: &Adapted<'_>, segment: &Segment<'_>, record: &mut [f32]) {
        if self.q8_input(linear, segment).is_none() {
            return;
        }
        let (h, rounded) = record.split_at_mut(self.layout.width);
        let (q, scale) = rounded.split_at_mut(self.layout.q_len());
        let scale = &mut cast_slice_mut(scale)[0];
        quantize_h(
            self.exec.level,
            &h[..segment.b.rank()],
            cast_slice_mut(q),
            scale,
        );
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
        let RecordLayout { width, .. } = self.layout;
        let stride = self.layout.token_len();
        if let Some(single) = &self.single {
            // Whoever fills the last of them fills the records, unless it panics.
            single.ranks.wait(&self.exec.pool);
        }
        let h =
            &self.records.wait(&self.exec.pool)[first * stride + s * self.layout.record_len()..];
        let h = match self.q8_input(linear, segment) {
            Some(_) => LowRankInput::Q8 {
                q: cast_slice(&h[width..]),
                stride: stride * size_of::<f32>(),
                scale: cast_slice(&h[width + self.layout.q_len()..]),
                scale_stride: stride * size_of::<f32>() / size_of::<RankScale>(),
            },
            None => LowRankInput::F32 { h, stride },
        };
        LowRankTerm {
            b: segment.b,
            h,
            scale: segment.scale,
        }
    }
}

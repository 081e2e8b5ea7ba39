//! The low-rank terms of linears, inside the run that computes the linears themselves.
//!
//! The first tasks of a run compute `h = A x`, each of some factors and some rows or, for a single
//! row, of a thread's share of all ranks; the others compute outputs of `W x` and then add `B h`, for
//! which they may have to wait. So an adapter costs no barrier of its own. Rows with different
//! compositions are groups, each with factors, ranks and tasks of its own.

use alloc::vec::Vec;
use core::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};
use smallvec::SmallVec;
use tandem_kernels::{
    Handover, Input, LowRankInput, LowRankTerm, Pool, RankScale, TileMut, add_low_rank, matmul,
    quantize_h,
};

use super::activations::LinearInput;
use super::batch::{Block, RowGroup};
use super::compute::Step;
use crate::adapters::{LinearTerms, PackedFactors};
use crate::buffer::zeroed;
use crate::model::Linear;
use crate::{Composition, SessionError};

/// The fewest rows of a task: a multiple of what the kernels do at once.
const MIN_ROWS: usize = 64;
/// Tasks of each thread where there are rows enough.
const TASKS_PER_THREAD: usize = 4;
/// Ranks of a single row that one thread computes are a multiple of it.
const SHARE_MULTIPLE: usize = 4;
/// Terms added at once.
const TERMS: usize = 4;
/// The most tiles of a [`Handover`].
const MAX_TILES: usize = tandem_kernels::SharedMatrix::<f32>::MAX_TILES;

/// Room for the ranks of one run: of each row and each factors of its composition a record, see
/// [`RecordLayout`], and once more for the ranks of a single row before they are put into records.
#[derive(Debug, Default)]
pub(crate) struct Ranks {
    records: Vec<f32>,
}

impl Ranks {
    /// Makes room for so many floats, see [`Ranks::n_floats`] and [`batch_floats`].
    pub(crate) fn reserve(&mut self, n_floats: usize) -> Result<(), SessionError> {
        if self.records.len() < n_floats {
            self.records = Vec::new();
            self.records = zeroed(n_floats)?;
        }
        Ok(())
    }

    /// Floats that `n_rows` rows of a composition take. It saturates, as there is no memory for so many
    /// either.
    pub(crate) fn n_floats(n_rows: usize, composition: &Composition) -> usize {
        let n_floats = composition.max_record_floats();
        n_rows.saturating_add(1).saturating_mul(n_floats)
    }
}

/// Where a group's ranks are: `[n_rows, n_factors, record]`, and a record is `width` floats, the
/// same rounded to int8, four to a float's place, and their [`RankScale`].
#[derive(Clone, Copy)]
struct RecordLayout {
    n_factors: usize,
    /// The largest rank, filled up so that every layout of B can read whole groups.
    width: usize,
}

impl RecordLayout {
    /// Of all factors of some linears with the same input.
    fn of<'a>(terms: impl Iterator<Item = &'a LinearTerms>) -> RecordLayout {
        let factors = terms.flat_map(|terms| &terms.factors);
        let (n_factors, width) = factors.fold((0, 0), |(n, width), f| {
            (n + 1, width.max(f.rank().next_multiple_of(8)))
        });
        RecordLayout { n_factors, width }
    }

    /// Floats of the int8 ranks.
    fn q_len(self) -> usize {
        self.width / 4
    }

    /// Floats of a record.
    fn record_len(self) -> usize {
        self.width + self.q_len() + size_of::<RankScale>() / size_of::<f32>()
    }

    /// Floats of a row's records.
    fn row_len(self) -> usize {
        self.n_factors.saturating_mul(self.record_len())
    }
}

/// Floats of one row's records in a run of some linears with the same input.
pub(crate) fn record_floats<'a>(terms: impl Iterator<Item = &'a LinearTerms>) -> usize {
    RecordLayout::of(terms).row_len()
}

/// Each group's part in a run. A few are on the stack; more compositions in one pass are rare, and room
/// for as many as there could be would take 40 kB of it.
pub(super) type Groups<'a, const N: usize> = SmallVec<[GroupPass<'a, N>; 4]>;

/// What the compositions of a batch add to some linears with the same input.
pub(super) struct LowRankPass<'a, const N: usize> {
    groups: &'a [GroupPass<'a, N>],
    n_tasks: usize,
}

impl<'a, const N: usize> LowRankPass<'a, N> {
    /// The groups are put into `groups`, which is empty.
    pub(super) fn new<'o: 'a>(
        step: &'o Step<'o>,
        x: LinearInput<'o>,
        linears: [&'o Linear; N],
        ranks: &'o mut Ranks,
        groups: &'a mut Groups<'o, N>,
    ) -> LowRankPass<'a, N> {
        let mut room = &mut ranks.records[..];
        let mut n_tasks = 0;
        for group in step.batch.groups() {
            let terms = linears.map(|linear| group.composition.terms(linear.id));
            if terms.iter().all(|terms| terms.is_empty()) {
                continue;
            }
            let group = AdaptedRows {
                step,
                x,
                linears,
                terms,
                rows: group.rows.clone(),
            };
            let (ranks, rest) = GroupRanks::new(&group, room);
            room = rest;
            n_tasks += ranks.as_ref().map_or(0, GroupRanks::n_tasks);
            groups.push(GroupPass { group, ranks });
        }
        LowRankPass { groups, n_tasks }
    }

    /// Tasks that must be the first of the run.
    pub(super) fn n_tasks(&self) -> usize {
        self.n_tasks
    }

    /// One of these tasks.
    pub(super) fn compute(&self, mut task: usize) {
        for GroupPass { group, ranks } in self.groups {
            let Some(ranks) = ranks else { continue };
            if task < ranks.n_tasks() {
                return ranks.compute(group, task);
            }
            task -= ranks.n_tasks();
        }
    }

    /// Asks the memory for what will be added to a block of one row.
    pub(super) fn prefetch(&self, i: usize, block: &Block) {
        for GroupPass { group, .. } in self.groups {
            if group.rows.contains(&block.rows.start) {
                for factors in &group.terms[i].factors {
                    factors.b().prefetch(block.outputs.clone());
                }
            }
        }
    }

    /// Adds to `y`, a block of the outputs of linear number `i`, what the compositions add, when the
    /// ranks are there.
    pub(super) fn add(&self, i: usize, block: &Block, y: &mut TileMut<'_>) {
        for GroupPass { group, ranks } in self.groups {
            let rows = group.rows.start.max(block.rows.start)..group.rows.end.min(block.rows.end);
            if rows.is_empty() {
                continue;
            }
            let mut y = y.rows(rows.start - block.rows.start..rows.end - block.rows.start);
            for bias in &group.terms[i].biases {
                add_bias(&mut y, &bias.values[block.outputs.clone()], bias.weight);
            }
            if let Some(ranks) = ranks {
                let first = rows.start - group.rows.start;
                ranks.add(group, i, first, block.outputs.clone(), &mut y);
            }
        }
    }
}

/// `y += weight bias`, row by row.
pub(super) fn add_bias(y: &mut TileMut<'_>, bias: &[f32], weight: f32) {
    for t in 0..y.n_rows() {
        let y = y.row(t).iter_mut();
        y.zip(bias).for_each(|(y, b)| *y += weight * b);
    }
}

/// A group's part in a run; ranks where its composition has factors for the linears.
pub(super) struct GroupPass<'a, const N: usize> {
    group: AdaptedRows<'a, N>,
    ranks: Option<GroupRanks<'a>>,
}

/// Rows with one composition, and what that adds to the linears of a run.
struct AdaptedRows<'a, const N: usize> {
    step: &'a Step<'a>,
    x: LinearInput<'a>,
    linears: [&'a Linear; N],
    terms: [&'a LinearTerms; N],
    rows: Range<usize>,
}

impl<'a, const N: usize> AdaptedRows<'a, N> {
    /// The factors of all linears.
    fn factors(&self) -> impl Iterator<Item = (&'a Linear, &'a PackedFactors)> {
        let linears = self.linears.into_iter().zip(self.terms);
        linears.flat_map(|(linear, terms)| terms.factors.iter().map(move |f| (linear, f)))
    }

    /// The int8 input, where these factors take it.
    fn q8_input(&self, linear: &Linear, factors: &PackedFactors) -> Option<Input<'a>> {
        let q8 = self.x.q8;
        q8.filter(|_| self.step.factors_want_q8(linear, factors))
    }

    /// `y = A x` of the ranks `ranks`, for the group's rows `rows`.
    fn multiply(
        &self,
        linear: &Linear,
        factors: &PackedFactors,
        rows: Range<usize>,
        ranks: Range<usize>,
        y: &mut TileMut<'_>,
    ) {
        let a = factors.a();
        let x = self.q8_input(linear, factors).unwrap_or(self.x.f32);
        let rows = self.rows.start + rows.start..self.rows.start + rows.end;
        let x = x.tokens(rows, a.n_cols());
        matmul(self.step.level, &a, ranks, &x, y);
    }

    /// Rounds the ranks of a record to int8, where they are added so.
    fn round(
        &self,
        linear: &Linear,
        factors: &PackedFactors,
        layout: RecordLayout,
        record: &mut [f32],
    ) {
        if self.q8_input(linear, factors).is_none() {
            return;
        }
        let (h, rounded) = record.split_at_mut(layout.width);
        let (q, scale) = rounded.split_at_mut(layout.q_len());
        let h = &h[..factors.rank()];
        let scale = &mut cast_slice_mut(scale)[0];
        quantize_h(self.step.level, h, cast_slice_mut(q), scale);
    }
}

/// The ranks of all factors of a group.
struct GroupRanks<'a> {
    layout: RecordLayout,
    n_rows: usize,
    task_rows: usize,
    /// Where there is a single row.
    single: Option<SingleRow<'a>>,
    records: Handover<'a, f32>,
}

/// The ranks of a single row before they are put into records: those of all factors one after the
/// other, in equal shares of the threads.
struct SingleRow<'a> {
    ranks: Handover<'a, f32>,
    n_ranks: usize,
    share: usize,
}

impl<'a> GroupRanks<'a> {
    /// The ranks of a group in `room`, and what is left of that; `None` where the linears have no
    /// factors.
    fn new<const N: usize>(
        group: &AdaptedRows<'a, N>,
        room: &'a mut [f32],
    ) -> (Option<GroupRanks<'a>>, &'a mut [f32]) {
        let layout = RecordLayout::of(group.terms.into_iter());
        let n_factors = layout.n_factors;
        if n_factors == 0 {
            return (None, room);
        }
        let (n_rows, n_threads) = (group.rows.len(), group.step.pool.n_threads());
        // Many rows, as the factors are made ready for each task, but so few that no thread waits long
        // for another's.
        let n_chunks = (TASKS_PER_THREAD * n_threads).div_ceil(n_factors);
        let task_rows = n_rows
            .div_ceil(n_chunks)
            .max(n_rows.div_ceil(MAX_TILES / n_factors))
            .next_multiple_of(MIN_ROWS);
        let (records, mut rest) = room.split_at_mut(n_rows * layout.row_len());
        let mut single = None;
        if n_rows == 1 {
            let n_ranks: usize = group.factors().map(|(_, factors)| factors.rank()).sum();
            let share = n_ranks.div_ceil(n_threads.min(MAX_TILES));
            let share = share.next_multiple_of(SHARE_MULTIPLE);
            let (ranks, others) = rest.split_at_mut(n_ranks);
            rest = others;
            single = Some(SingleRow {
                ranks: Handover::new(ranks, n_ranks, 1, share),
                n_ranks,
                share,
            });
        }
        let record_cols = match &single {
            Some(_) => layout.row_len(),
            None => layout.record_len(),
        };
        let ranks = GroupRanks {
            layout,
            n_rows,
            task_rows,
            single,
            records: Handover::new(records, layout.row_len(), task_rows, record_cols),
        };
        (Some(ranks), rest)
    }

    fn n_tasks(&self) -> usize {
        match &self.single {
            Some(single) => single.n_ranks.div_ceil(single.share),
            None => self.layout.n_factors * self.n_rows.div_ceil(self.task_rows),
        }
    }

    fn compute<const N: usize>(&self, group: &AdaptedRows<'_, N>, task: usize) {
        match &self.single {
            Some(single) => self.compute_share(group, single, task),
            None => self.compute_records(group, task),
        }
    }

    /// For a single row the ranks of share `task`, and the records when all ranks are there.
    fn compute_share<const N: usize>(
        &self,
        group: &AdaptedRows<'_, N>,
        single: &SingleRow<'_>,
        task: usize,
    ) {
        let first = task * single.share;
        let share = first..single.n_ranks.min(first + single.share);
        let is_last = single.ranks.fill(0, task, |ranks| {
            let mut start = 0;
            for (linear, factors) in group.factors() {
                let end = start + factors.rank();
                let part = start.max(share.start)..end.min(share.end);
                if !part.is_empty() {
                    let own = part.start - start..part.end - start;
                    let y = &mut ranks.cols(part.start - first..part.end - first);
                    group.multiply(linear, factors, 0..1, own, y);
                }
                start = end;
            }
        });
        if !is_last {
            return;
        }
        let mut ranks = single.ranks.wait(&group.step.pool);
        self.records.fill(0, 0, |records| {
            let records = records.row(0).chunks_exact_mut(self.layout.record_len());
            for ((linear, factors), record) in group.factors().zip(records) {
                let (h, others) = ranks.split_at(factors.rank());
                record[..h.len()].copy_from_slice(h);
                group.round(linear, factors, self.layout, record);
                ranks = others;
            }
        });
    }

    /// The records of some factors and some rows.
    fn compute_records<const N: usize>(&self, group: &AdaptedRows<'_, N>, task: usize) {
        let n_factors = self.layout.n_factors;
        let (chunk, f) = (task / n_factors, task % n_factors);
        let Some((linear, factors)) = group.factors().nth(f) else {
            return;
        };
        let first = chunk * self.task_rows;
        let rows = first..self.n_rows.min(first + self.task_rows);
        self.records.fill(chunk, f, |records| {
            let ranks = 0..factors.rank();
            let y = &mut records.cols(ranks.clone());
            group.multiply(linear, factors, rows.clone(), ranks, y);
            for t in 0..rows.len() {
                group.round(linear, factors, self.layout, records.row(t));
            }
        });
    }

    /// Adds to `y` the terms of linear number `i` for the group's rows from `first` on.
    fn add<const N: usize>(
        &self,
        group: &AdaptedRows<'_, N>,
        i: usize,
        first: usize,
        outputs: Range<usize>,
        y: &mut TileMut<'_>,
    ) {
        let before = group.terms[..i].iter().map(|terms| terms.factors.len());
        let before = before.sum::<usize>();
        for (c, factors) in group.terms[i].factors.chunks(TERMS).enumerate() {
            // An array, where the last stands for what is missing, spares an allocation.
            let terms: [_; TERMS] = core::array::from_fn(|k| {
                let k = k.min(factors.len() - 1);
                let h = self.ranks(group, i, &factors[k], before + c * TERMS + k, first);
                LowRankTerm {
                    b: factors[k].b(),
                    h,
                    scale: factors[k].scale(),
                }
            });
            let terms = &terms[..factors.len()];
            add_low_rank(group.step.level, terms, outputs.clone(), y);
        }
    }

    /// The ranks of factors number `f` of linear number `i`, for the group's rows from `first` on.
    fn ranks<const N: usize>(
        &self,
        group: &AdaptedRows<'_, N>,
        i: usize,
        factors: &PackedFactors,
        f: usize,
        first: usize,
    ) -> LowRankInput<'_> {
        let (width, stride) = (self.layout.width, self.layout.row_len());
        let pool = &group.step.pool;
        if let Some(single) = &self.single {
            // Whoever fills the last of them fills the records, unless it panics.
            single.ranks.wait(pool);
        }
        let h = &self.records.wait(pool)[first * stride + f * self.layout.record_len()..];
        match group.q8_input(group.linears[i], factors) {
            Some(_) => LowRankInput::Q8 {
                q: cast_slice(&h[width..]),
                stride: stride * size_of::<f32>(),
                scale: cast_slice(&h[width + self.layout.q_len()..]),
                scale_stride: stride * size_of::<f32>() / size_of::<RankScale>(),
            },
            None => LowRankInput::F32 { h, stride },
        }
    }
}

/// Floats that the ranks of a batch take at most.
pub(crate) fn batch_floats(groups: &[RowGroup<'_>]) -> usize {
    let groups = groups.iter();
    let n_floats = groups.map(|group| Ranks::n_floats(group.rows.len(), group.composition));
    n_floats.fold(0, usize::saturating_add)
}

//! The rows that go through the network together.

use core::ops::Range;

use arrayvec::ArrayVec;
use tandem_kernels::TILE_ROWS;

use crate::Composition;
use crate::adapters::LinearTerms;
use crate::model::Linear;

/// The most sequences in one pass.
pub const MAX_SPANS: usize = 64;

/// Rows up to this number are few: weights take longer to come from memory than to be multiplied.
const FEW_ROWS: usize = 16;

/// How many rows a batch has, which decides how its work is cut. Nothing else asks how many rows there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// A single one: decode.
    One,
    /// Decode of some sequences, or a short piece of a prompt.
    Few,
    /// Prefill.
    Many,
}

impl Size {
    /// Tasks per thread: enough that a thread which is held up does not hold up the others. The
    /// weights of a single row come from memory: each task waits for its first ones, until the memory
    /// is ahead of it.
    pub(crate) fn tasks_per_thread(self) -> usize {
        match self {
            Size::One => 4,
            Size::Few | Size::Many => 8,
        }
    }

    /// Of so many rows.
    pub(crate) fn of(n_rows: usize) -> Size {
        match n_rows {
            0..=1 => Size::One,
            2..=FEW_ROWS => Size::Few,
            _ => Size::Many,
        }
    }
}

/// Floats of a block of outputs of one row.
pub(super) const BLOCK_OF_ONE: usize = 1024;
/// The same for few rows.
pub(super) const BLOCK_OF_FEW: usize = 64 * TILE_ROWS;
/// The same for many: what matmul takes at once, of 256 rows (more take several blocks).
pub(super) const BLOCK_OF_MANY: usize = 256 * TILE_ROWS;

/// Rows of one sequence, as a batch is made of them.
#[derive(Clone, Copy)]
pub(crate) struct BatchPart<'a> {
    pub n_rows: usize,
    pub composition: Option<&'a Composition>,
}

/// Rows of several sequences, and what is added to the linears for which of them.
///
/// What a row comes to depends on its own part alone: every sum has one order, however many rows there are.
pub(crate) struct Batch<'a> {
    n_rows: usize,
    groups: ArrayVec<RowGroup<'a>, MAX_SPANS>,
}

/// Rows that follow each other and have the same composition.
#[derive(Clone)]
pub(crate) struct RowGroup<'a> {
    pub rows: Range<usize>,
    pub composition: &'a Composition,
}

impl<'a> Batch<'a> {
    /// Of the parts in their order.
    ///
    /// # Panics
    ///
    /// If there are more than [`MAX_SPANS`].
    pub(crate) fn new(parts: impl Iterator<Item = BatchPart<'a>>) -> Batch<'a> {
        let mut batch = Batch {
            n_rows: 0,
            groups: ArrayVec::new(),
        };
        for part in parts {
            let rows = batch.n_rows..batch.n_rows + part.n_rows;
            batch.n_rows = rows.end;
            let Some(composition) = part.composition else {
                continue;
            };
            let last = batch.groups.last_mut();
            let is_alike = |last: &&mut RowGroup<'_>| {
                last.rows.end == rows.start && last.composition.id() == composition.id()
            };
            match last.filter(is_alike) {
                Some(last) => last.rows.end = rows.end,
                None => batch.groups.push(RowGroup { rows, composition }),
            }
        }
        batch
    }

    pub(crate) fn n_rows(&self) -> usize {
        self.n_rows
    }

    pub(crate) fn size(&self) -> Size {
        Size::of(self.n_rows)
    }

    pub(crate) fn groups(&self) -> &[RowGroup<'a>] {
        &self.groups
    }

    /// What compositions add to a linear, group by group.
    pub(crate) fn terms(&self, linear: &Linear) -> impl Iterator<Item = &'a LinearTerms> {
        let id = linear.id;
        self.groups.iter().map(move |g| g.composition.terms(id))
    }

    /// Blocks of outputs `[rows, n_outputs]` of at most `len` floats.
    ///
    /// Rows of a matrix lie as far apart as the model's dimensions say, which are powers of two as a
    /// rule: sums that are added to again and again would push each other out of the caches there. And
    /// what is done to outputs one after the other, is done while they are near.
    pub(super) fn blocks(&self, n_outputs: usize, len: usize) -> impl Iterator<Item = Block> {
        let block_rows = self.n_rows.min(len / TILE_ROWS).max(1);
        let block_outputs = len / block_rows / MIN_OUTPUTS * MIN_OUTPUTS;
        let n_rows = self.n_rows;
        (0..n_outputs).step_by(block_outputs).flat_map(move |o| {
            (0..n_rows).step_by(block_rows).map(move |r| Block {
                rows: r..n_rows.min(r + block_rows),
                outputs: o..n_outputs.min(o + block_outputs),
            })
        })
    }
}

/// The fewest outputs of a block or a task, which every kernel takes without a rest.
pub(super) const MIN_OUTPUTS: usize = 32;

/// Some of a batch's rows, and some of a linear's outputs.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub rows: Range<usize>,
    pub outputs: Range<usize>,
}

impl Block {
    /// Its outputs' number.
    pub(super) fn len(&self) -> usize {
        self.rows.len() * self.outputs.len()
    }
}

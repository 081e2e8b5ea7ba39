//! Inputs of linears.

use alloc::vec::Vec;

use tandem_kernels::{Input, Pool, Q8_BLOCK, Q8_SUPER, Q8Rows, Q8Super, SharedMatrix, quantize_q8};

use super::compute::Step;
use crate::SessionError;
use crate::buffer::zeroed;
use crate::model::Linear;

/// Tasks of a thread that round floats.
const TASKS_PER_THREAD: usize = 8;

/// Rows of floats and, for quantized weights, the same rounded to int8.
#[derive(Debug)]
pub(crate) struct Activations {
    /// `[n_rows, n_cols]`; what [`Activations::outputs`] left out of them is old.
    pub f32: Vec<f32>,
    /// See [`Q8Rows`]; empty where no weights with so many columns are quantized.
    q8: Vec<Q8Super>,
}

/// The input of linears: as floats, and as int8 where some of them want that. Where none wants
/// floats these may be missing, with no rows.
#[derive(Clone, Copy)]
pub(crate) struct LinearInput<'a> {
    pub f32: Input<'a>,
    pub q8: Option<Input<'a>>,
}

/// In which forms rows are wanted, or there.
#[derive(Clone, Copy)]
pub(crate) struct Forms {
    pub f32: bool,
    pub q8: bool,
}

impl Activations {
    /// Room for `n_batch` rows of up to `n_cols` columns.
    pub(super) fn new(n_batch: usize, n_cols: usize) -> Result<Activations, SessionError> {
        Ok(Activations {
            f32: zeroed(n_batch.saturating_mul(n_cols))?,
            q8: zeroed(n_batch.saturating_mul(n_cols.div_ceil(Q8_SUPER)))?,
        })
    }

    /// Bytes of a row.
    pub(super) fn row_bytes(n_cols: usize) -> usize {
        size_of::<f32>() * n_cols + size_of::<Q8Super>() * n_cols.div_ceil(Q8_SUPER)
    }

    /// The batch's rows of `n_cols` as the input of `users`, rounded to int8 if one of them wants it.
    pub(crate) fn input(
        &mut self,
        step: &Step<'_>,
        n_cols: usize,
        users: &[&Linear],
    ) -> LinearInput<'_> {
        let wants_q8 = users.iter().any(|linear| step.wants_q8(linear));
        self.rows(step, [step.batch.n_rows(), n_cols], wants_q8)
    }

    /// The first rows, `[n_rows, n_cols]`, as an input, rounded to int8 if that is wanted.
    pub(crate) fn rows(
        &mut self,
        step: &Step<'_>,
        [n_rows, n_cols]: [usize; 2],
        wants_q8: bool,
    ) -> LinearInput<'_> {
        if wants_q8 {
            let x = &self.f32[..n_rows * n_cols];
            let supers = &mut self.q8[..n_rows * n_supers(n_cols)];
            let n_tasks =
                (step.pool.n_threads() * TASKS_PER_THREAD).min(SharedMatrix::<f32>::MAX_TILES);
            let task = supers.len().div_ceil(n_tasks);
            let n_tasks = supers.len().div_ceil(task);
            let supers = SharedMatrix::new(supers, 1, task, 1);
            step.light_pool().run(n_tasks, &|i| {
                quantize_q8(step.level, x, n_cols, i * task, supers.tile(i, 0).all());
            });
        }
        let has = Forms {
            f32: true,
            q8: wants_q8,
        };
        self.ready(n_rows, n_cols, has)
    }

    /// `n_rows` rows to be filled in the forms `wanted`, in tiles of `task_cols` columns: as floats
    /// `[n_rows, n_cols]`, and `[n_supers, n_rows]` of which whole [`Q8Super`]s are a tile.
    pub(super) fn outputs(
        &mut self,
        n_rows: usize,
        n_cols: usize,
        wanted: Forms,
        task_cols: usize,
    ) -> (Option<SharedMatrix<'_>>, Option<SharedMatrix<'_, Q8Super>>) {
        let f32 = &mut self.f32[..n_rows * n_cols];
        let f32 = wanted
            .f32
            .then(|| SharedMatrix::new(f32, n_cols, n_rows, task_cols));
        let q8 = wanted.q8.then(|| {
            assert!(task_cols.is_multiple_of(Q8_SUPER));
            let supers = &mut self.q8[..n_rows * n_supers(n_cols)];
            if !n_cols.is_multiple_of(Q8_SUPER) {
                let last = supers.len() - n_rows;
                supers[last..].fill(Q8Super::default());
            }
            SharedMatrix::new(supers, n_rows, task_cols / Q8_SUPER, n_rows)
        });
        (f32, q8)
    }

    /// The first `n_rows` rows of `n_cols`, which have been filled in the forms `has`.
    pub(super) fn ready(&self, n_rows: usize, n_cols: usize, has: Forms) -> LinearInput<'_> {
        let n_f32 = if has.f32 { n_rows * n_cols } else { 0 };
        let supers = &self.q8[..n_rows * n_supers(n_cols)];
        LinearInput {
            f32: Input::F32(&self.f32[..n_f32]),
            q8: has.q8.then(|| Input::Q8(Q8Rows::new(supers, n_rows))),
        }
    }
}

/// The [`Q8Super`]s of a row; none where quantized weights cannot have so many columns.
fn n_supers(n_cols: usize) -> usize {
    match n_cols.is_multiple_of(Q8_BLOCK) {
        true => n_cols.div_ceil(Q8_SUPER),
        false => 0,
    }
}

//! What work runs on.

use tandem_kernels::{Level, Limited, Pool, Serial};

use super::batch::Batch;
use crate::adapters::PackedFactors;
use crate::model::Linear;

/// Tokens of one task in steps that go token by token.
pub(crate) const TOKENS_PER_TASK: usize = 4;

/// Instructions and threads.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Compute<'p> {
    /// The instructions that kernels may use.
    pub level: Level,
    /// The threads.
    pub pool: Limited<'p>,
}

impl<'p> Compute<'p> {
    /// All threads of a pool.
    pub fn new(level: Level, pool: &'p dyn Pool) -> Compute<'p> {
        Compute {
            level,
            pool: Limited::new(pool, usize::MAX),
        }
    }
}

/// One way of a batch through the network, or a part of it: what that runs on, and its rows.
#[derive(Clone, Copy)]
pub(crate) struct Step<'a> {
    pub level: Level,
    pub pool: Limited<'a>,
    /// Keep activations in float32 whatever the weights' type.
    pub exact: bool,
    pub batch: &'a Batch<'a>,
}

impl Step<'_> {
    /// Whether these weights want int8 input.
    pub(crate) fn wants_q8(&self, linear: &Linear) -> bool {
        linear.w.dtype().is_quantized() && !self.exact
    }

    /// Whether these factors of this linear take int8 input: where the linear does, and both factors
    /// are integers, too.
    pub(crate) fn factors_want_q8(&self, linear: &Linear, factors: &PackedFactors) -> bool {
        factors.is_quantized() && self.wants_q8(linear)
    }

    /// Whether the linear, or what a composition adds to it, wants floats.
    pub(crate) fn wants_f32(&self, linear: &Linear) -> bool {
        let mut factors = self.batch.terms(linear).flat_map(|terms| &terms.factors);
        !self.wants_q8(linear) || !factors.all(|f| self.factors_want_q8(linear, f))
    }

    /// The pool for steps so short that for a few rows a barrier would cost more than it saves.
    pub(crate) fn light_pool(&self) -> &dyn Pool {
        match self.batch.n_rows() <= TOKENS_PER_TASK {
            true => &Serial,
            false => &self.pool,
        }
    }
}

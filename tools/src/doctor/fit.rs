//! Whether a model fits a machine, and how fast it can be there.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use serde::Serialize;
use tandem_engine::{Composition, Serial, Session, SharedPool};

use super::Args;
use super::machine::Memory;
use super::report::Bandwidth;
use crate::adapters::Parts;
use crate::open;

/// What a model needs, and what of it the machine has.
#[derive(Serialize)]
pub(super) struct Fit {
    pub file: PathBuf,
    pub ctx: usize,
    /// Bytes of the file, which is mapped: the kernel may drop them and read them again.
    pub weight_bytes: u64,
    /// Bytes of the file besides, of a table of which tokens read a row each.
    pub table_bytes: u64,
    pub kv_cache_bytes: usize,
    /// Further buffers, and the factors and ranks of adapters.
    pub buffer_bytes: usize,
    /// Bytes of weights and factors that a token reads.
    pub bytes_per_token: usize,
    /// Null where the machine does not tell its memory.
    pub verdict: Option<Verdict>,
    /// The largest context with which all of it stays in memory; null likewise, or where none is.
    pub max_ctx: Option<usize>,
    pub decode_threads: Option<usize>,
    /// The most tokens a second that the bandwidth allows behind an empty context and a full one.
    pub max_tokens_per_second: Option<(f64, f64)>,
}

/// How a model fits into memory.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    Fits,
    /// Cache and buffers do, but not the weights, too: tokens wait for the disk.
    WeightsDoNotStay,
    DoesNotFit,
}

impl Fit {
    pub(super) fn of(
        args: &Args,
        path: &Path,
        pool: &SharedPool,
        is_here: bool,
        memory: &Memory,
        bandwidth: &[Bandwidth],
    ) -> Result<Fit> {
        let model = open::model(path)?;
        let config = model.config();
        let compute = args.session.compute(pool);
        let parts = Parts::load(&args.adapters, &args.bundle, &args.session, compute, &model)?;
        let composition = parts.composition(model.linears())?;
        let composition = composition.as_ref();
        // Another machine's threads are not measured, nor does its memory depend on them.
        let serial = SharedPool::from(Serial);
        let timed = if is_here { pool } else { &serial };
        let options = args.session.options(&model, timed, None);
        let needs = Session::memory(config, &options, composition)
            .ok_or_else(|| anyhow!("a context of {} tokens is too large", options.n_ctx))?;
        let adapters = composition.map_or(0, Composition::bytes_per_token);
        let table_bytes = model.per_layer().map_or(0, |p| p.table.n_bytes());
        let bytes_per_token = model.bytes_per_token() + adapters;
        let n_threads = options.n_threads_decode;
        let mut fit = Fit {
            file: path.to_path_buf(),
            ctx: options.n_ctx,
            weight_bytes: (model.n_bytes() - table_bytes) as u64,
            table_bytes: table_bytes as u64,
            kv_cache_bytes: needs.kv_cache,
            buffer_bytes: needs.scratch.saturating_add(adapters),
            bytes_per_token,
            verdict: None,
            max_ctx: None,
            decode_threads: is_here.then_some(n_threads),
            max_tokens_per_second: None,
        };
        if let Some(usable) = memory.usable() {
            fit.verdict = Some(fit.verdict(usable));
            fit.max_ctx = max_ctx(config.n_ctx_train, |n_ctx| {
                let mut options = options;
                options.n_ctx = n_ctx;
                let Some(needs) = Session::memory(config, &options, composition) else {
                    return false;
                };
                let all = [needs.kv_cache, needs.scratch, adapters].map(|n| n as u64);
                let all = all.into_iter().try_fold(fit.weight_bytes, u64::checked_add);
                all.is_some_and(|all| all <= usable)
            });
        }
        // Counts that were left out are no slower than the next lower one.
        let measured = bandwidth.iter().rfind(|b| b.threads <= n_threads);
        fit.max_tokens_per_second = measured.map(|b| {
            let tokens = |n_bytes: usize| b.bytes_per_second / n_bytes.max(1) as f64;
            (
                tokens(bytes_per_token),
                tokens(bytes_per_token.saturating_add(needs.kv_cache)),
            )
        });
        Ok(fit)
    }

    fn verdict(&self, usable: u64) -> Verdict {
        let taken = (self.kv_cache_bytes as u64).saturating_add(self.buffer_bytes as u64);
        match taken.saturating_add(self.weight_bytes) {
            all if all <= usable => Verdict::Fits,
            _ if taken <= usable => Verdict::WeightsDoNotStay,
            _ => Verdict::DoesNotFit,
        }
    }
}

/// The largest context up to `n_max` that fits, if any does.
fn max_ctx(n_max: usize, fits: impl Fn(usize) -> bool) -> Option<usize> {
    // Below `low` all fit, above `high` none does.
    let (mut low, mut high) = (0, n_max);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        match fits(middle) {
            true => low = middle,
            false => high = middle - 1,
        }
    }
    (low > 0).then_some(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_may_be_read_again_but_not_the_rest() {
        let fit = Fit {
            file: PathBuf::new(),
            ctx: 100,
            weight_bytes: 1000,
            table_bytes: 0,
            kv_cache_bytes: 200,
            buffer_bytes: 50,
            bytes_per_token: 900,
            verdict: None,
            max_ctx: None,
            decode_threads: None,
            max_tokens_per_second: None,
        };
        assert_eq!(fit.verdict(1250), Verdict::Fits);
        assert_eq!(fit.verdict(1249), Verdict::WeightsDoNotStay);
        assert_eq!(fit.verdict(250), Verdict::WeightsDoNotStay);
        assert_eq!(fit.verdict(249), Verdict::DoesNotFit);
    }

    #[test]
    fn the_largest_context_is_found() {
        assert_eq!(max_ctx(1000, |n| n <= 137), Some(137));
        assert_eq!(max_ctx(1000, |_| true), Some(1000));
        assert_eq!(max_ctx(1, |n| n <= 1), Some(1));
        assert_eq!(max_ctx(1000, |_| false), None);
        assert_eq!(max_ctx(0, |_| true), None);
    }
}

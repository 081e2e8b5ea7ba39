//! `tandem bench --sustain`: tokens a second over minutes, in which a board may get hot and slow down.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;
use tandem_engine::{Model, Session, SharedPool};

use super::{Args, Print, digits, go_to};
use crate::adapters::Parts;
use crate::doctor::hottest_zone;
use crate::progress::Progress;

/// Rows of the table, as far as each then is long enough to tell anything.
const N_ROWS: u32 = 30;
const LEAST_ROW: Duration = Duration::from_secs(1);

/// One row of the table: a part of the time.
#[derive(Serialize)]
pub(super) struct Row {
    model: String,
    /// Seconds from the start to the end of the part.
    seconds: f64,
    tokens_per_second: f64,
    /// Threads of the last token.
    threads: usize,
    /// Of the hottest zone; null where the system tells none.
    celsius: Option<f64>,
    /// The part of the first row's speed.
    of_first: f64,
}

impl Print for Row {
    const CSV: &str = "model,seconds,tokens_per_second,threads,celsius,of_first";
    const MD: &str =
        "| model | seconds | tokens/s | threads | C | of first |\n|---|---:|---:|---:|---:|---:|";

    fn csv(&self) -> String {
        format!(
            "\"{}\",{:.1},{:.3},{},{},{:.4}",
            self.model.replace('"', "\"\""),
            self.seconds,
            self.tokens_per_second,
            self.threads,
            digits(self.celsius, 1),
            self.of_first
        )
    }

    fn md(&self) -> String {
        format!(
            "| {} | {:.0} | {:.2} | {} | {} | {:.3} |",
            self.model.replace('|', "\\|"),
            self.seconds,
            self.tokens_per_second,
            self.threads,
            digits(self.celsius, 0),
            self.of_first
        )
    }
}

/// Decode for some time.
pub(super) struct Sustaining<'a> {
    pub args: &'a Args,
    pub name: &'a str,
    pub model: &'a Model,
    pub parts: &'a Parts,
    pub pool: &'a SharedPool,
}

impl Sustaining<'_> {
    /// Generates tokens for `time`, as many as `--gen-tokens` says behind the depth, and again.
    pub(super) fn measure(&self, time: Duration, mut add: impl FnMut(Row)) -> Result<()> {
        let composition = self.parts.composition(self.model.linears())?;
        let n_gen = self.args.gen_tokens.max(1);
        let n_ctx = self.args.depth.saturating_add(n_gen);
        let session = &self.args.session;
        let mut session =
            session.session(self.model, self.pool, composition.as_ref(), Some(n_ctx))?;
        let n_vocab = self.model.config().n_vocab;
        let ids: Vec<u32> = (0..n_ctx).map(|i| (i * 7919 % n_vocab) as u32).collect();
        let (depth, generated) = ids.split_at(self.args.depth);
        go_to(&mut session, depth)?;
        let row_time = (time / N_ROWS).max(LEAST_ROW);
        let progress = Progress::new(time.as_millis() as u64, "generating");
        let start = Instant::now();
        let mut first = None;
        let mut next = 0;
        while start.elapsed() < time {
            let (mut n_tokens, mut timed) = (0, Duration::ZERO);
            while timed < row_time {
                if next == generated.len() {
                    go_to(&mut session, depth)?;
                    next = 0;
                }
                timed += step(&mut session, generated[next])?;
                next += 1;
                n_tokens += 1;
            }
            progress.add(timed.as_millis() as u64);
            let tokens_per_second = f64::from(n_tokens) / timed.as_secs_f64();
            add(Row {
                model: self.name.to_string(),
                seconds: start.elapsed().as_secs_f64(),
                tokens_per_second,
                threads: session.n_threads(1),
                celsius: hottest_zone(),
                of_first: tokens_per_second / *first.get_or_insert(tokens_per_second),
            });
        }
        Ok(())
    }
}

/// How long one token takes.
fn step(session: &mut Session, token: u32) -> Result<Duration> {
    let start = Instant::now();
    session.step(token)?;
    Ok(start.elapsed())
}

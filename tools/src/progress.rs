//! Progress bars for what takes longer than a second, on a terminal only.

use std::time::{Duration, Instant};

use tandem_engine::{Session, SessionError};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar that shows itself after a second; nothing where stderr is no terminal.
pub(crate) struct Progress {
    bar: ProgressBar,
    start: Instant,
}

impl Progress {
    /// A bar of `n` steps; `message` says what is being done.
    pub(crate) fn new(n: u64, message: &'static str) -> Progress {
        let bar = ProgressBar::with_draw_target(Some(n), ProgressDrawTarget::hidden());
        let style = ProgressStyle::with_template("{msg} {wide_bar} {percent:>3} %, {eta} left");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(message);
        Progress {
            bar,
            start: Instant::now(),
        }
    }

    pub(crate) fn add(&self, n: u64) {
        // indicatif draws to stderr only where that is a terminal.
        if self.bar.is_hidden() && self.start.elapsed() > Duration::from_secs(1) {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.inc(n);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Evaluates all but the last tokens of a prompt, showing how far it is; returns those left over,
/// at least one and at most `n_batch`.
pub(crate) fn prefill<'p>(
    session: &mut Session<'_, '_>,
    prompt: &'p [u32],
    n_batch: usize,
) -> Result<&'p [u32], SessionError> {
    if prompt.len() > session.n_ctx() - session.tokens().len() {
        return Ok(prompt); // whoever evaluates it gets the error, before anything is done
    }
    let progress = Progress::new(prompt.len() as u64, "reading the prompt");
    let mut rest = prompt;
    while let Some((batch, others)) = rest.split_at_checked(n_batch)
        && !others.is_empty()
    {
        session.eval(batch)?;
        progress.add(batch.len() as u64);
        rest = others;
    }
    Ok(rest)
}

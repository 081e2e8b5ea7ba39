//! Progress bars for what takes longer than a second, on a terminal only.

use std::time::{Duration, Instant};

use tandem_engine::{Error, Generation};

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

    /// Shows that `n_done` of `n` steps are done.
    pub(crate) fn set(&self, n_done: u64, n: u64) {
        self.bar.set_length(n);
        self.bar.set_position(n_done);
        self.add(0);
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

/// Evaluates the prompt but for its last piece, showing how far it is. Stops early where `stop` says so.
pub(crate) fn prefill(
    generation: &mut Generation<'_>,
    stop: impl Fn() -> bool,
) -> Result<(), Error> {
    let mut left = generation.n_left();
    let progress = Progress::new(left as u64, "reading the prompt");
    loop {
        let now = generation.prefill()?;
        progress.add((left - now) as u64);
        if now == left || stop() {
            return Ok(());
        }
        left = now;
    }
}

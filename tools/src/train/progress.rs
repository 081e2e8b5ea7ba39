//! What training tells while it goes: a bar on a terminal, a line every half a minute elsewhere.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often a line is written where there is no terminal.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// How far training is, and how fast.
pub(super) struct Progress {
    bar: ProgressBar,
    n_steps: usize,
    pace: Mutex<Pace>,
}

struct Pace {
    /// Tokens that went through the network in steps of this run, and how long that took.
    n_tokens: usize,
    time: Duration,
    n_steps: usize,
    /// When a line was written last.
    told: Instant,
}

impl Progress {
    /// Of a training of `n_steps`, `n_done` of which are behind it.
    pub(super) fn new(n_steps: usize, n_done: usize) -> Progress {
        let bar = ProgressBar::new(n_steps as u64).with_position(n_done as u64);
        let style =
            ProgressStyle::with_template("step {pos} of {len} {wide_bar} {msg}, {eta} left");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.reset_eta();
        Progress {
            bar,
            n_steps,
            pace: Mutex::new(Pace {
                n_tokens: 0,
                time: Duration::ZERO,
                n_steps: 0,
                told: Instant::now(),
            }),
        }
    }

    /// A step, the last of `n_done`, has been taken.
    pub(super) fn step(&self, n_done: usize, loss: f32, n_tokens: usize, time: Duration) {
        let mut pace = self.pace();
        pace.n_tokens += n_tokens;
        pace.time += time;
        pace.n_steps += 1;
        let seconds = pace.time.as_secs_f64();
        let message = format!(
            "loss {loss:.3}, {:.0} tokens/s",
            pace.n_tokens as f64 / seconds
        );
        let left = self.n_steps.saturating_sub(n_done) as f64 * seconds / pace.n_steps as f64;
        self.bar.set_message(message.clone());
        self.bar.inc(1);
        if self.is_due(&mut pace) {
            let minutes = (left / 60.0).ceil();
            tell!(
                "step {n_done} of {}: {message}, {minutes:.0} min left",
                self.n_steps
            );
        }
    }

    /// Of the examples held out, `n_done` have been evaluated.
    pub(super) fn validating(&self, n_done: usize, n_examples: usize) {
        self.bar
            .set_message(format!("validating {n_done} of {n_examples}"));
        // A bar draws itself anew with a step only.
        self.bar.tick();
        if self.is_due(&mut self.pace()) {
            tell!("validating: {n_done} of {n_examples} examples");
        }
    }

    /// Writes a line, with the bar out of its way.
    pub(super) fn tell(&self, line: &str) {
        self.bar.suspend(|| tell!("{line}"));
    }

    /// Tokens a second of this run's steps, if there were any.
    pub(super) fn speed(&self) -> Option<f64> {
        let pace = self.pace();
        (pace.n_steps > 0).then(|| pace.n_tokens as f64 / pace.time.as_secs_f64())
    }

    fn pace(&self) -> std::sync::MutexGuard<'_, Pace> {
        self.pace
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether a line is to be written: there is no bar, and the last one was long ago.
    fn is_due(&self, pace: &mut Pace) -> bool {
        let is_due = self.bar.is_hidden() && pace.told.elapsed() > TELL_EVERY;
        if is_due {
            pace.told = Instant::now();
        }
        is_due
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

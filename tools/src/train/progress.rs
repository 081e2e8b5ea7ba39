//! What training tells while it goes: a bar on a terminal, a line every half a minute elsewhere.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::watch::{Step, Validation, Watch};

/// How often a line is written where there is no terminal.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// The command's watch: Ctrl-C stops.
pub(super) struct Progress {
    bar: ProgressBar,
    /// When a line was written last.
    told: Mutex<Instant>,
    is_stopped: Arc<AtomicBool>,
}

impl Progress {
    pub(super) fn new() -> Result<Progress> {
        let is_stopped = Arc::new(AtomicBool::new(false));
        let on_ctrl_c = Arc::clone(&is_stopped);
        ctrlc::set_handler(move || {
            if on_ctrl_c.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
            tell!("stopping; Ctrl-C once more quits at once, without a checkpoint");
        })?;
        // Drawn when it is known how many steps there are.
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        let style =
            ProgressStyle::with_template("step {pos} of {len} {wide_bar} {msg}, {eta} left");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Ok(Progress {
            bar,
            told: Mutex::new(Instant::now()),
            is_stopped,
        })
    }

    /// Whether a line is to be written: there is no bar, and the last one was long ago.
    fn is_due(&self) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = self.bar.is_hidden() && told.elapsed() > TELL_EVERY;
        if is_due {
            *told = Instant::now();
        }
        is_due
    }
}

impl Watch for Progress {
    fn note(&self, line: &str) {
        self.bar.suspend(|| tell!("{line}"));
    }

    fn begin(&self, n_done: usize, n_steps: usize) {
        self.bar.set_draw_target(ProgressDrawTarget::stderr());
        self.bar.set_length(n_steps as u64);
        self.bar.set_position(n_done as u64);
        self.bar.reset_eta();
    }

    fn step(&self, step: &Step) {
        let Step {
            n_done,
            n_steps,
            loss,
            tokens_per_second,
            left,
        } = step;
        let message = format!("loss {loss:.3}, {tokens_per_second:.0} tokens/s");
        self.bar.set_message(message.clone());
        self.bar.inc(1);
        if self.is_due() {
            let minutes = (left.as_secs_f64() / 60.0).ceil();
            tell!("step {n_done} of {n_steps}: {message}, {minutes:.0} min left");
        }
    }

    fn validating(&self, n_done: usize, n_examples: usize) {
        self.bar
            .set_message(format!("validating {n_done} of {n_examples}"));
        // A bar draws itself anew with a step only.
        self.bar.tick();
        if self.is_due() {
            tell!("validating: {n_done} of {n_examples} examples");
        }
    }

    fn validated(&self, validation: &Validation) {
        let Validation {
            n_done,
            training_loss,
            loss,
            is_best,
        } = validation;
        let losses = [("training", training_loss), ("validation", loss)];
        let losses = losses.iter().filter_map(|(of, loss)| {
            let loss = (*loss).as_ref()?;
            Some(format!("{of} loss {loss:.4}"))
        });
        let losses = losses.collect::<Vec<_>>().join(", ");
        let mark = if *is_best { ", the best so far" } else { "" };
        self.note(&format!("step {n_done}: {losses}{mark}"));
    }

    fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Relaxed)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

//! Work that takes long: Python stays responsive, and Ctrl-C ends it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::time::Duration;

use pyo3::prelude::*;

/// How long Ctrl-C may wait.
const POLL: Duration = Duration::from_millis(50);

/// Bytes of a working thread's stack.
const STACK: usize = 8 << 20;

/// How much of some work is done.
pub(crate) struct Done {
    pub n_done: u64,
    /// Of how much.
    pub n: u64,
}

impl Done {
    /// Tells the caller's function, if there is one.
    pub(crate) fn tell(&self, progress: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        match progress {
            Some(progress) => progress.call1((self.n_done, self.n)).map(drop),
            None => Ok(()),
        }
    }
}

/// Does `work` on a thread of its own. What it sends comes to `receive` on this one, with Python's lock; the work
/// waits where that takes long. Where that fails, or Python got a signal that raises something, `stop` is set, and
/// what was raised is given when the work has ended.
pub(crate) fn with_events<T: Send, E: Send>(
    py: Python<'_>,
    stop: &AtomicBool,
    mut receive: impl FnMut(E) -> PyResult<()>,
    work: impl FnOnce(SyncSender<E>) -> T + Send,
) -> PyResult<T> {
    std::thread::scope(|scope| {
        let (sender, mut receiver) = mpsc::sync_channel(1);
        let worker = std::thread::Builder::new()
            .stack_size(STACK)
            .spawn_scoped(scope, || work(sender))?;
        let mut raised = None;
        loop {
            let event;
            // There and back: it may be another thread's, but not shared.
            (event, receiver) = py.detach(move || (receiver.recv_timeout(POLL), receiver));
            let outcome = match event {
                Ok(event) if raised.is_none() => receive(event).and_then(|()| py.check_signals()),
                Ok(_) => Ok(()),
                Err(RecvTimeoutError::Timeout) if raised.is_none() => py.check_signals(),
                Err(RecvTimeoutError::Timeout) => Ok(()),
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if let Err(error) = outcome {
                stop.store(true, Ordering::Relaxed);
                raised = Some(error);
            }
        }
        let result = py.detach(|| worker.join());
        match (raised, result) {
            (_, Err(panic)) => std::panic::resume_unwind(panic),
            (Some(error), _) => Err(error),
            (None, Ok(result)) => Ok(result),
        }
    })
}

/// Does `work` on a thread of its own; where Python got a signal that raises something, `stop` is set.
pub(crate) fn interruptible<T: Send>(
    py: Python<'_>,
    stop: &AtomicBool,
    work: impl FnOnce() -> T + Send,
) -> PyResult<T> {
    // The sender lives as long as the work, and is never used.
    with_events(py, stop, |()| Ok(()), |_sender| work())
}

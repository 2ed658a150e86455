//! Long calls into the core that listen for Ctrl-C.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use pyo3::prelude::*;

/// How often the calling thread looks for signals.
const TICK: Duration = Duration::from_millis(50);

/// Runs `work` on a thread of its own, the interpreter released, and returns its result, or what a signal handler raised.
///
/// After a signal the thread is left to finish by itself: it only reads.
pub(crate) fn interruptible<T: Send + 'static>(
    py: Python<'_>,
    work: impl FnOnce() -> T + Send + 'static,
) -> PyResult<T> {
    let (sender, receiver) = channel();
    let worker = std::thread::spawn(move || {
        // Nobody listens any more after a signal; the result is then of no use.
        sender.send(work()).ok();
    });
    py.detach(move || {
        loop {
            match receiver.recv_timeout(TICK) {
                Ok(result) => return Ok(result),
                Err(RecvTimeoutError::Timeout) => Python::attach(|py| py.check_signals())?,
                // The worker went without a result: it panicked, and so do we.
                Err(RecvTimeoutError::Disconnected) => match worker.join() {
                    Err(panic) => std::panic::resume_unwind(panic),
                    Ok(()) => unreachable!("a worker sends before it ends"),
                },
            }
        }
    })
}

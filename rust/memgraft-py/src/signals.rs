//! Long calls into the core that listen for Ctrl-C.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use memgraft_core::mining::Report;
use memgraft_core::{Error, Result};
use pyo3::prelude::*;

use crate::errors::to_py;

/// How often the calling thread looks for signals.
const TICK: Duration = Duration::from_millis(50);

/// How long work that was told to stop is waited for. It looks between two blocks of a sort, which takes longer now and then.
const GRACE: Duration = Duration::from_millis(400);

/// Tells work that nobody waits for it any more.
#[derive(Clone, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// An error once the caller has gone.
    pub(crate) fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }
}

/// What the worker says to the calling thread.
enum Word<T> {
    Told(&'static str, u64, u64),
    Done(Result<T>),
}

/// Runs `work` on a thread of its own, the interpreter released, and returns its result, or what a signal handler raised.
///
/// After a signal the thread is left to finish by itself: it only reads and computes.
pub(crate) fn interruptible<T: Send + 'static>(
    py: Python<'_>,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> PyResult<T> {
    listened(py, None, Duration::ZERO, move |_, _| work())
}

/// The same for work that reports to `progress`, on the calling thread, and ends with what Python raises there.
///
/// The work looks now and then whether it shall stop, and gets a moment to do so.
pub(crate) fn watched<T: Send + 'static>(
    py: Python<'_>,
    progress: Option<Py<PyAny>>,
    work: impl FnOnce(&Stop, &mut Report<'_>) -> Result<T> + Send + 'static,
) -> PyResult<T> {
    listened(py, progress, GRACE, work)
}

fn listened<T: Send + 'static>(
    py: Python<'_>,
    progress: Option<Py<PyAny>>,
    grace: Duration,
    work: impl FnOnce(&Stop, &mut Report<'_>) -> Result<T> + Send + 'static,
) -> PyResult<T> {
    let stop = Stop::default();
    let theirs = stop.clone();
    let (sender, receiver) = channel();
    let worker = std::thread::spawn(move || {
        // Nobody listens any more after a signal; words are then of no use.
        let result = work(&theirs, &mut |stage, done, total| {
            theirs.check()?;
            sender.send(Word::Told(stage, done, total)).ok();
            Ok(())
        });
        sender.send(Word::Done(result)).ok();
    });
    py.detach(move || {
        loop {
            let told = match receiver.recv_timeout(TICK) {
                Ok(Word::Done(result)) => return result.map_err(to_py),
                Ok(Word::Told(stage, done, total)) => Some((stage, done, total)),
                Err(RecvTimeoutError::Timeout) => None,
                // The worker went without a result: it panicked, and so do we.
                Err(RecvTimeoutError::Disconnected) => match worker.join() {
                    Err(panic) => std::panic::resume_unwind(panic),
                    Ok(()) => unreachable!("a worker sends before it ends"),
                },
            };
            let heard = Python::attach(|py| {
                py.check_signals()?;
                match (&progress, told) {
                    (Some(progress), Some(told)) => progress.call1(py, told).map(drop),
                    _ => Ok(()),
                }
            });
            if let Err(error) = heard {
                stop.0.store(true, Ordering::Relaxed);
                wait(&receiver, grace);
                return Err(error);
            }
        }
    })
}

/// Waits until the worker has ended, at most `grace`.
fn wait<T>(receiver: &Receiver<Word<T>>, grace: Duration) {
    let end = Instant::now() + grace;
    while let Ok(Word::Told(..)) = receiver.recv_timeout(end.saturating_duration_since(Instant::now())) {}
}

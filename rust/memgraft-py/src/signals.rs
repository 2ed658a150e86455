//! Long calls into the core that listen for Ctrl-C.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use memgraft_core::Result;
use memgraft_core::mining::Report;
use memgraft_core::stop::Stop;
use pyo3::prelude::*;

use crate::errors::to_py;

/// How often the calling thread looks for signals.
const TICK: Duration = Duration::from_millis(50);

/// Tokens or rows of a call that takes long enough to listen for Ctrl-C: some 20 ms.
pub(crate) const LONG: usize = 1 << 20;

/// How long work that was told to stop is waited for. It looks between two blocks of a sort, which takes longer now and then.
const GRACE: Duration = Duration::from_millis(400);

/// What the worker says to the calling thread.
enum Word<T> {
    Told(&'static str, u64, u64),
    Done(Result<T>),
}

/// Runs `work` on a thread of its own, the interpreter released, and returns its result, or what a signal handler raised.
///
/// After a signal the thread is told to stop and left to itself: it only reads and computes, with what it owns.
pub(crate) fn interruptible<T: Send + 'static>(
    py: Python<'_>,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> PyResult<T> {
    listened(py, None, Duration::ZERO, move |_, _| work())
}

/// The same for work that writes: it gets a moment to take its unfinished file away.
///
/// A file that the system is still writing after that goes when it has; none appears under its name.
pub(crate) fn saving<T: Send + 'static>(
    py: Python<'_>,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> PyResult<T> {
    listened(py, None, GRACE, move |_, _| work())
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

/// The same for work on memory that it has borrowed: it has ended when this returns, soon after a signal.
pub(crate) fn borrowing<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    let stop = Stop::default();
    let theirs = stop.clone();
    let (sender, receiver) = channel();
    py.detach(move || {
        std::thread::scope(|scope| {
            let worker = scope.spawn(move || tell(&sender, theirs.during(work)));
            listen(&receiver, &stop, None).unwrap_or_else(|| panicked(worker.join()))
        })
    })
}

/// The same where the work is `long`; short work runs here, because a thread costs some 50 us.
pub(crate) fn lending<T: Send>(py: Python<'_>, long: bool, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    if long { borrowing(py, work) } else { py.detach(work).map_err(to_py) }
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
        let mut report = |phase, done, total| {
            theirs.check()?;
            sender.send(Word::Told(phase, done, total)).ok();
            Ok(())
        };
        let result = theirs.during(|| work(&theirs, &mut report));
        tell(&sender, result);
    });
    py.detach(move || {
        let found = listen(&receiver, &stop, progress.as_ref()).unwrap_or_else(|| panicked(worker.join()));
        if stop.check().is_err() {
            wait(&receiver, grace);
        }
        found
    })
}

/// The last word of a worker.
fn tell<T>(sender: &Sender<Word<T>>, result: Result<T>) {
    sender.send(Word::Done(result)).ok();
}

/// Passes words on to `progress` until the work is done or a signal handler or `progress` raises, which asks it to stop;
/// `None` where the worker went without a result.
fn listen<T>(receiver: &Receiver<Word<T>>, stop: &Stop, progress: Option<&Py<PyAny>>) -> Option<PyResult<T>> {
    loop {
        let told = match receiver.recv_timeout(TICK) {
            Ok(Word::Done(result)) => return Some(result.map_err(to_py)),
            Ok(Word::Told(phase, done, total)) => Some((phase, done, total)),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return None,
        };
        let heard = Python::attach(|py| {
            py.check_signals()?;
            match (progress, told) {
                (Some(progress), Some(told)) => progress.call1(py, told).map(drop),
                _ => Ok(()),
            }
        });
        if let Err(error) = heard {
            stop.request();
            return Some(Err(error));
        }
    }
}

/// A worker goes without a result where it panics, and so do we.
fn panicked<T>(end: std::thread::Result<()>) -> T {
    match end {
        Err(panic) => std::panic::resume_unwind(panic),
        Ok(()) => unreachable!("a worker sends before it ends"),
    }
}

/// Waits until the worker has ended, at most `grace`.
fn wait<T>(receiver: &Receiver<Word<T>>, grace: Duration) {
    let end = Instant::now() + grace;
    while let Ok(Word::Told(..)) = receiver.recv_timeout(end.saturating_duration_since(Instant::now())) {}
}

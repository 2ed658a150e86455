//! Phases of work on several threads, watched from the calling thread.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::{Error, Result, stop};

/// How often the calling thread reports, and looks whether it shall stop.
const TICK: Duration = Duration::from_millis(50);

/// Records between two reports of a merge.
pub(super) const REPORT: u64 = 1 << 20;

/// Receives (phase, done, total) on the calling thread; an error stops the work and is passed on.
pub type Report<'a> = dyn FnMut(&'static str, u64, u64) -> Result<()> + 'a;

/// What a worker tells, and is told.
#[derive(Default)]
pub(super) struct Control {
    done: AtomicU64,
    next: AtomicUsize,
    stop: AtomicBool,
}

impl Control {
    /// Adds `units` of progress; an error means: give up.
    pub(super) fn advance(&self, units: u64) -> Result<()> {
        self.done.fetch_add(units, Ordering::Relaxed);
        if self.stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// The next of `count` pieces of work that nobody has taken.
    pub(super) fn take(&self, count: usize) -> Option<usize> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        (index < count).then_some(index)
    }
}

/// Runs `work` on `threads` threads and reports meanwhile; the first error of any stops all.
///
/// The caller's flag of [`stop`] is that of these threads too.
pub(super) fn phase<T: Send>(
    report: &mut Report<'_>,
    name: &'static str,
    total: u64,
    threads: usize,
    work: impl Fn(&Control) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let control = Control::default();
    let running = AtomicUsize::new(threads);
    let caller = std::thread::current();
    let flag = stop::current();
    report(name, 0, total)?;
    let mut refused = None;
    let results = std::thread::scope(|scope| {
        let (control, running, caller, work, flag) = (&control, &running, &caller, &work, &flag);
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(move || {
                    let result = stop::within(flag.clone(), || work(control));
                    if result.is_err() {
                        control.stop.store(true, Ordering::Relaxed);
                    }
                    running.fetch_sub(1, Ordering::Release);
                    caller.unpark();
                    result
                })
            })
            .collect();
        // A worker that panics never counts down; its thread has then finished.
        while running.load(Ordering::Acquire) > 0 && !workers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            std::thread::park_timeout(TICK);
            if refused.is_none()
                && let Err(error) = report(name, control.done.load(Ordering::Relaxed).min(total), total)
            {
                control.stop.store(true, Ordering::Relaxed);
                refused = Some(error);
            }
        }
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect::<Vec<_>>()
    });
    if let Some(error) = refused {
        return Err(error);
    }
    // The worker that failed first has the cause; the others were only told to stop.
    let (mut done, mut stopped, mut cause) = (Vec::new(), false, None);
    for result in results {
        match result {
            Ok(value) => done.push(value),
            Err(Error::Interrupted) => stopped = true,
            Err(error) => cause = cause.or(Some(error)),
        }
    }
    match cause {
        Some(error) => Err(error),
        None if stopped => Err(Error::Interrupted),
        None => {
            report(name, total, total)?;
            Ok(done)
        }
    }
}

/// Runs `work` on one thread and reports meanwhile.
pub(super) fn single<T: Send>(
    report: &mut Report<'_>,
    name: &'static str,
    total: u64,
    work: impl FnOnce(&Control) -> Result<T> + Send,
) -> Result<T> {
    let work = Mutex::new(Some(work));
    let mut results = phase(report, name, total, 1, |control| {
        let work = work.lock().unwrap_or_else(PoisonError::into_inner).take();
        work.map(|work| work(control)).transpose()
    })?;
    results.pop().flatten().ok_or(Error::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stop::Stop;

    #[test]
    fn the_callers_flag_reaches_the_threads_of_a_phase() {
        let stop = Stop::default();
        let asked = |threads| phase(&mut |_, _, _| Ok(()), "sort", 0, threads, |_| stop::check());
        assert_eq!(stop.during(|| asked(3)).unwrap().len(), 3);
        stop.request();
        for threads in [1, 3] {
            assert!(matches!(stop.during(|| asked(threads)), Err(Error::Interrupted)));
        }
        assert_eq!(asked(3).unwrap().len(), 3);
    }
}

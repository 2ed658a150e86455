//! Scoped threads without a pool, so that nothing survives into a forked worker.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::stop;

/// The most threads that [`default_threads`] answers.
static LIMIT: AtomicUsize = AtomicUsize::new(16);

/// The number of threads to use where the caller did not say: what the system offers, at most 16 or the limit.
///
/// The system is asked once, because it reads files of the control group, which takes longer than a decoding step's
/// lookup.
#[must_use]
pub fn default_threads() -> usize {
    static OFFERED: OnceLock<usize> = OnceLock::new();
    let offered = *OFFERED.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from));
    offered.min(LIMIT.load(Ordering::Relaxed))
}

/// Bounds [`default_threads`] for the whole process; `None` takes the bound away.
pub fn limit_threads(most: Option<usize>) {
    LIMIT.store(most.map_or(16, |most| most.clamp(1, 16)), Ordering::Relaxed);
}

/// Runs `work(0)` to `work(threads - 1)` side by side, the first on the calling thread, and
/// returns their results in order; a panic of one is passed on.
pub(crate) fn run<T: Send>(threads: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    over(0..threads.max(1), work)
}

/// Runs `work` on each of `parts` side by side, the first on the calling thread, and returns the results in order.
///
/// All have ended when it returns or passes a panic on: none writes to a part afterwards.
pub(crate) fn over<P: Send, T: Send>(parts: impl IntoIterator<Item = P>, work: impl Fn(P) -> T + Sync) -> Vec<T> {
    let mut parts = parts.into_iter().peekable();
    let Some(own) = parts.next() else { return Vec::new() };
    if parts.peek().is_none() {
        return vec![work(own)];
    }
    let flag = stop::current();
    std::thread::scope(|scope| {
        let (work, flag) = (&work, &flag);
        let others: Vec<_> = parts.map(|part| scope.spawn(move || stop::within(flag.clone(), || work(part)))).collect();
        let mut results = vec![work(own)];
        results.extend(others.into_iter().map(|other| other.join().unwrap_or_else(|e| std::panic::resume_unwind(e))));
        results
    })
}

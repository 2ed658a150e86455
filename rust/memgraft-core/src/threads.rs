//! Scoped threads without a pool, so that nothing survives into a forked worker.

#![forbid(unsafe_code)]

/// Runs `work(0)` to `work(threads - 1)` side by side, the first on the calling thread, and
/// returns their results in order; a panic of one is passed on.
pub(crate) fn run<T: Send>(threads: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    if threads <= 1 {
        return vec![work(0)];
    }
    std::thread::scope(|scope| {
        let work = &work;
        let others: Vec<_> = (1..threads).map(|index| scope.spawn(move || work(index))).collect();
        let mut results = vec![work(0)];
        results.extend(others.into_iter().map(|other| other.join().unwrap_or_else(|e| std::panic::resume_unwind(e))));
        results
    })
}

//! Rows that are not in memory: many reads in flight, in the order of the file.
//!
//! Each worker announces a batch of reads (`WILLNEED`) and then makes them, so
//! that the device sees a deep queue whatever the number of threads. Reads
//! bring in what was asked for and nothing around it.
#![forbid(unsafe_code)]

use std::sync::Mutex;
use std::thread;

use crate::Result;
use crate::values::Shard;
use crate::values::gather::explain;
use crate::values::sys::will_need;

/// Longest single read; longer runs of neighbours are shared between workers.
pub(crate) const MAX_RUN_BYTES: usize = 256 << 10;
/// Reads that one worker announces at a time.
const BATCH: usize = 64;
/// Workers wait for the device, not for a core.
const MAX_WORKERS: usize = 16;

/// One read: bytes of a shard into their place in the output.
pub(crate) struct Run<'a> {
    pub shard: &'a Shard,
    pub offset: u64,
    pub out: &'a mut [u8],
}

/// Makes all reads.
///
/// # Errors
/// The first error met, naming file and offset; other outputs may then be unread.
pub(crate) fn read(mut runs: Vec<Run<'_>>) -> Result<()> {
    runs.sort_unstable_by(|a, b| (a.shard.path(), a.offset).cmp(&(b.shard.path(), b.offset)));
    let workers = runs.len().div_ceil(BATCH / 4).min(MAX_WORKERS);
    let batch = runs.len().div_ceil(workers.max(1)).clamp(1, BATCH);
    let batches = Mutex::new(runs.chunks_mut(batch));
    let work = || -> Result<()> {
        loop {
            // A worker that panicked was not inside the iterator: the lock holds no broken state.
            let next = batches.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
            let Some(batch) = next else { return Ok(()) };
            for run in batch.iter() {
                will_need(run.shard.file(), run.offset, run.out.len());
            }
            for run in batch {
                run.shard.read_at(run.offset, run.out).map_err(|error| explain(run.shard, error))?;
            }
        }
    };
    if workers <= 1 {
        return work();
    }
    thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let join = |worker: thread::ScopedJoinHandle<'_, Result<()>>| {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        // All are joined before the first error is returned: none may still write to the output.
        workers.into_iter().map(join).collect::<Vec<_>>().into_iter().collect()
    })
}

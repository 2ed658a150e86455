//! Rows in memory: copied for good, or read once so that the system holds them.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use memmap2::MmapMut;

use crate::Result;
use crate::values::gather::explain;
use crate::values::sys::{huge_memory, populate};
use crate::values::{Shard, ValueTable};

/// Bytes of one sequential read.
const READ_BYTES: usize = 4 << 20;

/// The first rows of a table in anonymous memory.
#[derive(Debug)]
pub(crate) struct Resident {
    memory: MmapMut,
    pub num_rows: u64,
    row_bytes: usize,
}

impl Resident {
    /// Copies the first `num_rows` rows of `table`.
    ///
    /// # Errors
    /// [`crate::Error::Io`] where memory is short or a read fails.
    pub fn copy(table: &ValueTable, num_rows: u64, threads: usize) -> Result<Self> {
        let row_bytes = table.row_bytes();
        let mut memory = huge_memory(table.shards()[0].path(), num_rows as usize * row_bytes)?;
        let mut rest = &mut memory[..num_rows as usize * row_bytes];
        for (shard, rows) in parts(table, num_rows) {
            let (part, after) = rest.split_at_mut(rows as usize * row_bytes);
            read_parallel(shard, part, threads)?;
            rest = after;
        }
        Ok(Self { memory, num_rows, row_bytes })
    }

    /// The bytes of a row below `num_rows`.
    pub fn row(&self, row: u64) -> &[u8] {
        let start = row as usize * self.row_bytes;
        &self.memory[start..start + self.row_bytes]
    }
}

/// Brings the first `num_rows` rows into the page cache and maps them; returns the bytes read.
///
/// # Errors
/// [`crate::Error::Io`] naming file and offset.
pub(crate) fn warm(table: &ValueTable, num_rows: u64, threads: usize) -> Result<u64> {
    let mut warmed = 0;
    for (shard, rows) in parts(table, num_rows) {
        let bytes = rows as usize * table.row_bytes();
        let next = AtomicU64::new(0);
        run(threads.min(bytes.div_ceil(READ_BYTES)), || {
            let mut buffer = vec![0_u8; READ_BYTES.min(bytes)];
            loop {
                let start = next.fetch_add(READ_BYTES as u64, Ordering::Relaxed);
                let Some(left) = (bytes as u64).checked_sub(start).filter(|&left| left > 0) else { return Ok(()) };
                let buffer = &mut buffer[..READ_BYTES.min(left as usize)];
                shard.read_at(shard.row_offset(0) + start, buffer).map_err(|error| explain(shard, error))?;
            }
        })?;
        populate(shard.map(), shard.row_offset(0) as usize, bytes);
        warmed += bytes as u64;
    }
    Ok(warmed)
}

/// The shards that hold the first `num_rows` rows, and how many of each.
fn parts(table: &ValueTable, num_rows: u64) -> impl Iterator<Item = (&Shard, u64)> {
    let mut left = num_rows;
    table.shards().iter().map_while(move |shard| {
        let rows = left.min(shard.num_rows());
        left -= rows;
        (rows > 0 || left > 0).then_some((shard, rows))
    })
}

/// Reads the first rows of `shard` into `out`.
fn read_parallel(shard: &Shard, out: &mut [u8], threads: usize) -> Result<()> {
    let parts = std::sync::Mutex::new(out.chunks_mut(READ_BYTES).enumerate());
    run(threads, || {
        loop {
            let next = parts.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
            let Some((place, part)) = next else { return Ok(()) };
            let offset = shard.row_offset(0) + (place * READ_BYTES) as u64;
            shard.read_at(offset, part).map_err(|error| explain(shard, error))?;
        }
    })
}

/// Runs `work` on `threads` threads, joins all, gives the first error.
fn run(threads: usize, work: impl Fn() -> Result<()> + Sync) -> Result<()> {
    if threads <= 1 {
        return work();
    }
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(&work)).collect();
        let join = |worker: thread::ScopedJoinHandle<'_, Result<()>>| {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        workers.into_iter().map(join).collect::<Vec<_>>().into_iter().collect()
    })
}

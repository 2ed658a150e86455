//! Rows in memory: copied for good, or read once so that the system holds them.
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::shard::Shard;
use crate::ids::{u64_of, usize_of_u64};
use crate::memory::HugeBuffer;
use crate::{Error, Result, stop, threads};

/// Bytes of one sequential read.
const READ_BYTES: usize = 4 << 20;

/// The first rows of a table in anonymous memory.
#[derive(Debug)]
pub(crate) struct Resident {
    memory: HugeBuffer,
    len: usize,
    row_bytes: usize,
}

impl Resident {
    /// Copies the first `len` rows of `shards`.
    ///
    /// # Errors
    /// [`Error::Io`] where memory is short or a read fails.
    pub fn copy(shards: &[Shard], len: usize, threads: usize) -> Result<Self> {
        let row_bytes = shards.first().map_or(0, Shard::row_bytes);
        let mut memory = HugeBuffer::zeroed(len * row_bytes).map_err(|error| match (error, shards.first()) {
            (Error::Io { source, .. }, Some(shard)) => {
                let action = format!("reserving {} bytes of memory for resident rows", len * row_bytes);
                Error::io(shard.path(), action, source)
            }
            (error, _) => error,
        })?;
        let mut rest = &mut memory.bytes_mut()[..len * row_bytes];
        for (shard, rows) in parts(shards, len) {
            let (part, after) = rest.split_at_mut(rows * row_bytes);
            read_parallel(shard, part, threads)?;
            rest = after;
        }
        Ok(Self { memory, len, row_bytes })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The bytes of a row below [`Self::len`].
    pub fn row(&self, row: usize) -> &[u8] {
        let start = row * self.row_bytes;
        &self.memory.bytes()[start..start + self.row_bytes]
    }
}

/// Brings the first `len` rows of `shards` into the page cache and maps them; returns the bytes read.
///
/// # Errors
/// [`Error::Io`] naming file and offset.
pub(crate) fn warm(shards: &[Shard], len: usize, threads: usize) -> Result<u64> {
    let mut warmed = 0;
    for (shard, rows) in parts(shards, len) {
        let bytes = rows * shard.row_bytes();
        let next = AtomicUsize::new(0);
        all(threads::run(threads.min(bytes.div_ceil(READ_BYTES)), |_| {
            let mut buffer = vec![0_u8; READ_BYTES.min(bytes)];
            loop {
                let start = next.fetch_add(READ_BYTES, Ordering::Relaxed);
                let Some(left) = bytes.checked_sub(start).filter(|&left| left > 0) else { return Ok(()) };
                stop::check()?;
                read(shard, start, &mut buffer[..READ_BYTES.min(left)])?;
            }
        }))?;
        shard.populate(bytes);
        warmed += u64_of(bytes);
    }
    Ok(warmed)
}

/// The shards that hold the first `len` rows, and how many of each.
fn parts(shards: &[Shard], len: usize) -> impl Iterator<Item = (&Shard, usize)> {
    let mut left = len;
    shards.iter().map_while(move |shard| {
        let rows = left.min(usize_of_u64(shard.num_rows()));
        left -= rows;
        (rows > 0 || left > 0).then_some((shard, rows))
    })
}

/// Reads the first rows of `shard` into `out`.
fn read_parallel(shard: &Shard, out: &mut [u8], threads: usize) -> Result<()> {
    let parts = Mutex::new(out.chunks_mut(READ_BYTES).enumerate());
    all(threads::run(threads, |_| {
        loop {
            let next = parts.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((place, part)) = next else { return Ok(()) };
            stop::check()?;
            read(shard, place * READ_BYTES, part)?;
        }
    }))
}

/// Reads values of `shard` from their byte `start` on.
fn read(shard: &Shard, start: usize, out: &mut [u8]) -> Result<()> {
    let file = shard.file();
    file.read_at(shard.row_offset(0) + u64_of(start), out).map_err(|error| file.explain(error))
}

/// The first error of any thread.
fn all(results: Vec<Result<()>>) -> Result<()> {
    results.into_iter().collect()
}

//! Rows to bytes in the caller's memory: from resident memory, from mapped
//! pages, or, where pages are not in memory, by batched reads.
#![forbid(unsafe_code)]

use std::thread;

use crate::values::ValueTable;
use crate::values::cold::{MAX_RUN_BYTES, Run};
use crate::values::kernel::Copier;
use crate::values::sys::major_faults;
use crate::{Error, Result};

/// Below this many bytes a second thread costs more than it saves.
const MIN_BYTES_PER_THREAD: usize = 1 << 20;
/// Rows that are probed to tell whether a batch is in memory.
const NUM_PROBES: usize = 16;

/// What one gather did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GatherFacts {
    /// Bytes written to the output.
    pub num_bytes: u64,
    /// Rows that had to be read from the device, and page faults that did.
    pub num_cold_rows: u64,
}

/// Copies `rows` (bounded, any order) of `table` into `out`, which fits exactly.
///
/// # Errors
/// [`Error::Io`] or [`Error::Format`] where a cold row cannot be read.
pub(crate) fn gather(table: &ValueTable, rows: &[i32], out: &mut [u8], threads: usize) -> Result<GatherFacts> {
    let num_bytes = out.len() as u64;
    let threads = threads.min(out.len() / MIN_BYTES_PER_THREAD).max(1);
    let resident = |&row: &i32| (row as u64) < table.resident_rows();
    if rows.iter().all(resident) {
        copy_all(table, rows, out, threads);
        return Ok(GatherFacts { num_bytes, num_cold_rows: 0 });
    }
    // A few rows are read as fast as they are probed.
    if rows.len() > NUM_PROBES && !table.suspects_cold() && probes_cached(table, rows, out) {
        let num_cold_rows = copy_all(table, rows, out, threads);
        table.suspect_cold(num_cold_rows > 0);
        return Ok(GatherFacts { num_bytes, num_cold_rows });
    }
    let num_cold_rows = read_cold(table, rows, out, threads)?;
    if rows.len() > NUM_PROBES {
        table.suspect_cold(num_cold_rows > 0);
    }
    Ok(GatherFacts { num_bytes, num_cold_rows })
}

/// Splits rows and output between threads, runs `work` on each part, joins in order.
fn split<T: Send>(
    rows: &[i32],
    out: &mut [u8],
    row_bytes: usize,
    threads: usize,
    work: impl Fn(usize, &[i32], &mut [u8]) -> T + Sync,
) -> Vec<T> {
    if threads == 1 {
        return vec![work(0, rows, out)];
    }
    let share = rows.len().div_ceil(threads);
    thread::scope(|scope| {
        let work = &work;
        let workers: Vec<_> = rows
            .chunks(share)
            .zip(out.chunks_mut(share * row_bytes))
            .enumerate()
            .map(|(part, (rows, out))| scope.spawn(move || work(part * share, rows, out)))
            .collect();
        let join = |worker: thread::ScopedJoinHandle<'_, T>| {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        workers.into_iter().map(join).collect()
    })
}

/// Copies through the map; returns the page faults that waited for the device.
fn copy_all(table: &ValueTable, rows: &[i32], out: &mut [u8], threads: usize) -> u64 {
    let row_bytes = table.row_bytes();
    let copier = Copier::choose(out.len(), row_bytes);
    let ahead = Copier::ahead(row_bytes);
    let faults = split(rows, out, row_bytes, threads, |_, rows, out| {
        let before = major_faults();
        for (place, (&row, out)) in rows.iter().zip(out.chunks_exact_mut(row_bytes)).enumerate() {
            if let Some(&next) = rows.get(place + ahead) {
                Copier::prefetch(table.row(next));
            }
            copier.copy(table.row(row), out);
        }
        copier.finish();
        major_faults() - before
    });
    faults.into_iter().sum()
}

/// Whether a few rows, spread over the batch, are all in memory.
fn probes_cached(table: &ValueTable, rows: &[i32], out: &mut [u8]) -> bool {
    let row_bytes = table.row_bytes();
    let step = rows.len().div_ceil(NUM_PROBES);
    let probes = rows.iter().zip(out.chunks_exact_mut(row_bytes)).step_by(step);
    probes.filter(|(row, _)| **row as u64 >= table.resident_rows()).all(|(&row, out)| table.read_cached(row, out))
}

/// Copies what is in memory, then reads the rest in one batch; returns the number of rows read.
fn read_cold(table: &ValueTable, rows: &[i32], out: &mut [u8], threads: usize) -> Result<u64> {
    let row_bytes = table.row_bytes();
    let missing: Vec<usize> = split(rows, out, row_bytes, threads, |first, rows, out| {
        let mut missing = Vec::new();
        for (place, (&row, out)) in rows.iter().zip(out.chunks_exact_mut(row_bytes)).enumerate() {
            if (row as u64) < table.resident_rows() {
                out.copy_from_slice(table.row(row));
            } else if !table.read_cached(row, out) {
                missing.push(first + place);
            }
        }
        missing
    })
    .concat();
    let mut runs: Vec<Run<'_>> = Vec::new();
    let mut rest = out;
    let mut end = 0;
    for places in neighbours(table, rows, &missing) {
        let (_, after) = rest.split_at_mut((places.start - end) * row_bytes);
        let (target, after) = after.split_at_mut(places.len() * row_bytes);
        let (shard, local) = table.locate(rows[places.start]);
        runs.push(Run { shard, offset: shard.row_offset(local), out: target });
        (rest, end) = (after, places.end);
    }
    table.cold_reads().read(runs)?;
    Ok(missing.len() as u64)
}

/// The places of `missing` (ascending) as ranges whose rows follow each other in one shard.
fn neighbours(table: &ValueTable, rows: &[i32], missing: &[usize]) -> Vec<std::ops::Range<usize>> {
    let longest = (MAX_RUN_BYTES / table.row_bytes()).max(1);
    let mut ranges: Vec<std::ops::Range<usize>> = Vec::new();
    for &place in missing {
        if let Some(last) = ranges.last_mut()
            && last.end == place
            && last.len() < longest
            && rows[place] == rows[place - 1].wrapping_add(1)
            && std::ptr::eq(table.locate(rows[place]).0, table.locate(rows[place - 1]).0)
        {
            last.end = place + 1;
        } else {
            ranges.push(place..place + 1);
        }
    }
    ranges
}

/// The better of two reports on a failed read: that the file changed, else the read's own.
pub(crate) fn explain(shard: &crate::values::Shard, error: Error) -> Error {
    shard.check_unchanged().err().unwrap_or(error)
}

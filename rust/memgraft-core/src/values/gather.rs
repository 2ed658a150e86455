//! Rows to bytes in the caller's memory: from resident memory, from mapped
//! pages, or, where pages are not in memory, by batched reads.
use super::bounded::Bounded;
use super::cold::ColdReads;
use super::kernel::Copier;
use super::reads::plan;
use super::rows::Rows;
use super::sys::major_faults;
use crate::ids::{u64_of, usize_of_row};
use crate::{Result, stop, threads};

/// Below this many bytes a second thread costs more than it saves.
const MIN_BYTES_PER_THREAD: usize = 1 << 20;
/// Bytes that a thread copies between two looks whether the caller still waits.
const STEP_BYTES: usize = 16 << 20;
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

/// Copies `wanted` (any order) of `rows` into `out`, which fits exactly.
///
/// # Errors
/// [`crate::Error::Io`] or [`crate::Error::Format`] where a cold row cannot be read; [`crate::Error::Interrupted`] where the
/// caller has asked the work to end: some rows of `out` are then unwritten.
pub(crate) fn gather(
    rows: &Rows,
    cold: &ColdReads,
    wanted: Bounded<'_>,
    out: &mut [u8],
    threads: usize,
) -> Result<GatherFacts> {
    let wanted = wanted.rows();
    let num_bytes = u64_of(out.len());
    let threads = threads.min(out.len() / MIN_BYTES_PER_THREAD).max(1);
    if wanted.iter().all(|&row| usize_of_row(row) < rows.resident()) {
        copy_all(rows, wanted, out, threads)?;
        return Ok(GatherFacts { num_bytes, num_cold_rows: 0 });
    }
    // A few rows are read as fast as they are probed.
    let many = wanted.len() > NUM_PROBES;
    let num_cold_rows = if many && !cold.expected() && probes_cached(rows, wanted, out) {
        copy_all(rows, wanted, out, threads)?
    } else {
        read_cold(rows, cold, wanted, out, threads)?
    };
    if many {
        cold.expect(num_cold_rows > 0);
    }
    Ok(GatherFacts { num_bytes, num_cold_rows })
}

/// Splits rows and output between threads, runs `work(place of its first row, rows, output)` on steps of each part, and
/// joins what the parts found, in order; `work` adds to what its part has found.
///
/// # Errors
/// [`crate::Error::Interrupted`].
fn split<T: Send + Default>(
    wanted: &[i32],
    out: &mut [u8],
    row_bytes: usize,
    threads: usize,
    work: impl Fn(&mut T, usize, &[i32], &mut [u8]) + Sync,
) -> Result<Vec<T>> {
    let share = wanted.len().div_ceil(threads).max(1);
    let step = (STEP_BYTES / row_bytes).max(1);
    let parts = wanted.chunks(share).zip(out.chunks_mut(share * row_bytes)).enumerate();
    let found = threads::over(parts, |(part, (wanted, out))| {
        let mut found = T::default();
        for (number, (wanted, out)) in wanted.chunks(step).zip(out.chunks_mut(step * row_bytes)).enumerate() {
            stop::check()?;
            work(&mut found, part * share + number * step, wanted, out);
        }
        Ok(found)
    });
    found.into_iter().collect()
}

/// Copies through the map; returns the page faults that waited for the device.
fn copy_all(rows: &Rows, wanted: &[i32], out: &mut [u8], threads: usize) -> Result<u64> {
    let row_bytes = rows.row_bytes();
    let copier = Copier::choose(out.len(), row_bytes);
    let ahead = Copier::ahead(row_bytes);
    let faults: Vec<u64> = split(wanted, out, row_bytes, threads, |faults, _, wanted, out| {
        let before = major_faults();
        for (place, (&row, out)) in wanted.iter().zip(out.chunks_exact_mut(row_bytes)).enumerate() {
            if let Some(&next) = wanted.get(place + ahead) {
                Copier::prefetch(rows.row(usize_of_row(next)));
            }
            copier.copy(rows.row(usize_of_row(row)), out);
        }
        copier.finish();
        *faults += major_faults() - before;
    })?;
    Ok(faults.into_iter().sum())
}

/// Whether a few rows, spread over the batch, are all in memory.
fn probes_cached(rows: &Rows, wanted: &[i32], out: &mut [u8]) -> bool {
    let step = wanted.len().div_ceil(NUM_PROBES);
    let probes = wanted.iter().zip(out.chunks_exact_mut(rows.row_bytes())).step_by(step);
    let mut probes = probes.map(|(&row, out)| (usize_of_row(row), out)).filter(|(row, _)| *row >= rows.resident());
    probes.all(|(row, out)| rows.read_cached(row, out))
}

/// Copies what is in memory, then reads the rest in one batch; returns the number of rows read.
fn read_cold(rows: &Rows, cold: &ColdReads, wanted: &[i32], out: &mut [u8], threads: usize) -> Result<u64> {
    let row_bytes = rows.row_bytes();
    let missing = split(wanted, out, row_bytes, threads, |missing: &mut Vec<usize>, first, wanted, out| {
        for (place, (&row, out)) in wanted.iter().zip(out.chunks_exact_mut(row_bytes)).enumerate() {
            let row = usize_of_row(row);
            if row < rows.resident() {
                out.copy_from_slice(rows.row(row));
            } else if !rows.read_cached(row, out) {
                missing.push(first + place);
            }
        }
    })?
    .concat();
    cold.read(plan(rows, wanted, &missing, out))?;
    Ok(u64_of(missing.len()))
}

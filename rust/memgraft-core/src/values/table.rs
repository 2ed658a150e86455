//! Several shards as one table of rows.
//!
//! What is guaranteed when files change under an open table: every gather
//! checks the length, identity and modification time of the shards it touches
//! before and after it copies. A file that was truncated, overwritten, replaced
//! or removed before or during the call gives an error and its bytes are not
//! to be used. Rows that are read cold come through `pread` or `io_uring`, which
//! report every error. What is left: shrinking a file *while* a mapped row of it is being
//! copied, or a disk error on a page that the system dropped between the probe
//! and the copy, can still end the process (SIGBUS). Rows held resident cannot
//! meet either.
#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::values::cold::{ColdReader, ColdReads};
use crate::values::dedup::{Dedup, check_rows, dedup};
use crate::values::gather::{GatherFacts, gather};
use crate::values::resident::{Resident, warm};
use crate::values::{Shard, ValueDtype};
use crate::{Error, Result};

/// A table `[rows, taps, value_dim]` over one or more shards.
#[derive(Debug)]
pub struct ValueTable {
    shards: Vec<Shard>,
    /// First row of each shard, and the number of rows at the end.
    starts: Vec<u64>,
    dtype: ValueDtype,
    taps: u64,
    value_dim: u64,
    row_bytes: usize,
    resident: Option<Resident>,
    cold_reads: ColdReads,
    /// Whether the last gather met rows that were not in memory.
    cold: AtomicBool,
}

/// Distinct rows, their inverse, and whether their bytes fitted the output.
#[derive(Debug)]
pub struct Staged {
    /// Distinct rows and inverse.
    pub dedup: Dedup,
    /// What the gather did, or `None` where the output was too small and is untouched.
    pub gathered: Option<GatherFacts>,
}

impl ValueTable {
    /// Opens `paths` in row order as one table; reads headers only.
    ///
    /// # Errors
    /// [`Error::Format`] where a shard is damaged or disagrees with the first
    /// in dtype, taps or width; [`Error::Io`]; [`Error::Argument`] for no
    /// paths; [`Error::Limit`] for more than `i32::MAX` rows.
    pub fn open<P: AsRef<Path>>(paths: &[P]) -> Result<Self> {
        let shards = paths.iter().map(|path| Shard::open(path.as_ref())).collect::<Result<Vec<_>>>()?;
        let Some(first) = shards.first() else {
            return Err(Error::argument("a value table needs at least one shard, got none"));
        };
        let shape = |shard: &Shard| (shard.header.dtype, shard.header.taps, shard.header.value_dim);
        let (dtype, taps, value_dim) = shape(first);
        if let Some(shard) = shards.iter().find(|shard| shape(shard) != (dtype, taps, value_dim)) {
            let (found_dtype, found_taps, found_dim) = shape(shard);
            let message = format!(
                "expected {} rows of {taps} taps x {value_dim} as in {}, found {} of {found_taps} x {found_dim}: \
                 the shards are not of one table",
                dtype.name(),
                first.path().display(),
                found_dtype.name()
            );
            return Err(Error::format(shard.path(), message));
        }
        let mut starts = vec![0_u64];
        for shard in &shards {
            let end = starts.last().copied().unwrap_or(0).saturating_add(shard.num_rows());
            if end > i32::MAX as u64 {
                let message = format!("expected at most {} rows in a table, found {end} or more", i32::MAX);
                return Err(Error::Limit { message });
            }
            starts.push(end);
        }
        let row_bytes = usize::try_from(first.header.row_bytes().unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
        Ok(Self {
            shards,
            starts,
            dtype,
            taps,
            value_dim,
            row_bytes,
            resident: None,
            cold_reads: ColdReads::default(),
            cold: AtomicBool::new(false),
        })
    }

    /// Rows in the table.
    pub fn num_rows(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Storage type.
    pub fn dtype(&self) -> ValueDtype {
        self.dtype
    }

    /// Taps per row.
    pub fn taps(&self) -> u64 {
        self.taps
    }

    /// Channels per tap.
    pub fn value_dim(&self) -> u64 {
        self.value_dim
    }

    /// Bytes per row, all taps, without scales.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// The shards in row order.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Refuses a table of which any shard changed since it was opened.
    ///
    /// # Errors
    /// [`Error::Format`] or [`Error::Io`] naming the shard.
    pub fn check_unchanged(&self) -> Result<()> {
        self.shards.iter().try_for_each(Shard::check_unchanged)
    }

    /// Reads cold rows with `reader` from now on, or with `pread` where the system refuses it.
    pub fn set_cold_reader(&mut self, reader: ColdReader) {
        self.cold_reads = ColdReads::new(reader);
    }

    /// How cold rows are read, and why not as asked where the system refused that.
    pub fn cold_reader(&self) -> (ColdReader, Option<&str>) {
        (self.cold_reads.reader(), self.cold_reads.refusal())
    }

    pub(crate) fn cold_reads(&self) -> &ColdReads {
        &self.cold_reads
    }

    /// Copies the first `num_rows` rows (the most frequent; at most all) into huge pages.
    ///
    /// # Errors
    /// [`Error::Io`] where memory is short or a read fails; [`Error::Format`] where a shard changed.
    pub fn make_resident(&mut self, num_rows: u64, threads: usize) -> Result<()> {
        self.check_unchanged()?;
        self.resident = Some(Resident::copy(self, num_rows.min(self.num_rows()), threads)?);
        self.check_unchanged()
    }

    /// Rows that were copied into memory.
    pub fn resident_rows(&self) -> u64 {
        self.resident.as_ref().map_or(0, |resident| resident.num_rows)
    }

    /// Reads the first `num_rows` rows (at most all) so that the system holds them; returns the bytes.
    ///
    /// # Errors
    /// [`Error::Io`] naming file and offset; [`Error::Format`] where a shard changed.
    pub fn warm(&self, num_rows: u64, threads: usize) -> Result<u64> {
        self.check_unchanged()?;
        warm(self, num_rows.min(self.num_rows()), threads)
    }

    /// Copies `rows` (each below [`Self::num_rows`], repeats allowed) into `out`.
    ///
    /// # Errors
    /// [`Error::Argument`] for a row out of range or an output of the wrong
    /// length, before anything is written; [`Error::Format`] and [`Error::Io`]
    /// where a shard changed or cannot be read.
    pub fn gather(&self, rows: &[i32], out: &mut [u8], threads: usize) -> Result<GatherFacts> {
        check_rows(rows, self.num_rows(), 0)?;
        let expected = rows.len().checked_mul(self.row_bytes);
        if expected != Some(out.len()) {
            return Err(Error::argument(format!(
                "out has {} bytes, expected {} rows x {} bytes",
                out.len(),
                rows.len(),
                self.row_bytes
            )));
        }
        self.check_touched(rows)?;
        let facts = gather(self, rows, out, threads)?;
        self.check_touched(rows)?;
        Ok(facts)
    }

    /// Distinct rows of `rows` (-1 = miss) with their bytes at the start of `out`.
    ///
    /// An `out` that is too small is left untouched and said so in the result,
    /// so that the caller can grow it and gather.
    ///
    /// # Errors
    /// As [`Self::gather`].
    pub fn stage(&self, rows: &[i32], out: &mut [u8], threads: usize) -> Result<Staged> {
        let dedup = dedup(rows, self.num_rows())?;
        let needed = dedup.unique.len().checked_mul(self.row_bytes);
        let gathered = match needed.and_then(|needed| out.get_mut(..needed)) {
            Some(out) => Some(self.gather(&dedup.unique, out, threads)?),
            None => None,
        };
        Ok(Staged { dedup, gathered })
    }

    /// Copies the scales of `rows`, `[rows.len(), taps]` fp32 little-endian, of an fp8 table.
    ///
    /// # Errors
    /// As [`Self::gather`]; [`Error::Argument`] for a table without row scales.
    pub fn gather_scales(&self, rows: &[i32], out: &mut [u8]) -> Result<()> {
        if self.dtype != ValueDtype::Fp8E4m3 {
            return Err(Error::argument(format!("{} rows have no row scales", self.dtype.name())));
        }
        check_rows(rows, self.num_rows(), 0)?;
        let bytes = self.taps as usize * 4;
        if rows.len().checked_mul(bytes) != Some(out.len()) {
            return Err(Error::argument(format!("out has {} bytes, expected {} x {bytes}", out.len(), rows.len())));
        }
        self.check_touched(rows)?;
        for (&row, out) in rows.iter().zip(out.chunks_exact_mut(bytes)) {
            let (shard, local) = self.locate(row);
            out.copy_from_slice(shard.scales(local * bytes as u64, bytes));
        }
        self.check_touched(rows)
    }

    /// The `[taps, value_dim]` fp32 little-endian channel scales of an int8 table.
    ///
    /// # Errors
    /// [`Error::Argument`] for a table without channel scales, [`Error::Format`]
    /// where two shards disagree.
    pub fn channel_scales(&self) -> Result<&[u8]> {
        if self.dtype != ValueDtype::Int8 {
            return Err(Error::argument(format!("{} rows have no channel scales", self.dtype.name())));
        }
        self.check_unchanged()?;
        let bytes = (self.taps * self.value_dim * 4) as usize;
        let first = self.shards[0].scales(0, bytes);
        match self.shards.iter().find(|shard| shard.scales(0, bytes) != first) {
            Some(shard) => {
                let message = "the channel scales differ from the first shard's: the shards are not of one table";
                Err(Error::format(shard.path(), message))
            }
            None => Ok(first),
        }
    }

    /// The bytes of a row that was bounded before, resident or mapped.
    pub(crate) fn row(&self, row: i32) -> &[u8] {
        if let Some(resident) = self.resident.as_ref().filter(|resident| (row as u64) < resident.num_rows) {
            return resident.row(row as u64);
        }
        let (shard, local) = self.locate(row);
        shard.row(local)
    }

    /// Reads a bounded row if it is in memory.
    pub(crate) fn read_cached(&self, row: i32, out: &mut [u8]) -> bool {
        let (shard, local) = self.locate(row);
        shard.read_row_cached(local, out)
    }

    /// Whether to look at every row rather than at a few.
    pub(crate) fn suspects_cold(&self) -> bool {
        self.cold.load(Ordering::Relaxed)
    }

    pub(crate) fn suspect_cold(&self, cold: bool) {
        self.cold.store(cold, Ordering::Relaxed);
    }

    /// The shard of a bounded row and the row's place in it.
    pub(crate) fn locate(&self, row: i32) -> (&Shard, u64) {
        let row = row as u64;
        let place = self.starts.partition_point(|&start| start <= row) - 1;
        (&self.shards[place], row - self.starts[place])
    }

    /// Checks the shards that hold any of `rows` that is not resident.
    fn check_touched(&self, rows: &[i32]) -> Result<()> {
        let resident = self.resident_rows();
        let mut touched = vec![false; self.shards.len()];
        let mut last = 0..0;
        for row in rows.iter().map(|&row| row as u64).filter(|&row| row >= resident) {
            // Rows mostly come sorted: most lie in the shard of the one before.
            if !last.contains(&row) {
                let place = self.starts.partition_point(|&start| start <= row) - 1;
                touched[place] = true;
                last = self.starts[place]..self.starts[place + 1];
            }
        }
        let touched = self.shards.iter().zip(touched).filter(|(_, touched)| *touched);
        touched.map(|(shard, _)| shard).try_for_each(Shard::check_unchanged)
    }
}

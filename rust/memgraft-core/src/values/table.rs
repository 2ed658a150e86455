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
use std::path::Path;

use super::bounded::{Bounded, Distinct};
use super::cold::{ColdReader, ColdReads};
use super::dedup::{Dedup, dedup};
use super::dtype::ValueDtype;
use super::gather::{GatherFacts, gather};
use super::rows::Rows;
use super::shard::Shard;
use crate::ids::{u64_of, usize_of_row, usize_of_u64};
use crate::{Error, Result, stop};

/// A table `[rows, taps, value_dim]` over one or more shards.
#[derive(Debug)]
pub struct ValueTable {
    rows: Rows,
    cold: ColdReads,
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
        Ok(Self { rows: Rows::open(paths)?, cold: ColdReads::default() })
    }

    /// Rows in the table.
    pub fn num_rows(&self) -> u64 {
        u64_of(self.rows.len())
    }

    /// Storage type.
    pub fn dtype(&self) -> ValueDtype {
        self.rows.dtype()
    }

    /// Taps per row.
    pub fn taps(&self) -> u64 {
        self.rows.taps()
    }

    /// Channels per tap.
    pub fn value_dim(&self) -> u64 {
        self.rows.value_dim()
    }

    /// Bytes per row, all taps, without scales.
    pub fn row_bytes(&self) -> usize {
        self.rows.row_bytes()
    }

    /// The shards in row order.
    pub fn shards(&self) -> &[Shard] {
        self.rows.shards()
    }

    /// Refuses a table of which any shard changed since it was opened.
    ///
    /// # Errors
    /// [`Error::Format`] or [`Error::Io`] naming the shard.
    pub fn check_unchanged(&self) -> Result<()> {
        self.rows.check_unchanged()
    }

    /// Reads cold rows with `reader` from now on, or with `pread` where the system refuses it.
    pub fn set_cold_reader(&mut self, reader: ColdReader) {
        self.cold = ColdReads::new(reader);
    }

    /// How cold rows are read, and why not as asked where the system refused that.
    pub fn cold_reader(&self) -> (ColdReader, Option<&str>) {
        (self.cold.reader(), self.cold.refusal())
    }

    /// Copies the first `num_rows` rows (the most frequent; at most all) into huge pages.
    ///
    /// # Errors
    /// [`Error::Io`] where memory is short or a read fails; [`Error::Format`] where a shard changed.
    pub fn make_resident(&mut self, num_rows: u64, threads: usize) -> Result<()> {
        self.rows.make_resident(usize_of_u64(num_rows), threads)
    }

    /// Rows that were copied into memory.
    pub fn resident_rows(&self) -> u64 {
        u64_of(self.rows.resident())
    }

    /// Reads the first `num_rows` rows (at most all) so that the system holds them; returns the bytes.
    ///
    /// # Errors
    /// [`Error::Io`] naming file and offset; [`Error::Format`] where a shard changed.
    pub fn warm(&self, num_rows: u64, threads: usize) -> Result<u64> {
        self.rows.warm(usize_of_u64(num_rows), threads)
    }

    /// Copies `rows` (each below [`Self::num_rows`], repeats allowed) into `out`.
    ///
    /// # Errors
    /// [`Error::Argument`] for a row out of range or an output of the wrong
    /// length, before anything is written; [`Error::Format`] and [`Error::Io`]
    /// where a shard changed or cannot be read; [`Error::Interrupted`] where the
    /// caller has asked the work to end.
    pub fn gather(&self, rows: &[i32], out: &mut [u8], threads: usize) -> Result<GatherFacts> {
        self.gather_bounded(Bounded::check(rows, self.rows.len())?, out, threads)
    }

    fn gather_bounded(&self, wanted: Bounded<'_>, out: &mut [u8], threads: usize) -> Result<GatherFacts> {
        let (len, row_bytes) = (wanted.rows().len(), self.row_bytes());
        if len.checked_mul(row_bytes) != Some(out.len()) {
            let found = out.len();
            return Err(Error::argument(format!("out has {found} bytes, expected {len} rows x {row_bytes} bytes")));
        }
        self.rows.check_touched(wanted)?;
        let facts = gather(&self.rows, &self.cold, wanted, out, threads)?;
        self.rows.check_touched(wanted)?;
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
        let dedup = dedup(rows, self.rows.len())?;
        let needed = dedup.unique.len().checked_mul(self.row_bytes());
        let gathered = match needed.and_then(|needed| out.get_mut(..needed)) {
            Some(out) => Some(self.gather_bounded(Distinct::bounded(&dedup.unique), out, threads)?),
            None => None,
        };
        Ok(Staged { dedup, gathered })
    }

    /// Copies the scales of `rows`, `[rows.len(), taps]` fp32 little-endian, of an fp8 table.
    ///
    /// # Errors
    /// As [`Self::gather`]; [`Error::Argument`] for a table without row scales.
    pub fn gather_scales(&self, rows: &[i32], out: &mut [u8]) -> Result<()> {
        if self.dtype() != ValueDtype::Fp8E4m3 {
            return Err(Error::argument(format!("{} rows have no row scales", self.dtype().name())));
        }
        let wanted = Bounded::check(rows, self.rows.len())?;
        let bytes = usize_of_u64(self.taps()) * 4;
        if rows.len().checked_mul(bytes) != Some(out.len()) {
            return Err(Error::argument(format!("out has {} bytes, expected {} x {bytes}", out.len(), rows.len())));
        }
        self.rows.check_touched(wanted)?;
        for (turn, (&row, out)) in (0_u32..).zip(rows.iter().zip(out.chunks_exact_mut(bytes))) {
            stop::check_at(turn)?;
            let (shard, local) = self.rows.locate(usize_of_row(row));
            out.copy_from_slice(shard.scales(local * u64_of(bytes), bytes));
        }
        self.rows.check_touched(wanted)
    }

    /// The `[taps, value_dim]` fp32 little-endian channel scales of an int8 table.
    ///
    /// # Errors
    /// [`Error::Argument`] for a table without channel scales, [`Error::Format`]
    /// where two shards disagree.
    pub fn channel_scales(&self) -> Result<&[u8]> {
        if self.dtype() != ValueDtype::Int8 {
            return Err(Error::argument(format!("{} rows have no channel scales", self.dtype().name())));
        }
        self.check_unchanged()?;
        let bytes = usize_of_u64(self.taps() * self.value_dim() * 4);
        let first = self.shards()[0].scales(0, bytes);
        match self.shards().iter().find(|shard| shard.scales(0, bytes) != first) {
            Some(shard) => {
                let message = "the channel scales differ from the first shard's: the shards are not of one table";
                Err(Error::format(shard.path(), message))
            }
            None => Ok(first),
        }
    }
}

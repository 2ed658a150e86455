//! Where the bytes of each row lie: in which shard, or in memory.
use std::path::Path;

use super::bounded::Bounded;
use super::dtype::ValueDtype;
use super::resident::{Resident, warm};
use super::shard::Shard;
use crate::ids::{MAX_KEYS, u64_of, usize_of_row, usize_of_u64};
use crate::{Error, Result};

/// Rows `[taps, value_dim]` of one dtype over one or more shards, the first ones perhaps copied into memory.
#[derive(Debug)]
pub(crate) struct Rows {
    shards: Vec<Shard>,
    /// First row of each shard, and the number of rows at the end.
    starts: Vec<usize>,
    resident: Option<Resident>,
}

impl Rows {
    /// Opens `paths` in row order; reads headers only.
    ///
    /// # Errors
    /// As [`super::ValueTable::open`].
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
        let (mut starts, mut end) = (vec![0], 0_u64);
        for shard in &shards {
            end = end.saturating_add(shard.num_rows());
            if end > MAX_KEYS {
                let message = format!("expected at most {MAX_KEYS} rows in a table, found {end} or more");
                return Err(Error::Limit { message });
            }
            starts.push(usize_of_u64(end));
        }
        Ok(Self { shards, starts, resident: None })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Storage type.
    pub fn dtype(&self) -> ValueDtype {
        self.shards[0].header.dtype
    }

    /// Taps per row.
    pub fn taps(&self) -> u64 {
        self.shards[0].header.taps
    }

    /// Channels per tap.
    pub fn value_dim(&self) -> u64 {
        self.shards[0].header.value_dim
    }

    /// Bytes per row, all taps, without scales.
    pub fn row_bytes(&self) -> usize {
        self.shards[0].row_bytes()
    }

    /// The shards in row order.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// The shard of a bounded row and the row's place in it.
    pub fn locate(&self, row: usize) -> (&Shard, u64) {
        let place = self.place(row);
        (&self.shards[place], u64_of(row - self.starts[place]))
    }

    /// Whether `row` is the first of a shard.
    pub fn begins_shard(&self, row: usize) -> bool {
        self.starts.binary_search(&row).is_ok()
    }

    /// The number of the shard of a bounded row.
    fn place(&self, row: usize) -> usize {
        self.starts.partition_point(|&start| start <= row) - 1
    }

    /// The bytes of a bounded row, resident or mapped.
    pub fn row(&self, row: usize) -> &[u8] {
        if let Some(resident) = self.resident.as_ref().filter(|resident| row < resident.len()) {
            return resident.row(row);
        }
        let (shard, local) = self.locate(row);
        shard.row(local)
    }

    /// Reads a bounded row from its shard if it is in memory.
    pub fn read_cached(&self, row: usize, out: &mut [u8]) -> bool {
        let (shard, local) = self.locate(row);
        shard.read_row_cached(local, out)
    }

    /// Rows that were copied into memory.
    pub fn resident(&self) -> usize {
        self.resident.as_ref().map_or(0, Resident::len)
    }

    /// Copies the first `len` rows (at most all) into memory.
    ///
    /// # Errors
    /// As [`super::ValueTable::make_resident`].
    pub fn make_resident(&mut self, len: usize, threads: usize) -> Result<()> {
        self.check_unchanged()?;
        self.resident = Some(Resident::copy(&self.shards, len.min(self.len()), threads)?);
        self.check_unchanged()
    }

    /// Reads the first `len` rows (at most all) so that the system holds them; returns the bytes.
    ///
    /// # Errors
    /// As [`super::ValueTable::warm`].
    pub fn warm(&self, len: usize, threads: usize) -> Result<u64> {
        self.check_unchanged()?;
        warm(&self.shards, len.min(self.len()), threads)
    }

    /// Refuses rows of which any shard changed since it was opened.
    ///
    /// # Errors
    /// [`Error::Format`] or [`Error::Io`] naming the shard.
    pub fn check_unchanged(&self) -> Result<()> {
        self.shards.iter().try_for_each(|shard| shard.file().check_unchanged())
    }

    /// Checks the shards that hold any of `wanted` that is not resident.
    ///
    /// # Errors
    /// As [`Self::check_unchanged`].
    pub fn check_touched(&self, wanted: Bounded<'_>) -> Result<()> {
        let resident = self.resident();
        let mut touched = vec![false; self.shards.len()];
        let mut last = 0..0;
        for row in wanted.rows().iter().map(|&row| usize_of_row(row)).filter(|&row| row >= resident) {
            // Rows mostly come sorted: most lie in the shard of the one before.
            if !last.contains(&row) {
                let place = self.place(row);
                touched[place] = true;
                last = self.starts[place]..self.starts[place + 1];
            }
        }
        let touched = self.shards.iter().zip(touched).filter(|(_, touched)| *touched);
        touched.map(|(shard, _)| shard).try_for_each(|shard| shard.file().check_unchanged())
    }
}

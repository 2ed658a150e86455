//! One value shard: an open file, its header and its map.
use std::collections::BTreeMap;
use std::path::Path;

use memmap2::Mmap;

use super::file::ValueFile;
use super::header::ShardHeader;
use super::sys::{in_memory, map_random, no_readahead, populate, read_cached};
use crate::ids::{u64_of, usize_of_u64};
use crate::{Error, Result};

/// An open shard of a value table.
#[derive(Debug)]
pub struct Shard {
    file: ValueFile,
    map: Mmap,
    pub(crate) header: ShardHeader,
    row_bytes: usize,
}

impl Shard {
    /// Opens and maps `path`; reads the header and nothing else.
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be opened, [`Error::Format`] where
    /// it is not a value shard or is truncated.
    pub fn open(path: &Path) -> Result<Self> {
        let file = ValueFile::open(path, "opening the value shard")?;
        let header = ShardHeader::read(&file)?;
        let row_bytes = header
            .row_bytes()
            .and_then(|bytes| usize::try_from(bytes).ok())
            .ok_or_else(|| Error::format(path, "a row is larger than this machine's address space"))?;
        let map = map_random(path, file.file())?;
        no_readahead(file.file());
        Ok(Self { file, map, header, row_bytes })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Rows in this shard.
    pub fn num_rows(&self) -> u64 {
        self.header.num_rows
    }

    /// Length of the file in bytes.
    pub fn num_bytes(&self) -> u64 {
        self.file.num_bytes()
    }

    /// Bytes per row, all taps, without scales.
    pub(crate) fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Byte of the file at which the data region starts.
    pub fn data_start(&self) -> u64 {
        self.header.scales_start.unwrap_or(self.header.values_start)
    }

    /// `__metadata__` of the header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    /// The open file.
    pub(crate) fn file(&self) -> &ValueFile {
        &self.file
    }

    /// Byte of the file at which `row` of this shard starts; the caller has bounded `row`.
    pub(crate) fn row_offset(&self, row: u64) -> u64 {
        self.header.values_start + row * u64_of(self.row_bytes)
    }

    /// The mapped bytes of `row`; the caller has bounded `row`, the slice is bounded again.
    pub(crate) fn row(&self, row: u64) -> &[u8] {
        let start = usize_of_u64(self.row_offset(row));
        &self.map[start..start + self.row_bytes]
    }

    /// `bytes` mapped bytes of the scales from `start` on; bounded by the slice.
    pub(crate) fn scales(&self, start: u64, bytes: usize) -> &[u8] {
        let start = usize_of_u64(self.header.scales_start.unwrap_or(u64::MAX / 2) + start);
        &self.map[start..start + bytes]
    }

    /// Reads a bounded row if it is in memory; false where it must come from the device.
    pub(crate) fn read_row_cached(&self, row: u64, out: &mut [u8]) -> bool {
        read_cached(self.file.file(), self.row_offset(row), out).unwrap_or_else(|| {
            let row = self.row(row);
            let cached = in_memory(row);
            if cached {
                out.copy_from_slice(row);
            }
            cached
        })
    }

    /// Maps the pages of the first `bytes` bytes of values that are in memory already.
    pub(crate) fn populate(&self, bytes: usize) {
        populate(&self.map, usize_of_u64(self.row_offset(0)), bytes);
    }
}

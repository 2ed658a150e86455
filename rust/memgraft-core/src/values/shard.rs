//! One value shard: an open file, its map, and what ties the map to the file.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::values::header::Header;
use crate::values::sys::{in_memory, map_random, no_readahead, read_cached};
use crate::{Error, Result};

/// What must stay the same while a shard is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// An open shard of a value table.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    file: File,
    map: Mmap,
    identity: Identity,
    pub(crate) header: Header,
    row_bytes: usize,
}

impl Shard {
    /// Opens and maps `path`; reads the header and nothing else.
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be opened, [`Error::Format`] where
    /// it is not a value shard or is truncated.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|source| Error::io(path, "opening the value shard", source))?;
        let metadata = file.metadata().map_err(|source| Error::io(path, "reading the file's length", source))?;
        let header = Header::read(path, &file, metadata.len())?;
        let row_bytes = header
            .row_bytes()
            .and_then(|bytes| usize::try_from(bytes).ok())
            .ok_or_else(|| Error::format(path, "a row is larger than this machine's address space"))?;
        let map = map_random(path, &file)?;
        no_readahead(&file);
        Ok(Self { path: path.to_path_buf(), map, identity: Identity::of(&metadata), header, row_bytes, file })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Rows in this shard.
    pub fn num_rows(&self) -> u64 {
        self.header.num_rows
    }

    /// Length of the file in bytes.
    pub fn num_bytes(&self) -> u64 {
        self.identity.length
    }

    /// Byte of the file at which the data region starts.
    pub fn data_start(&self) -> u64 {
        self.header.scales_start.unwrap_or(self.header.values_start)
    }

    /// `__metadata__` of the header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    /// Byte of the file at which `row` of this shard starts; the caller has bounded `row`.
    pub(crate) fn row_offset(&self, row: u64) -> u64 {
        self.header.values_start + row * self.row_bytes as u64
    }

    /// The mapped bytes of `row`; the caller has bounded `row`, the slice is bounded again.
    pub(crate) fn row(&self, row: u64) -> &[u8] {
        let start = self.row_offset(row) as usize;
        &self.map[start..start + self.row_bytes]
    }

    /// `bytes` mapped bytes of the scales from `start` on; bounded by the slice.
    pub(crate) fn scales(&self, start: u64, bytes: usize) -> &[u8] {
        let start = (self.header.scales_start.unwrap_or(u64::MAX / 2) + start) as usize;
        &self.map[start..start + bytes]
    }

    /// Reads `out.len()` bytes at `offset` of the file.
    ///
    /// # Errors
    /// [`Error::Io`] naming file and offset.
    pub(crate) fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        read_exact(&self.path, &self.file, offset, out)
    }

    /// The error of a read of `bytes` bytes that failed at `offset`.
    pub(crate) fn read_failed(&self, offset: u64, bytes: usize, source: io::Error) -> Error {
        read_failed(&self.path, offset, bytes, source)
    }

    /// Reads a bounded row if it is in memory; false where it must come from the device.
    pub(crate) fn read_row_cached(&self, row: u64, out: &mut [u8]) -> bool {
        read_cached(&self.file, self.row_offset(row), out).unwrap_or_else(|| {
            let row = self.row(row);
            let cached = in_memory(row);
            if cached {
                out.copy_from_slice(row);
            }
            cached
        })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn map(&self) -> &Mmap {
        &self.map
    }

    /// Refuses a file that was truncated, overwritten, replaced or removed since it was opened.
    ///
    /// # Errors
    /// [`Error::Format`] saying which; [`Error::Io`] where the system does not tell.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        let held = self.file.metadata().map_err(|source| Error::io(&self.path, "checking the open file", source))?;
        let held = Identity::of(&held);
        if held.length != self.identity.length {
            let message = format!(
                "the file changed while it was open: expected {} bytes, found {}; restore it and open the bank again",
                self.identity.length, held.length
            );
            return Err(Error::format(&self.path, message));
        }
        if held != self.identity {
            let message = "the file was written to while it was open; verify the bank and open it again";
            return Err(Error::format(&self.path, message));
        }
        let named = std::fs::metadata(&self.path)
            .map_err(|source| Error::io(&self.path, "the file was removed or moved while it was open", source))?;
        if Identity::of(&named) != self.identity {
            let message = "the file was replaced by another while it was open; open the bank again";
            return Err(Error::format(&self.path, message));
        }
        Ok(())
    }
}

/// Fills `out` from `offset` of `file` on.
///
/// # Errors
/// [`Error::Io`] naming the file and the byte at which reading stopped.
pub(crate) fn read_exact(path: &Path, file: &File, offset: u64, out: &mut [u8]) -> Result<()> {
    let mut done = 0;
    while done < out.len() {
        let at = offset + done as u64;
        let left = out.len() - done;
        match file.read_at(&mut out[done..], at) {
            Ok(0) => {
                let end = io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends here");
                return Err(read_failed(path, at, left, end));
            }
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(read_failed(path, at, left, error)),
        }
    }
    Ok(())
}

fn read_failed(path: &Path, offset: u64, bytes: usize, source: io::Error) -> Error {
    Error::io(path, format!("reading {bytes} bytes at byte {offset}"), source)
}

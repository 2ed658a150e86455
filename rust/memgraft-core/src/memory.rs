//! Read-only mappings and huge anonymous buffers.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::Read;
use std::path::Path;

use memmap2::{Mmap, MmapMut};

use crate::ids::usize_of_u64;
use crate::{Error, Result};

/// How the bytes of an artifact come into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Load {
    /// Map the file: processes that open it share one copy, cold pages come from disk on first touch.
    #[default]
    Map,
    /// Copy the file into anonymous memory with huge pages: private, steady, unaffected by later changes to the file.
    Ram,
}

/// Immutable bytes: a mapped file or an anonymous copy.
#[derive(Debug)]
pub struct Map(Option<Mmap>);

impl Map {
    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }

    /// Starts reading all pages in, without waiting where the system cannot.
    pub fn populate(&self) {
        #[cfg(target_os = "linux")]
        if let Some(map) = &self.0 {
            // Advice only: an old kernel refuses it and pages then come in on first touch.
            map.advise(memmap2::Advice::PopulateRead).ok();
        }
    }
}

/// Maps the file at `path` for reading.
///
/// A mapped file must not be truncated while open: reads past its new end raise SIGBUS, as
/// with every mapping. Replacing it by rename, which is how this crate writes, or deleting
/// it is safe: the mapping keeps the old contents. A file on a file system that maps none is read
/// into memory.
///
/// # Errors
/// [`Error::Io`] where the file cannot be opened or mapped.
pub fn map_file(path: &Path) -> Result<Map> {
    let file = open(path)?;
    let len = length(&file, path)?;
    if len == 0 {
        return Ok(Map(None));
    }
    // SAFETY: the mapping is read-only and private to this object; the files are only ever
    // replaced by rename. Every value read from it is bounded before use as an index.
    let map = match unsafe { Mmap::map(&file) } {
        Ok(map) => map,
        Err(error) if cannot_map(&error) => return read_file(path),
        Err(error) => return Err(Error::io(path, "cannot map the file", error)),
    };
    #[cfg(target_os = "linux")]
    map.advise(memmap2::Advice::HugePage).ok(); // advice only: not every file system has huge file pages
    Ok(Map(Some(map)))
}

/// Whether a file system says that it maps no files, as some user-mapped mounts do: the file is then read instead.
fn cannot_map(error: &std::io::Error) -> bool {
    const ENODEV: i32 = 19;
    error.kind() == std::io::ErrorKind::Unsupported || error.raw_os_error() == Some(ENODEV)
}

/// Reads the file at `path` into an anonymous buffer with huge pages.
///
/// # Errors
/// [`Error::Io`] where the file cannot be read or memory is short.
pub fn read_file(path: &Path) -> Result<Map> {
    let mut file = open(path)?;
    let len = usize_of_u64(length(&file, path)?);
    if len == 0 {
        return Ok(Map(None));
    }
    let mut buffer = HugeBuffer::zeroed(len)?;
    file.read_exact(buffer.bytes_mut()).map_err(|e| Error::io(path, "cannot read the file", e))?;
    buffer.freeze()
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| Error::io(path, "cannot open", e))
}

fn length(file: &File, path: &Path) -> Result<u64> {
    let metadata = file.metadata().map_err(|e| Error::io(path, "cannot stat", e))?;
    if metadata.is_dir() {
        let source = std::io::Error::from(std::io::ErrorKind::IsADirectory);
        return Err(Error::io(path, "expected a file", source));
    }
    Ok(metadata.len())
}

/// Zeroed anonymous memory that asks for huge pages; page-aligned.
#[derive(Debug)]
pub struct HugeBuffer(MmapMut);

impl HugeBuffer {
    /// `len` zero bytes; pages are taken when written.
    ///
    /// # Errors
    /// [`Error::Io`] where the system refuses the memory.
    pub fn zeroed(len: usize) -> Result<Self> {
        let map = MmapMut::map_anon(len.max(1))
            .map_err(|e| Error::io("(memory)", format!("cannot reserve {len} bytes of anonymous memory"), e))?;
        #[cfg(target_os = "linux")]
        map.advise(memmap2::Advice::HugePage).ok(); // advice only: small pages are slower, not wrong
        Ok(Self(map))
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// The bytes as `u32` words; the length is rounded down.
    pub fn words_mut(&mut self) -> &mut [u32] {
        // SAFETY: every bit pattern is a u32; `align_to_mut` keeps bounds and alignment.
        let (head, words, _) = unsafe { self.0.align_to_mut::<u32>() };
        debug_assert!(head.is_empty(), "mappings are page-aligned");
        words
    }

    /// Makes the buffer read-only.
    ///
    /// # Errors
    /// [`Error::Io`] where the system refuses.
    pub fn freeze(self) -> Result<Map> {
        let map = self.0.make_read_only().map_err(|e| Error::io("(memory)", "cannot protect the buffer", e))?;
        Ok(Map(Some(map)))
    }
}

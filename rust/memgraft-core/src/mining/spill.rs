//! Sorted runs, in memory or in a temporary file that has no name.
//!
//! On disk a record is one head byte (key bytes shared with the record before; the high bit says that the count is 1),
//! the other key bytes, most significant first, the tag and, unless 1, the count as LEB128. Sharing starts anew with
//! every range of first tokens, so that ranges can be read apart.

#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::block::Record;
use super::window::Key;
use crate::ids::{low_u8, low_u32, saturating_u32, u64_of, usize_of_u64};
use crate::{Error, Result};

/// Bytes gathered before a write.
const WRITE_BUFFER: usize = 256 << 10;
/// The most a record can take: head, 48 key bytes, tag, count.
const MAX_RECORD: usize = 1 + 48 + 5 + 10;
/// Smallest buffer of a reader.
pub(super) const MIN_READ_BUFFER: usize = 4 << 10;
const COUNT_IS_ONE: u8 = 0x80;

/// A sorted run.
pub(super) enum Run<const W: usize> {
    /// Kept in memory.
    Memory(Vec<Record<W>>),
    /// On disk: per range of first tokens, where its bytes lie.
    File(Arc<Spill>, Vec<(u64, u64)>),
}

/// A temporary file, unlinked at creation: it is gone when the process is, however it ends.
pub(super) struct Spill {
    file: File,
    folder: PathBuf,
}

/// Appends runs to a spill file; one per thread.
pub(super) struct SpillWriter {
    spill: Arc<Spill>,
    buffer: Vec<u8>,
    written: u64,
}

static NUMBER: AtomicU64 = AtomicU64::new(0);

impl SpillWriter {
    /// Creates a nameless file in `folder`.
    pub(super) fn create(folder: &Path) -> Result<Self> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!(".memgraft-mining-{}-{number}.tmp", std::process::id()));
        let action = "creating a temporary file for mining; give another temporary=";
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(|e| Error::io(&path, action, e))?;
        std::fs::remove_file(&path).map_err(|e| Error::io(&path, "unlinking a temporary file for mining", e))?;
        let spill = Arc::new(Spill { file, folder: folder.to_path_buf() });
        Ok(Self { spill, buffer: Vec::with_capacity(WRITE_BUFFER + MAX_RECORD), written: 0 })
    }

    /// Bytes written so far.
    pub(super) fn len(&self) -> u64 {
        self.written + u64_of(self.buffer.len())
    }

    /// Writes a run kept in memory; `bounds` are the first keys of the ranges but the first.
    pub(super) fn write_run<const W: usize>(&mut self, records: &[Record<W>], bounds: &[Key<W>]) -> Result<Run<W>> {
        let mut segments = Vec::with_capacity(bounds.len() + 1);
        let mut rest = records;
        for range in 0..=bounds.len() {
            let cut = bounds.get(range).map_or(rest.len(), |bound| rest.partition_point(|record| record.key < *bound));
            let (now, later) = rest.split_at(cut);
            let mut segment = self.segment();
            for record in now {
                segment.push(&record.key, record.tag, u64::from(record.count))?;
            }
            segments.push(segment.finish());
            rest = later;
        }
        self.flush()?;
        Ok(Run::File(Arc::clone(&self.spill), segments))
    }

    /// Starts a range of a run.
    pub(super) fn segment<const W: usize>(&mut self) -> Segment<'_, W> {
        let start = self.len();
        Segment { writer: self, start, last: [0; W] }
    }

    /// The run made of `segments`, all of them written.
    pub(super) fn run<const W: usize>(&mut self, segments: Vec<(u64, u64)>) -> Result<Run<W>> {
        self.flush()?;
        Ok(Run::File(Arc::clone(&self.spill), segments))
    }

    fn flush(&mut self) -> Result<()> {
        let mut file = &self.spill.file;
        file.write_all(&self.buffer).map_err(|e| {
            let action = format!(
                "writing temporary data for mining ({} bytes so far); free some space, or give another temporary=",
                self.written
            );
            Error::io(&self.spill.folder, action, e)
        })?;
        self.written += u64_of(self.buffer.len());
        self.buffer.clear();
        Ok(())
    }
}

/// One range of a run being written.
pub(super) struct Segment<'a, const W: usize> {
    writer: &'a mut SpillWriter,
    start: u64,
    last: Key<W>,
}

impl<const W: usize> Segment<'_, W> {
    pub(super) fn push(&mut self, key: &Key<W>, tag: u32, count: u64) -> Result<()> {
        let mut shared = 0;
        let mut bytes = [0; 48];
        for (word, chunk) in key.iter().zip(bytes.chunks_exact_mut(8)) {
            chunk.copy_from_slice(&word.to_be_bytes());
        }
        for (word, last) in key.iter().zip(&self.last) {
            let differ = word ^ last;
            shared += usize_of_u64(u64::from(differ.leading_zeros() / 8));
            if differ != 0 {
                break;
            }
        }
        let head = low_u8(saturating_u32(shared)) | if count == 1 { COUNT_IS_ONE } else { 0 };
        let buffer = &mut self.writer.buffer;
        buffer.push(head);
        buffer.extend_from_slice(&bytes[shared..W * 8]);
        leb128(buffer, u64::from(tag));
        if count != 1 {
            leb128(buffer, count);
        }
        self.last = *key;
        if buffer.len() >= WRITE_BUFFER {
            self.writer.flush()?;
        }
        Ok(())
    }

    /// Where the range lies.
    pub(super) fn finish(self) -> (u64, u64) {
        (self.start, self.writer.len())
    }
}

fn leb128(buffer: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        buffer.push(low_u8(low_u32(value)) | 0x80);
        value >>= 7;
    }
    buffer.push(low_u8(low_u32(value)));
}

/// Reads one range of one run, record by record.
pub(super) enum Reader<'a, const W: usize> {
    Memory(std::slice::Iter<'a, Record<W>>),
    File(FileReader<'a, W>),
}

/// A range on disk with its read buffer.
pub(super) struct FileReader<'a, const W: usize> {
    spill: &'a Spill,
    at: u64,
    end: u64,
    buffer: Vec<u8>,
    used: usize,
    last: Key<W>,
    capacity: usize,
}

/// A record as read: key, tag, count.
pub(super) type Item<const W: usize> = (Key<W>, u32, u64);

impl<const W: usize> Run<W> {
    /// Opens range `range`, which lies between keys `from` and `to` (`None`: no bound), with a buffer of `capacity` bytes.
    pub(super) fn read(
        &self,
        range: usize,
        from: Option<Key<W>>,
        to: Option<Key<W>>,
        capacity: usize,
    ) -> Reader<'_, W> {
        match self {
            Self::Memory(records) => {
                let start = from.map_or(0, |from| records.partition_point(|record| record.key < from));
                let end = to.map_or(records.len(), |to| records.partition_point(|record| record.key < to));
                Reader::Memory(records[start..end].iter())
            }
            Self::File(spill, segments) => {
                let (at, end) = segments[range];
                let capacity = capacity.max(MIN_READ_BUFFER);
                Reader::File(FileReader {
                    spill,
                    at,
                    end,
                    buffer: Vec::with_capacity(capacity),
                    used: 0,
                    last: [0; W],
                    capacity,
                })
            }
        }
    }
}

impl<const W: usize> Reader<'_, W> {
    /// The next record, or `None` at the end of the range.
    #[inline]
    pub(super) fn next(&mut self) -> Result<Option<Item<W>>> {
        match self {
            Self::Memory(records) => Ok(records.next().map(|record| (record.key, record.tag, u64::from(record.count)))),
            Self::File(reader) => reader.next(),
        }
    }
}

impl<const W: usize> FileReader<'_, W> {
    fn next(&mut self) -> Result<Option<Item<W>>> {
        if self.buffer.len() - self.used < MAX_RECORD && self.at < self.end {
            self.refill()?;
        }
        if self.used == self.buffer.len() {
            return Ok(None);
        }
        let head = self.byte()?;
        let shared = usize::from(head & !COUNT_IS_ONE);
        let mut bytes = [0; 48];
        for (word, chunk) in self.last.iter().zip(bytes.chunks_exact_mut(8)) {
            chunk.copy_from_slice(&word.to_be_bytes());
        }
        if shared > W * 8 {
            return Err(self.damaged());
        }
        let fresh = W * 8 - shared;
        let source = self.buffer.get(self.used..self.used + fresh).ok_or_else(|| self.damaged())?;
        bytes[shared..W * 8].copy_from_slice(source);
        self.used += fresh;
        for (word, chunk) in self.last.iter_mut().zip(bytes.chunks_exact(8)) {
            let mut big_endian = [0; 8];
            big_endian.copy_from_slice(chunk);
            *word = u64::from_be_bytes(big_endian);
        }
        let tag = low_u32(self.leb128()?);
        let count = if head & COUNT_IS_ONE == 0 { self.leb128()? } else { 1 };
        Ok(Some((self.last, tag, count)))
    }

    fn refill(&mut self) -> Result<()> {
        self.buffer.drain(..self.used);
        self.used = 0;
        let kept = self.buffer.len();
        let take = usize_of_u64((self.end - self.at).min(u64_of(self.capacity - kept)));
        self.buffer.resize(kept + take, 0);
        let read = self.spill.file.read_exact_at(&mut self.buffer[kept..], self.at);
        read.map_err(|e| Error::io(&self.spill.folder, "reading temporary data of mining back", e))?;
        self.at += u64_of(take);
        Ok(())
    }

    fn byte(&mut self) -> Result<u8> {
        let byte = *self.buffer.get(self.used).ok_or_else(|| self.damaged())?;
        self.used += 1;
        Ok(byte)
    }

    fn leb128(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.damaged())
    }

    fn damaged(&self) -> Error {
        let source = std::io::Error::from(std::io::ErrorKind::InvalidData);
        Error::io(
            &self.spill.folder,
            "reading temporary data of mining back: it is not what was written; check the disk",
            source,
        )
    }
}

//! Sorted runs, in memory, in a temporary file that has no name, or in a run file.
//!
//! Sharing of key bytes starts anew with every range of first tokens, so that ranges can be read apart.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::block::Record;
use super::codec::{Decoder, Encoder, KeyBytes};
use super::gathered::Gathered;
use super::record::{AsItem, Item, batches};
use super::runs::{RunSet, SetReader};
use super::stretch::Stretch;
use super::window::{Key, Packing};
use crate::ids::u64_of;
use crate::{Error, Result};

/// Bytes gathered before a write.
const WRITE_BUFFER: usize = 256 << 10;

/// A sorted run.
pub(super) enum Run<const W: usize> {
    /// Kept in memory.
    Memory(Vec<Record<W>>),
    /// On disk: per range of first tokens, where its bytes lie.
    File(Arc<Spill>, Vec<(u64, u64)>),
    /// In a run file; `u64` is added to the tags of its long documents.
    Named(Arc<RunSet>, Packing, u64),
}

/// A temporary file, unlinked at creation: it is gone when the process is, however it ends.
pub(super) struct Spill {
    file: File,
    folder: PathBuf,
    bytes: KeyBytes,
}

/// Appends runs to a spill file; one per thread.
pub(super) struct SpillWriter {
    spill: Arc<Spill>,
    buffer: Gathered,
    written: u64,
}

static NUMBER: AtomicU64 = AtomicU64::new(0);

impl SpillWriter {
    /// Creates a nameless file in `folder`.
    pub(super) fn create(folder: &Path, packing: &Packing) -> Result<Self> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!(".memgraft-mining-{}-{number}.tmp", std::process::id()));
        let action = "creating a temporary file for mining; give another temporary=";
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(|e| Error::io(&path, action, e))?;
        std::fs::remove_file(&path).map_err(|e| Error::io(&path, "unlinking a temporary file for mining", e))?;
        let spill = Arc::new(Spill { file, folder: folder.to_path_buf(), bytes: KeyBytes::of(packing) });
        Ok(Self { spill, buffer: Gathered::with_capacity(WRITE_BUFFER), written: 0 })
    }

    /// Bytes written so far.
    pub(super) fn len(&self) -> u64 {
        self.written + u64_of(self.buffer.len())
    }

    /// Writes a run kept in memory; `bounds` are the first keys of the ranges but the first.
    pub(super) fn write_run<const W: usize>(&mut self, records: &[Record<W>], bounds: &[Key<W>]) -> Result<Run<W>> {
        let mut places = Vec::with_capacity(bounds.len() + 1);
        let mut rest = records;
        for range in 0..=bounds.len() {
            let cut = bounds.get(range).map_or(rest.len(), |bound| rest.partition_point(|record| record.key < *bound));
            let (now, later) = rest.split_at(cut);
            let mut open = self.range();
            batches(now, |items| open.push_all(items))?;
            places.push(open.finish());
            rest = later;
        }
        self.flush()?;
        Ok(Run::File(Arc::clone(&self.spill), places))
    }

    /// Starts a range of a run.
    pub(super) fn range<const W: usize>(&mut self) -> RangeWriter<'_, W> {
        let start = self.len();
        RangeWriter { encoder: Encoder::new(self.spill.bytes), writer: self, start }
    }

    /// The run made of `places`, all of them written.
    pub(super) fn run<const W: usize>(&mut self, places: Vec<(u64, u64)>) -> Result<Run<W>> {
        self.flush()?;
        Ok(Run::File(Arc::clone(&self.spill), places))
    }

    fn flush(&mut self) -> Result<()> {
        let mut file = &self.spill.file;
        file.write_all(self.buffer.as_slice()).map_err(|e| {
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

impl<const W: usize> AsItem<W> for Record<W> {
    fn as_item(&self) -> Item<W> {
        (self.key, u64::from(self.tag), u64::from(self.count))
    }
}

/// One range of a run being written.
pub(super) struct RangeWriter<'a, const W: usize> {
    writer: &'a mut SpillWriter,
    start: u64,
    encoder: Encoder<W>,
}

impl<const W: usize> RangeWriter<'_, W> {
    pub(super) fn push_all(&mut self, items: &[Item<W>]) -> Result<()> {
        self.encoder.push_all(&mut self.writer.buffer, items);
        if self.writer.buffer.len() >= WRITE_BUFFER { self.writer.flush() } else { Ok(()) }
    }

    /// Where the range lies.
    pub(super) fn finish(self) -> (u64, u64) {
        (self.start, self.writer.len())
    }
}

/// Reads one range of one run.
pub(super) enum Reader<'a, const W: usize> {
    Memory(&'a [Record<W>]),
    File(FileReader<'a, W>),
    Named(Box<SetReader<'a, W>>),
}

/// A range on disk with its read buffer.
pub(super) struct FileReader<'a, const W: usize> {
    spill: &'a Spill,
    stretch: Stretch,
    decoder: Decoder<W>,
}

impl<const W: usize> Run<W> {
    /// Opens range `range`, which lies between keys `from` and `to` (`None`: no bound), with a buffer of `capacity` bytes.
    pub(super) fn read(
        &self,
        range: usize,
        from: Option<Key<W>>,
        to: Option<Key<W>>,
        capacity: usize,
    ) -> Result<Reader<'_, W>> {
        Ok(match self {
            Self::Memory(records) => {
                let start = from.map_or(0, |from| records.partition_point(|record| record.key < from));
                let end = to.map_or(records.len(), |to| records.partition_point(|record| record.key < to));
                Reader::Memory(&records[start..end])
            }
            Self::File(spill, places) => {
                let (at, end) = places[range];
                Reader::File(FileReader {
                    spill,
                    stretch: Stretch::new(at, end, capacity),
                    decoder: Decoder::new(spill.bytes),
                })
            }
            Self::Named(set, packing, longs) => {
                Reader::Named(Box::new(SetReader::open(set, packing, from, to, *longs, capacity)?))
            }
        })
    }
}

impl<const W: usize> Reader<'_, W> {
    /// Puts the next records into `items`; returns their number, zero at the end of the range.
    #[inline]
    pub(super) fn fill(&mut self, items: &mut [Item<W>]) -> Result<usize> {
        match self {
            Self::Memory(records) => {
                let (now, later) = records.split_at(records.len().min(items.len()));
                items.iter_mut().zip(now).for_each(|(item, record)| *item = record.as_item());
                *records = later;
                Ok(now.len())
            }
            Self::File(reader) => reader.fill(items),
            Self::Named(reader) => reader.fill(items),
        }
    }
}

impl<const W: usize> FileReader<'_, W> {
    #[inline]
    fn fill(&mut self, items: &mut [Item<W>]) -> Result<usize> {
        if self.stretch.is_short() {
            let read = self.stretch.refill(|bytes, at| self.spill.file.read_exact_at(bytes, at));
            read.map_err(|e| Error::io(&self.spill.folder, "reading temporary data of mining back", e))?;
        }
        self.stretch.records(&mut self.decoder, items, |_| ()).ok_or_else(|| {
            let source = std::io::Error::from(std::io::ErrorKind::InvalidData);
            let action = "reading temporary data of mining back: it is not what was written; check the disk";
            Error::io(&self.spill.folder, action, source)
        })
    }
}

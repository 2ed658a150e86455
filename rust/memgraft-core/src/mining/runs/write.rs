//! Writing a run file, section by section.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::journal::{Entry, Journal};
use super::{ENDIAN, Facts, HEAD_LEN, MAGIC, RunSection, RunSet, SECTION_BYTES, VERSION};
use crate::fingerprint::Fingerprint;
use crate::ids::{u64_of, usize_of_u64};
use crate::mining::codec::{Encoder, KeyBytes};
use crate::mining::gathered::Gathered;
use crate::mining::record::Item;
use crate::mining::window::Packing;
use crate::{Error, Result};

/// Bytes gathered before a write.
const WRITE_BUFFER: usize = if cfg!(test) { 700 } else { 256 << 10 };
/// Bytes of a page of the system's cache.
const PAGE: u64 = if cfg!(test) { 64 } else { 4096 };
/// Bytes of finished sections after which they are made durable and entered into the journal.
const SYNC_BYTES: u64 = if cfg!(test) { 256 } else { 256 << 20 };
const UNWRITTEN: &str = "cannot be written; free some space or choose another place";

/// Writes sorted records under a temporary name; [`RunWriter::finish`] gives the file its own.
pub(in crate::mining) struct RunWriter<const W: usize> {
    path: PathBuf,
    beside: PathBuf,
    file: File,
    journal: Option<Journal>,
    packing: Packing,
    /// What comes behind `written`; its first `hashed` bytes are in `hasher`.
    buffer: Gathered,
    hashed: usize,
    written: u64,
    hasher: blake3::Hasher,
    encoder: Encoder<W>,
    sections: Vec<RunSection>,
    /// Entries of whole sections that the journal does not have yet.
    fresh: Vec<Entry>,
    start: u64,
    token: Option<u32>,
    num_records: u64,
    done: bool,
}

impl<const W: usize> RunWriter<W> {
    /// Starts the file that will be at `path`.
    pub(in crate::mining) fn create(path: &Path, packing: &Packing) -> Result<Self> {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let beside = path.with_file_name(format!(".{name}.tmp-{}", std::process::id()));
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&beside);
        Self::new(path, beside, file, None, packing)
    }

    /// Starts, or goes on with, the file that will be at `path`; what is there so far lies in `folder`. Returns the
    /// writer and the first token that it still wants.
    ///
    /// `identity` names what is written: what another identity has left is thrown away.
    pub(in crate::mining) fn resume(
        path: &Path,
        folder: &Path,
        identity: &str,
        packing: &Packing,
    ) -> Result<(Self, Option<u32>)> {
        let beside = folder.join("merged.records");
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&beside);
        let has = file.as_ref().ok().and_then(|file| file.metadata().ok()).map_or(0, |found| found.len());
        let (journal, entries) = Journal::open(&folder.join("merged.journal"), identity, has)?;
        let mut writer = Self::new(path, beside, file, Some(journal), packing)?;
        if let Some(last) = entries.last() {
            writer.written = last.section.offset + last.section.length;
            writer.num_records = last.num_records;
        }
        let fail = |e| Error::io(&writer.beside, UNWRITTEN, e);
        writer.file.set_len(writer.written).map_err(fail)?;
        writer.file.seek(SeekFrom::Start(writer.written)).map_err(fail)?;
        writer.start = writer.written;
        let next = entries.last().map(|last| last.next);
        writer.sections = entries.into_iter().map(|entry| entry.section).collect();
        Ok((writer, next))
    }

    fn new(
        path: &Path,
        beside: PathBuf,
        file: std::io::Result<File>,
        journal: Option<Journal>,
        packing: &Packing,
    ) -> Result<Self> {
        let unmade = "cannot create a file beside it; choose a folder you may write";
        let mut file = file.map_err(|e| Error::io(path, unmade, e))?;
        file.seek(SeekFrom::Start(u64_of(HEAD_LEN))).map_err(|e| Error::io(path, UNWRITTEN, e))?;
        Ok(Self {
            path: path.to_path_buf(),
            beside,
            file,
            journal,
            packing: *packing,
            buffer: Gathered::with_capacity(WRITE_BUFFER),
            hashed: 0,
            written: u64_of(HEAD_LEN),
            hasher: blake3::Hasher::new(),
            encoder: Encoder::new(KeyBytes::of(packing)),
            sections: Vec::new(),
            fresh: Vec::new(),
            start: u64_of(HEAD_LEN),
            token: None,
            num_records: 0,
            done: false,
        })
    }

    /// Appends records; (key, tag) rise.
    pub(in crate::mining) fn push_all(&mut self, mut items: &[Item<W>]) -> Result<()> {
        let packing = self.packing;
        while let (Some(first), Some(last)) = (items.first(), items.last()) {
            let token = packing.first_token(&first.0);
            if token != self.token {
                self.start_token(token)?;
            }
            let has = |item: &Item<W>| packing.first_token(&item.0) == token;
            let (now, later) = items.split_at(if has(last) { items.len() } else { items.partition_point(has) });
            self.encoder.push_all(&mut self.buffer, now);
            self.num_records += u64_of(now.len());
            items = later;
            if self.buffer.len() >= WRITE_BUFFER {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Records of first token `token` come next, as bytes; returns whether the first of them is the first of a section.
    pub(in crate::mining) fn start(&mut self, token: u32) -> Result<bool> {
        Ok(Some(token) != self.token && self.start_token(Some(token))?)
    }

    /// Room for so many records, encoded.
    pub(in crate::mining) fn room(&mut self, records: usize) -> &mut [u8] {
        self.buffer.room(records)
    }

    /// The caller has written so many records at the start of [`RunWriter::room`]: those that come next, and that share
    /// what they share with the record before them.
    pub(in crate::mining) fn wrote(&mut self, num_bytes: usize, num_records: u64) -> Result<()> {
        self.buffer.wrote(num_bytes);
        self.num_records += num_records;
        if self.buffer.len() >= WRITE_BUFFER { self.flush() } else { Ok(()) }
    }

    /// Another first token comes: a section may end. Returns whether one starts.
    fn start_token(&mut self, token: Option<u32>) -> Result<bool> {
        if self.token.is_some() && self.at() - self.start >= SECTION_BYTES {
            self.end_section(token)?;
        }
        let starts = self.start == self.at();
        if starts {
            self.sections.push(RunSection {
                token: token.unwrap_or(0),
                offset: self.start,
                length: 0,
                checksum: Fingerprint([0; 32]),
            });
        }
        self.token = token;
        Ok(starts)
    }

    fn at(&self) -> u64 {
        self.written + u64_of(self.buffer.len())
    }

    fn hash(&mut self) {
        self.hasher.update(&self.buffer.as_slice()[self.hashed..]);
        self.hashed = self.buffer.len();
    }

    /// Writes whole pages of what is gathered: copying to the middle of one takes the system twice the time.
    fn flush(&mut self) -> Result<()> {
        let end = self.at() / PAGE * PAGE;
        self.write(usize_of_u64(end.saturating_sub(self.written)))
    }

    /// Writes so many bytes of what is gathered.
    fn write(&mut self, len: usize) -> Result<()> {
        self.hash();
        self.file.write_all(&self.buffer.as_slice()[..len]).map_err(|e| Error::io(&self.path, UNWRITTEN, e))?;
        self.written += u64_of(len);
        self.buffer.drop_front(len);
        self.hashed -= len;
        Ok(())
    }

    /// Closes the open section; `next` is the token that comes after it.
    fn end_section(&mut self, next: Option<u32>) -> Result<()> {
        self.hash();
        let at = self.at();
        let Some(section) = self.sections.last_mut().filter(|_| at > self.start) else { return Ok(()) };
        section.length = at - self.start;
        section.checksum = Fingerprint(*self.hasher.finalize().as_bytes());
        self.hasher.reset();
        self.encoder = Encoder::new(KeyBytes::of(&self.packing));
        self.start = at;
        let Some(next) = next.filter(|_| self.journal.is_some()) else { return Ok(()) };
        self.fresh.push(Entry { section: *section, next, num_records: self.num_records });
        let since = self.fresh.first().map_or(at, |entry| entry.section.offset);
        if at - since >= SYNC_BYTES { self.sync() } else { Ok(()) }
    }

    /// Makes finished sections durable and enters them into the journal.
    fn sync(&mut self) -> Result<()> {
        self.write(self.buffer.len())?;
        self.file.sync_data().map_err(|e| Error::io(&self.path, UNWRITTEN, e))?;
        let fresh = std::mem::take(&mut self.fresh);
        self.journal.as_mut().map_or(Ok(()), |journal| journal.append(&fresh))
    }

    /// Appends the lengths of documents that `fill` writes, piece by piece; returns where they lie.
    pub(in crate::mining) fn lengths(
        &mut self,
        fill: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>,
    ) -> Result<(u64, u64, Fingerprint)> {
        self.end_section(None)?;
        let start = self.at();
        let mut put = |bytes: &[u8]| {
            self.buffer.extend(bytes);
            if self.buffer.len() >= WRITE_BUFFER { self.flush() } else { Ok(()) }
        };
        fill(&mut put)?;
        self.hash();
        let checksum = Fingerprint(*self.hasher.finalize().as_bytes());
        self.hasher.reset();
        self.start = self.at();
        Ok((start, self.start - start, checksum))
    }

    /// Writes tail and head, makes the bytes durable and gives the file its name.
    pub(in crate::mining) fn finish(mut self, facts: &Facts) -> Result<RunSet> {
        self.end_section(None)?;
        self.write(self.buffer.len())?;
        let facts = Facts { num_records: self.num_records, ..facts.clone() };
        let text = facts.encode();
        let mut tail = u64_of(text.len()).to_le_bytes().to_vec();
        tail.extend_from_slice(text.as_bytes());
        self.sections.iter().for_each(|section| tail.extend_from_slice(&section.encode()));
        let mut head = [0; HEAD_LEN];
        head[..8].copy_from_slice(&MAGIC);
        head[8..12].copy_from_slice(&ENDIAN.to_le_bytes());
        head[12..14].copy_from_slice(&VERSION.0.to_le_bytes());
        head[14..16].copy_from_slice(&VERSION.1.to_le_bytes());
        head[16..24].copy_from_slice(&self.written.to_le_bytes());
        head[24..32].copy_from_slice(&u64_of(tail.len()).to_le_bytes());
        head[32..64].copy_from_slice(blake3::hash(&tail).as_bytes());
        let fail = |e| Error::io(&self.path, UNWRITTEN, e);
        self.file.write_all(&tail).map_err(fail)?;
        self.file.seek(SeekFrom::Start(0)).map_err(fail)?;
        self.file.write_all(&head).map_err(fail)?;
        self.file.sync_all().map_err(fail)?;
        std::fs::rename(&self.beside, &self.path).map_err(fail)?;
        self.done = true;
        crate::format::sync_parent(&self.path).map_err(|e| Error::io(&self.path, "cannot fsync the directory", e))?;
        RunSet::open(&self.path)
    }
}

impl<const W: usize> Drop for RunWriter<W> {
    fn drop(&mut self) {
        if !self.done && self.journal.is_none() {
            // Best effort on the error path: the first error is the one to report.
            std::fs::remove_file(&self.beside).ok();
        }
    }
}

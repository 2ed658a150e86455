//! Which sections of an unfinished run file are durable.
//!
//! The hash of what is written, then an entry a section: the section, the first token after it, the records up to its
//! end, and the first 8 bytes of the entry's own hash. A torn last entry does not count.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::{RunSection, SECTION_LEN};
use crate::ids::u64_of;
use crate::wire::{u32_at, u64_at};
use crate::{Error, Result};

const ENTRY_LEN: usize = SECTION_LEN + 24;
const UNWRITTEN: &str = "cannot be written; free some space or choose another place";

/// A durable section.
pub(super) struct Entry {
    pub(super) section: RunSection,
    pub(super) next: u32,
    pub(super) num_records: u64,
}

impl Entry {
    fn encode(&self) -> Vec<u8> {
        let mut out = self.section.encode().to_vec();
        out.extend_from_slice(&u64::from(self.next).to_le_bytes());
        out.extend_from_slice(&self.num_records.to_le_bytes());
        let hash = blake3::hash(&out);
        out.extend_from_slice(&hash.as_bytes()[..8]);
        out
    }

    fn decode(bytes: &[u8; ENTRY_LEN]) -> Option<Self> {
        let (content, check) = bytes.split_at(ENTRY_LEN - 8);
        let section = content.first_chunk().map(RunSection::decode)?;
        let entry = Self { section, next: u32_at(content, SECTION_LEN), num_records: u64_at(content, SECTION_LEN + 8) };
        (blake3::hash(content).as_bytes()[..8] == *check).then_some(entry)
    }
}

/// The journal of one file.
pub(super) struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Opens the journal at `path` of the file that `identity` names and that has `has` bytes so far.
    pub(super) fn open(path: &Path, identity: &str, has: u64) -> Result<(Self, Vec<Entry>)> {
        let fail = |e| Error::io(path, UNWRITTEN, e);
        let head = *blake3::hash(identity.as_bytes()).as_bytes();
        let known = match std::fs::read(path) {
            Ok(bytes) if bytes.starts_with(&head) => bytes,
            Ok(_) => head.to_vec(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => head.to_vec(),
            Err(error) => return Err(fail(error)),
        };
        let entries: Vec<Entry> = known[head.len()..]
            .as_chunks::<ENTRY_LEN>()
            .0
            .iter()
            .map_while(Entry::decode)
            .take_while(|entry| entry.section.offset + entry.section.length <= has)
            .collect();
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(path).map_err(fail)?;
        file.write_all(&head).map_err(fail)?;
        let end = u64_of(head.len() + entries.len() * ENTRY_LEN);
        file.set_len(end).map_err(fail)?;
        file.seek(SeekFrom::Start(end)).map_err(fail)?;
        Ok((Self { path: path.to_path_buf(), file }, entries))
    }

    /// Appends entries and makes them durable.
    pub(super) fn append(&mut self, entries: &[Entry]) -> Result<()> {
        let bytes: Vec<u8> = entries.iter().flat_map(Entry::encode).collect();
        let written = self.file.write_all(&bytes).and_then(|()| self.file.sync_data());
        written.map_err(|e| Error::io(&self.path, UNWRITTEN, e))
    }
}

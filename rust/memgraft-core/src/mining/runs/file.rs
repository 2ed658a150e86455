//! Opening a run file: its head and tail, checked.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{ENDIAN, Facts, HEAD_LEN, MAGIC, RunSection, SECTION_LEN, VERSION};
use crate::fingerprint::Fingerprint;
use crate::ids::{u64_of, usize_of_u64};
use crate::mining::codec::KeyBytes;
use crate::mining::window::Packing;
use crate::wire::{u32_at, u64_at};
use crate::{Error, Result};

/// A run file, open for reading: facts and table of sections. Records are read, and checked, range by range.
#[derive(Debug)]
pub struct RunSet {
    path: PathBuf,
    facts: Facts,
    pub(super) sections: Vec<RunSection>,
    num_bytes: u64,
    /// How its records lie.
    pub(in crate::mining) key_bytes: KeyBytes,
}

impl RunSet {
    /// Reads head and tail of the file at `path`.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Format`] for what is no run file, damaged, truncated or of a later version.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let fail = |e| Error::io(&path, "cannot read the run file", e);
        let bad = |message: String| Error::format(&path, message);
        let file = File::open(&path).map_err(fail)?;
        let num_bytes = file.metadata().map_err(fail)?.len();
        if num_bytes < u64_of(HEAD_LEN) {
            return Err(bad(format!(
                "expected a run file of at least {HEAD_LEN} bytes, found {num_bytes}; copy it again"
            )));
        }
        let mut head = [0; HEAD_LEN];
        file.read_exact_at(&mut head, 0).map_err(fail)?;
        if head[..8] != MAGIC {
            return Err(bad(format!("expected a run file, which starts with MEMGRUNS, found {:02x?}", &head[..8])));
        }
        if u32_at(&head, 8) != ENDIAN {
            return Err(bad("expected a little-endian run file; mine the part again".into()));
        }
        let (major, minor) = (u32_at(&head, 12) & 0xffff, u32_at(&head, 12) >> 16);
        if major != u32::from(VERSION.0) || minor > u32::from(VERSION.1) {
            let (want, newest) = VERSION;
            return Err(bad(format!(
                "expected run file version {want}.0 to {want}.{newest}, found {major}.{minor}; update memgraft"
            )));
        }
        let (offset, length) = (u64_at(&head, 16), u64_at(&head, 24));
        if offset < u64_of(HEAD_LEN) || offset.checked_add(length) != Some(num_bytes) {
            return Err(bad(format!(
                "expected {} bytes, found {num_bytes}: truncated or overgrown; copy it again or mine the part again",
                offset.saturating_add(length)
            )));
        }
        let mut tail = vec![0; usize_of_u64(length)];
        file.read_exact_at(&mut tail, offset).map_err(fail)?;
        if blake3::hash(&tail).as_bytes() != &head[32..64] {
            return Err(bad(
                "its checksum does not match: the file is damaged; copy it again or mine the part again".into()
            ));
        }
        let text_len = tail.get(..8).map(|bytes| u64_at(bytes, 0));
        let text_end = text_len.and_then(|len| len.checked_add(8)).filter(|&end| end <= length);
        let Some(text_end) = text_end.map(usize_of_u64) else {
            return Err(bad("the facts lie outside the file; mine the part again".into()));
        };
        let (facts, num_key_bytes) = Facts::decode(&path, &tail[8..text_end])?;
        let packing = Packing::new(facts.vocab_size, facts.max_order);
        let key_bytes = if minor == 0 { KeyBytes::all(&packing) } else { KeyBytes::of(&packing) };
        if num_key_bytes != (minor > 0).then_some(u64_of(key_bytes.num)) {
            return Err(bad(format!(
                "expected {} bytes of a key in version {major}.{minor}, found {num_key_bytes:?}; mine the part again",
                key_bytes.num
            )));
        }
        let (entries, rest) = tail[text_end..].as_chunks::<SECTION_LEN>();
        let sections: Vec<RunSection> = entries.iter().map(RunSection::decode).collect();
        let set = Self { path, facts, sections, num_bytes, key_bytes };
        match set.check_places(offset, rest.is_empty()) {
            true => Ok(set),
            false => Err(Error::format(set.path, "its sections do not follow one another; mine the part again")),
        }
    }

    /// Sections lie one after another, then the lengths of documents, then the tail.
    fn check_places(&self, tail: u64, whole: bool) -> bool {
        let mut at = u64_of(HEAD_LEN);
        let mut last = None;
        let (from, to) = self.facts.tokens;
        for section in &self.sections {
            let fits = section.token >= from && section.token < to && last.is_none_or(|last| last < section.token);
            if section.offset != at || !fits || section.length == 0 {
                return false;
            }
            let Some(end) = at.checked_add(section.length) else { return false };
            (at, last) = (end, Some(section.token));
        }
        for shard in &self.facts.shards {
            if shard.lengths.0 != at {
                return false;
            }
            let Some(end) = at.checked_add(shard.lengths.1) else { return false };
            at = end;
        }
        whole && at == tail
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it holds.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Bytes of the file.
    #[must_use]
    pub fn num_bytes(&self) -> u64 {
        self.num_bytes
    }

    /// First token and bytes of every section.
    pub(crate) fn weights(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.sections.iter().map(|section| (section.token, section.length))
    }

    /// First tokens that section `index` may hold: from, to.
    #[inline]
    pub(super) fn section_tokens(&self, index: usize) -> (u32, u32) {
        let from = self.sections.get(index).map_or(0, |section| section.token);
        (from, self.sections.get(index + 1).map_or(self.facts.tokens.1, |next| next.token))
    }

    /// Bytes of the records of first tokens `from..to`, as closely as the sections tell: at least, at most.
    pub(in crate::mining) fn bytes_of(&self, from: u32, to: u32) -> (u64, u64) {
        let (mut least, mut most) = (0, 0);
        for (index, section) in self.sections.iter().enumerate() {
            let (first, end) = self.section_tokens(index);
            least += if first >= from && end <= to { section.length } else { 0 };
            most += if first < to && end > from { section.length } else { 0 };
        }
        (least, most)
    }

    pub(in crate::mining) fn packing(&self) -> Packing {
        Packing::new(self.facts.vocab_size, self.facts.max_order)
    }

    pub(super) fn reopen(&self) -> Result<File> {
        File::open(&self.path).map_err(|e| Error::io(&self.path, "cannot read the run file", e))
    }

    /// Visits the bytes of a shard's document lengths, piece by piece, and checks them.
    pub(in crate::mining) fn read_lengths(
        &self,
        shard: &super::Shard,
        mut visit: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let file = self.reopen()?;
        let (mut at, bytes, checksum) = shard.lengths;
        let end = at.saturating_add(bytes);
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; 1 << 16];
        while at < end {
            let take = usize_of_u64((end - at).min(1 << 16));
            let piece = &mut buffer[..take];
            file.read_exact_at(piece, at).map_err(|e| Error::io(&self.path, "cannot read the run file", e))?;
            hasher.update(piece);
            visit(piece)?;
            at += u64_of(take);
        }
        if Fingerprint(*hasher.finalize().as_bytes()) == checksum {
            return Ok(());
        }
        Err(Error::format(&self.path, "the lengths of its documents are damaged; copy it again or mine the part again"))
    }
}

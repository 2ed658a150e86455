//! The sections of a run file between two first tokens, one after another, each checked as a whole.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::RunSet;
use crate::fingerprint::Fingerprint;
use crate::ids::u64_of;
use crate::{Error, Result};

/// Reads bytes of sections.
pub(in crate::mining) struct Sections<'a> {
    set: &'a RunSet,
    file: File,
    /// The section that is read or comes next, and one past the last to read.
    section: usize,
    end: usize,
    open: bool,
    hasher: blake3::Hasher,
}

impl<'a> Sections<'a> {
    /// Opens those of `set` that may hold records of first tokens `from..to`.
    pub(in crate::mining) fn open(set: &'a RunSet, from: Option<u32>, to: Option<u32>) -> Result<Self> {
        let sections = &set.sections;
        // The section before the first that starts at or after `from` may hold records from `from` on.
        let section = from.map_or(0, |token| sections.partition_point(|section| section.token <= token).max(1) - 1);
        let end = to.map_or(sections.len(), |token| sections.partition_point(|section| section.token < token));
        Ok(Self { set, file: set.reopen()?, section, end, open: false, hasher: blake3::Hasher::new() })
    }

    /// The largest tag that a record may have: an order, or a long document.
    pub(in crate::mining) fn max_tag(&self) -> u64 {
        u64_of(self.set.facts().max_order + self.set.facts().longs.len())
    }

    /// Ends the section that is read and starts the next; returns from where to where it lies, `None` after the last.
    pub(in crate::mining) fn next(&mut self) -> Result<Option<(u64, u64)>> {
        self.close()?;
        if self.section >= self.end {
            return Ok(None);
        }
        let section = &self.set.sections[self.section];
        self.hasher.reset();
        self.open = true;
        Ok(Some((section.offset, section.offset + section.length)))
    }

    /// Ends the section that is read, and no other comes.
    pub(in crate::mining) fn stop(&mut self) -> Result<()> {
        self.close()?;
        self.end = self.section;
        Ok(())
    }

    /// Ends a section: what was read is what was written.
    fn close(&mut self) -> Result<()> {
        if self.open {
            if Fingerprint(*self.hasher.finalize().as_bytes()) != self.set.sections[self.section].checksum {
                return Err(self.damaged());
            }
            self.section += 1;
            self.open = false;
        }
        Ok(())
    }

    /// First tokens of the section that is read: from, to.
    #[inline]
    pub(in crate::mining) fn tokens(&self) -> (u32, u32) {
        self.set.section_tokens(self.section)
    }

    /// Reads the next bytes of the section, which lie at `at`.
    pub(in crate::mining) fn read(&mut self, bytes: &mut [u8], at: u64) -> Result<()> {
        let read = self.file.read_exact_at(bytes, at);
        read.map_err(|e| Error::io(self.set.path(), "cannot read the run file", e))?;
        self.hasher.update(bytes);
        Ok(())
    }

    /// The section that is read is not what a writer of records leaves.
    pub(in crate::mining) fn damaged(&self) -> Error {
        let (place, token) =
            self.set.sections.get(self.section).map_or((0, 0), |section| (section.offset, section.token));
        Error::format(
            self.set.path(),
            format!(
                "the records from byte {place} on (first token {token}) are damaged; copy it again or mine the part again"
            ),
        )
    }
}

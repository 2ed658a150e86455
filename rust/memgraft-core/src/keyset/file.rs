//! `keys.mgk`: save, open, verify.

use std::path::Path;

use super::build::show;
use super::{KeySet, MARK_ROWS, content_fingerprint};
use crate::format::{CREATOR, Container, Header, Kind, Load, Section, Store, bytes_of, write_container};
use crate::ids::{MAX_ORDER, saturating_u32, u64_of};
use crate::threads::default_threads;
use crate::{Error, Result};

const TOKENS: u32 = 1;
const LENGTHS: u32 = 2;
const MARKS: u32 = 3;
const COUNTS: u32 = 4;
const DOCUMENTS: u32 = 5;
const RESERVED: u32 = 6;
const METADATA: u32 = 7;

impl KeySet {
    /// Writes the set to `path`, beside it first.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Interrupted`]; the old file at `path` then stays.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_container(path.as_ref(), self.header(), &self.sections(), default_threads())
    }

    pub(crate) fn header(&self) -> Header {
        let mut parameters = [0u64; 16];
        parameters[0] = u64_of(self.tokens.len());
        Header {
            kind: Kind::Keys,
            minor: 0,
            flags: 0,
            vocab_size: self.vocab_size,
            max_order: saturating_u32(self.max_order()),
            num_keys: u64_of(self.len()),
            keys_by_order: self.keys_by_order,
            fingerprint: self.fingerprint,
            keyset_fingerprint: self.fingerprint,
            creator: CREATOR.into(),
            parameters,
            sections: Vec::new(),
        }
    }

    pub(crate) fn sections(&self) -> [Section<'_>; 7] {
        let section = |tag, bytes| Section { tag, alignment: 64, bytes };
        [
            section(TOKENS, bytes_of(&self.tokens)),
            section(LENGTHS, &self.lengths),
            section(MARKS, bytes_of(&self.marks)),
            section(COUNTS, bytes_of(&self.counts)),
            section(DOCUMENTS, bytes_of(&self.documents)),
            section(RESERVED, bytes_of(&self.reserved)),
            section(METADATA, self.metadata.as_bytes()),
        ]
    }

    /// Maps the set at `path`; O(header).
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Format`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_container(&Container::open(path.as_ref(), Kind::Keys, Load::Map)?)
    }

    pub(crate) fn from_container(container: &Container) -> Result<Self> {
        let header = &container.header;
        let rows = header.num_keys;
        let reserved: Store<u32> = container.section(RESERVED, "reserved")?;
        let metadata: Store<u8> = container.section(METADATA, "metadata")?;
        let metadata = String::from_utf8(metadata.to_vec())
            .map_err(|_| Error::format(&container.path, "the metadata is not UTF-8: the file is damaged"))?;
        Ok(Self {
            tokens: container.section_of(TOKENS, "tokens", header.parameters[0])?,
            lengths: container.section_of(LENGTHS, "lengths", rows)?,
            marks: container.section_of(MARKS, "marks", rows.div_ceil(u64_of(MARK_ROWS)))?,
            counts: container.section_of(COUNTS, "counts", rows)?,
            documents: container.section_of(DOCUMENTS, "documents", rows)?,
            reserved: reserved.to_vec(),
            vocab_size: header.vocab_size,
            keys_by_order: header.keys_by_order,
            fingerprint: header.fingerprint,
            metadata,
            container: Some(container.clone()),
        })
    }

    /// Checks everything: section hashes, the content fingerprint, that keys are in range, distinct and in row order.
    ///
    /// # Errors
    /// [`Error::Format`] that says what is wrong.
    pub fn verify(&self, threads: usize) -> Result<()> {
        let Some(container) = &self.container else { return Ok(()) };
        container.verify(threads)?;
        let arrays =
            [bytes_of(&self.tokens), bytes_of(&self.lengths), bytes_of(&self.counts), bytes_of(&self.documents)];
        let found = content_fingerprint(self.vocab_size, &self.reserved, arrays)?;
        if found != self.fingerprint {
            let want = self.fingerprint;
            return Err(self.damaged(&format!("expected the content fingerprint {want}, got {found}")));
        }
        let mut by_order = [0u64; MAX_ORDER];
        let mut at = 0usize;
        let mut last: Option<(u64, &[u32])> = None;
        for (row, (&len, &count)) in self.lengths.iter().zip(&*self.counts).enumerate() {
            let len = usize::from(len);
            if len == 0 || len > MAX_ORDER || at + len > self.tokens.len() {
                return Err(self.damaged(&format!("row {row} has {len} tokens")));
            }
            if row % MARK_ROWS == 0 && self.marks[row / MARK_ROWS] != u64_of(at) {
                return Err(self.damaged(&format!("the mark of row {row} is wrong")));
            }
            let key = &self.tokens[at..at + len];
            if key.iter().any(|&t| t >= self.vocab_size || self.reserved.binary_search(&t).is_ok()) {
                return Err(self.damaged(&format!("row {row} {} holds a forbidden token", show(key))));
            }
            if last.is_some_and(|(c, k)| c < count || (c == count && k >= key)) {
                return Err(self.damaged(&format!("row {row} {} is out of row order", show(key))));
            }
            last = Some((count, key));
            by_order[len - 1] += 1;
            at += len;
        }
        if at != self.tokens.len() || by_order != self.keys_by_order {
            return Err(self.damaged("the counts by order do not match the keys"));
        }
        Ok(())
    }
}

//! The key set: distinct keys in row order with counts and document
//! frequencies; rows run from the most to the least frequent key, ties by key.

mod build;
mod file;
mod gain;
pub(crate) mod sort;

use std::path::Path;

pub use build::Arrays;
pub(crate) use build::RowBuilder;

use crate::fingerprint::{Fingerprint, digest};
use crate::format::{Container, Store, bytes_of};
use crate::ids::{MAX_ORDER, RowId, u64_of, usize_of, usize_of_u64};
use crate::threads::default_threads;
use crate::{Error, Result};

/// Rows between two stored token offsets.
const MARK_ROWS: usize = 64;

/// Distinct keys, frozen, in row order.
#[derive(Debug, Clone)]
pub struct KeySet {
    tokens: Store<u32>,
    lengths: Store<u8>,
    marks: Store<u64>,
    counts: Store<u64>,
    documents: Store<u64>,
    reserved: Vec<u32>,
    vocab_size: u32,
    keys_by_order: [u64; MAX_ORDER],
    fingerprint: Fingerprint,
    metadata: String,
    container: Option<Container>,
}

impl KeySet {
    /// Number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Whether the set has no keys.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Tokens are smaller than this.
    #[must_use]
    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    /// Number of keys of order 1..=16.
    #[must_use]
    pub fn keys_by_order(&self) -> &[u64; MAX_ORDER] {
        &self.keys_by_order
    }

    /// Length of the longest key, 0 for the empty set.
    #[must_use]
    pub fn max_order(&self) -> usize {
        self.keys_by_order.iter().rposition(|&n| n > 0).map_or(0, |i| i + 1)
    }

    /// Tokens that no key may hold, ascending.
    #[must_use]
    pub fn reserved(&self) -> &[u32] {
        &self.reserved
    }

    /// Hash of the content: tokens, counts, documents, vocabulary size, reserved tokens; not the metadata.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Free-form JSON.
    #[must_use]
    pub fn metadata(&self) -> &str {
        &self.metadata
    }

    /// Replaces the metadata, which is not part of the content.
    #[must_use]
    pub fn with_metadata(mut self, metadata: String) -> Self {
        self.metadata = metadata;
        self.container = None;
        self
    }

    /// Where the set was opened, if it was.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.container.as_ref().map(|container| container.path.as_path())
    }

    /// Keys one after another, in row order.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Order of each key.
    #[must_use]
    pub fn lengths(&self) -> &[u8] {
        &self.lengths
    }

    /// Count of each key, descending.
    #[must_use]
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Number of documents with each key; all zero where they were not counted.
    #[must_use]
    pub fn documents(&self) -> &[u64] {
        &self.documents
    }

    /// The key of `row`.
    ///
    /// # Errors
    /// [`Error::Argument`] past the last row, [`Error::Format`] in a damaged file.
    pub fn key(&self, row: RowId) -> Result<&[u32]> {
        let row = usize_of(row.0);
        if row >= self.len() {
            let last = self.len();
            return Err(Error::argument(format!("row: expected less than {last} (the number of keys), got {row}")));
        }
        let start = self.token_offset(row);
        let end = start.saturating_add(usize::from(self.lengths[row]));
        self.tokens.get(start..end).ok_or_else(|| self.damaged("a key's tokens lie outside the token section"))
    }

    /// Offset of the first token of `row` (`row <= len`).
    #[must_use]
    pub fn token_offset(&self, row: usize) -> usize {
        let mark = row / MARK_ROWS;
        let Some(&base) = self.marks.get(mark) else { return self.tokens.len() };
        let within: usize = self.lengths[mark * MARK_ROWS..row].iter().map(|&n| usize::from(n)).sum();
        usize_of_u64(base).saturating_add(within)
    }

    /// All keys in row order.
    pub fn iter(&self) -> impl Iterator<Item = &[u32]> {
        let mut at = 0usize;
        self.lengths.iter().map(move |&n| {
            let start = at.min(self.tokens.len());
            at = (start + usize::from(n)).min(self.tokens.len());
            &self.tokens[start..at]
        })
    }

    /// Where each key starts in [`Self::tokens`], and the end.
    ///
    /// # Errors
    /// [`Error::Format`] for lengths, tokens or counts that no key set has, as a damaged file can hold.
    pub(crate) fn checked_offsets(&self) -> Result<Vec<usize>> {
        let mut at = 0;
        let ends = self.lengths.iter().map(|&len| {
            at += usize::from(len);
            at
        });
        let offsets: Vec<usize> = std::iter::once(0).chain(ends).collect();
        let lengths = 1..=self.max_order();
        if self.lengths.iter().any(|&len| !lengths.contains(&usize::from(len))) || at != self.tokens.len() {
            return Err(self.damaged("the lengths of the keys do not match their tokens"));
        }
        if self.tokens.iter().fold(0, |a, &b| a.max(b)) >= self.vocab_size && !self.tokens.is_empty() {
            return Err(self.damaged("a token lies outside the vocabulary"));
        }
        if !self.counts.is_sorted_by(|a, b| a >= b) {
            return Err(self.damaged("a row has a higher count than the one before"));
        }
        Ok(offsets)
    }

    pub(crate) fn damaged(&self, what: &str) -> Error {
        let path = self.path().unwrap_or(Path::new("(memory)"));
        Error::format(path, format!("{what}: the file is damaged; run verify() and build it again"))
    }
}

/// The content hash: domain, sizes, reserved tokens, then the hash of each array.
fn content_fingerprint(vocab_size: u32, reserved: &[u32], arrays: [&[u8]; 4]) -> Result<Fingerprint> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"memgraft keyset v1");
    hasher.update(&vocab_size.to_le_bytes());
    hasher.update(&u64_of(reserved.len()).to_le_bytes());
    hasher.update(bytes_of(reserved));
    for array in arrays {
        hasher.update(&digest(array, default_threads())?.0);
    }
    Ok(Fingerprint(*hasher.finalize().as_bytes()))
}

#[cfg(test)]
mod tests;

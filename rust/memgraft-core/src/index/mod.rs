//! The index: built from a key set or opened, it answers what key ends at a position, and what key a row has.

mod file;
mod walk;

use std::path::{Path, PathBuf};

pub use file::Form;

use crate::automaton::{NO_ROW, Table, Trie, build};
use crate::canon::Canon;
use crate::fingerprint::Fingerprint;
use crate::format::{Container, Store};
use crate::ids::{MAX_ORDER, RowId, StateId, u64_of, usize_of};
use crate::keyset::KeySet;
use crate::{Error, Result};

/// Tokens to (row, order): the longest key that ends at each position.
#[derive(Debug, Clone)]
pub struct Index {
    canon: Canon,
    table: Table,
    /// The node of each row.
    nodes: Store<u32>,
    keys_by_order: [u64; MAX_ORDER],
    vocab_size: u32,
    keyset_fingerprint: Fingerprint,
    container: Option<Container>,
}

/// Sizes of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Number of keys.
    pub num_keys: u64,
    /// Bytes of the canonical sections: the keys with random access.
    pub canonical_bytes: u64,
    /// Bytes of the transition table.
    pub table_bytes: u64,
    /// Bytes of all sections.
    pub bytes: u64,
    /// Most lines a probe goes past its home line.
    pub max_spill: u32,
}

impl Index {
    /// Builds the index of `keys`; the same set gives the same bytes.
    ///
    /// # Errors
    /// [`Error::Limit`] for a set beyond the format, [`Error::Io`] without memory.
    pub fn build(keys: &KeySet) -> Result<Self> {
        let trie = Trie::new(keys)?;
        // The table first: what it is made with is gone before the rest needs memory.
        let table = build(&trie, keys.counts(), keys.vocab_size())?;
        let (canon, nodes) = Canon::new(&trie, keys)?;
        Ok(Self {
            canon,
            table,
            nodes: Store::from(nodes),
            keys_by_order: *keys.keys_by_order(),
            vocab_size: keys.vocab_size(),
            keyset_fingerprint: keys.fingerprint(),
            container: None,
        })
    }

    /// The key set it was built from, without metadata.
    ///
    /// # Errors
    /// [`Error::Format`] in a damaged file.
    pub fn key_set(&self) -> Result<KeySet> {
        let path = self.path().unwrap_or(Path::new("(memory)"));
        self.canon.key_set(self.keyset_fingerprint, path)
    }

    /// Where the index was opened.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.container.as_ref().map(|container| container.path.as_path())
    }

    /// Number of keys.
    #[must_use]
    pub fn num_keys(&self) -> usize {
        self.nodes.len()
    }

    /// Tokens are smaller than this.
    #[must_use]
    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    /// Length of the longest key.
    #[must_use]
    pub fn max_order(&self) -> usize {
        self.keys_by_order.iter().rposition(|&n| n > 0).map_or(0, |i| i + 1)
    }

    /// Number of keys of order 1..=16.
    #[must_use]
    pub fn keys_by_order(&self) -> &[u64; MAX_ORDER] {
        &self.keys_by_order
    }

    /// Hash of the content; states belong to it.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        content_fingerprint(self.keyset_fingerprint)
    }

    /// Content fingerprint of the key set.
    #[must_use]
    pub fn keyset_fingerprint(&self) -> Fingerprint {
        self.keyset_fingerprint
    }

    fn node(&self, row: RowId) -> Result<u32> {
        self.nodes.get(usize_of(row.0)).copied().ok_or_else(|| {
            let message = format!("row: expected less than {} (the number of keys), got {}", self.num_keys(), row.0);
            Error::argument(message)
        })
    }

    /// The key of `row`.
    ///
    /// # Errors
    /// [`Error::Argument`] past the last row, [`Error::Format`] in a damaged file.
    pub fn key(&self, row: RowId) -> Result<Vec<u32>> {
        self.canon.key(self.node(row)?).ok_or_else(|| self.damaged())
    }

    /// The count of `row`.
    ///
    /// # Errors
    /// As [`Index::key`].
    pub fn count(&self, row: RowId) -> Result<u64> {
        self.canon.count(self.node(row)?).ok_or_else(|| self.damaged())
    }

    /// The number of documents with the key of `row`; 0 where they were not counted.
    ///
    /// # Errors
    /// As [`Index::key`].
    pub fn documents(&self, row: RowId) -> Result<u64> {
        self.canon.documents(self.node(row)?).ok_or_else(|| self.damaged())
    }

    /// The row of exactly `tokens`, if it is a key.
    ///
    /// # Errors
    /// [`Error::Format`] in a damaged file.
    pub fn find(&self, tokens: &[u32]) -> Result<Option<RowId>> {
        if tokens.is_empty() || tokens.len() > self.max_order() || tokens.iter().any(|&t| t >= self.vocab_size()) {
            return Ok(None);
        }
        let mut state = StateId::START;
        let mut last = None;
        for &token in tokens {
            let found = self.table.step(state, token).ok_or_else(|| self.damaged())?;
            state = found.state;
            last = Some(found);
        }
        if last.is_some_and(|found| !self.limits().allow(found)) {
            return Err(self.damaged());
        }
        let whole = last.filter(|found| usize::from(found.order) == tokens.len() && found.row != NO_ROW);
        Ok(whole.map(|found| RowId(found.row)))
    }

    /// Sizes.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let table_bytes = u64_of(size_of_val(self.table.words()));
        let canonical_bytes: u64 = self.canon.sections().iter().map(|section| u64_of(section.bytes.len())).sum();
        Stats {
            num_keys: u64_of(self.num_keys()),
            canonical_bytes,
            table_bytes,
            bytes: canonical_bytes + table_bytes + u64_of(size_of_val(&*self.nodes)),
            max_spill: self.table.max_spill(),
        }
    }

    pub(crate) fn damaged(&self) -> Error {
        let path = self.path().map_or_else(|| PathBuf::from("(memory)"), Path::to_path_buf);
        Error::format(path, "its sections contradict themselves: run verify() and build the index again")
    }
}

/// States and answers follow from the key set and the version of the layout alone.
fn content_fingerprint(keyset: Fingerprint) -> Fingerprint {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"memgraft index v1");
    hasher.update(&keyset.0);
    Fingerprint(*hasher.finalize().as_bytes())
}

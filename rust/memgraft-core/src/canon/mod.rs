//! The canonical sections of an index: the prefixes of all keys level by
//! level, counts and document frequencies, compressed. Rows follow from them
//! (descending count, ties by key), so does everything else in the file.

#![forbid(unsafe_code)]

mod elias_fano;
mod nibbles;

use elias_fano::EliasFano;
use nibbles::Nibbles;

use crate::automaton::{NO_ROW, Trie};
use crate::fingerprint::Fingerprint;
use crate::format::{Container, Section, Store, bytes_of};
use crate::ids::{MAX_ORDER, low_u32, saturating_u32, u64_of, usize_of};
use crate::keyset::{Arrays, KeySet};
use crate::{Error, Result};

const RESERVED: u32 = 6;
const LEVELS: u32 = 32;
const COUNTS: u32 = 64;
const DOCUMENTS: u32 = 65;

/// The compressed key set. A **node** is a prefix; nodes are numbered level by level.
#[derive(Debug, Clone)]
pub(crate) struct Canon {
    levels: Vec<EliasFano>,
    /// First node of each level, and the number of nodes.
    firsts: Vec<usize>,
    /// 0 for a node that is no key, else its count less `base`, plus 1.
    counts: Nibbles,
    base: u64,
    /// 0, or the zigzag difference of count and documents.
    documents: Option<Nibbles>,
    reserved: Store<u32>,
    vocab_size: u32,
}

/// Where the nodes of each level start, given the sizes of the levels.
fn firsts(sizes: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut firsts = vec![0];
    firsts.extend(sizes.scan(0, |sum, n| {
        *sum += n;
        Some(*sum)
    }));
    firsts
}

impl Canon {
    /// Compresses `trie`; also gives the node of each row.
    pub fn new(trie: &Trie, keys: &KeySet) -> Result<(Self, Vec<u32>)> {
        let vocab = u64::from(keys.vocab_size());
        let base = keys.counts().last().copied().unwrap_or(0);
        let mut levels = Vec::with_capacity(trie.levels.len());
        let mut above = 1u64;
        for level in &trie.levels {
            let pairs = level.parent.iter().zip(&level.token);
            let values = pairs.map(|(&parent, &token)| u64::from(parent) * vocab + u64::from(token));
            levels.push(decoded(EliasFano::new(Store::from(EliasFano::encode(values, above * vocab))))?);
            above = u64_of(level.len());
        }
        let firsts = firsts(trie.levels.iter().map(|level| level.len()));
        crate::ids::fit_u32(firsts[trie.levels.len()], "prefixes of all keys")?;
        let mut nodes = vec![0u32; keys.len()];
        for (level, &first) in trie.levels.iter().zip(&firsts) {
            for (rank, &row) in level.row.iter().enumerate().filter(|&(_, &row)| row != NO_ROW) {
                nodes[usize_of(row)] = saturating_u32(first + rank);
            }
        }
        let rows = || trie.levels.iter().flat_map(|level| level.row.iter().copied());
        let count = |row: u32| keys.counts()[usize_of(row)];
        let counts = rows().map(|row| if row == NO_ROW { 0 } else { count(row) - base + 1 });
        let difference = |row: u32| zigzag(count(row).wrapping_sub(keys.documents()[usize_of(row)]));
        let documents = keys
            .documents()
            .iter()
            .any(|&n| n != 0)
            .then(|| Nibbles::encode(rows().map(|row| if row == NO_ROW { 0 } else { difference(row) })));
        let canon = Self {
            levels,
            firsts,
            counts: decoded(Nibbles::new(Store::from(Nibbles::encode(counts))))?,
            base,
            documents: documents.map(|words| decoded(Nibbles::new(Store::from(words)))).transpose()?,
            reserved: Store::from(keys.reserved().to_vec()),
            vocab_size: keys.vocab_size(),
        };
        Ok((canon, nodes))
    }

    /// The sections to write.
    pub fn sections(&self) -> Vec<Section<'_>> {
        let section = |tag, bytes| Section { tag, alignment: 64, bytes };
        let mut out = vec![section(RESERVED, bytes_of(&self.reserved))];
        for (tag, level) in (LEVELS + 1..).zip(&self.levels) {
            out.push(section(tag, bytes_of(level.words())));
        }
        out.push(section(COUNTS, bytes_of(self.counts.words())));
        if let Some(documents) = &self.documents {
            out.push(section(DOCUMENTS, bytes_of(documents.words())));
        }
        out
    }

    /// The smallest count, for the header.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Opens the sections; O(levels).
    pub fn open(container: &Container, base: u64) -> Result<Self> {
        let header = &container.header;
        let bad = |what: String| Error::format(&container.path, what);
        let mut levels = Vec::new();
        for order in 1..=header.max_order {
            let words = container.section(LEVELS + order, "level")?;
            let level = EliasFano::new(words).ok_or_else(|| bad(format!("level {order} contradicts itself")))?;
            levels.push(level);
        }
        let firsts = firsts(levels.iter().map(EliasFano::len));
        let nodes = firsts[levels.len()];
        let numbers = |tag, name: &str| {
            let coded = Nibbles::new(container.section(tag, name)?).filter(|coded| coded.len() == nodes);
            coded.ok_or_else(|| bad(format!("section {name} does not have one number for each of {nodes} prefixes")))
        };
        let counts = numbers(COUNTS, "counts")?;
        let documents = container.entry(DOCUMENTS).map(|_| numbers(DOCUMENTS, "documents")).transpose()?;
        let reserved = container.section(RESERVED, "reserved")?;
        if nodes > usize_of(u32::MAX) {
            return Err(bad(format!("{nodes} prefixes do not fit 32 bits")));
        }
        Ok(Self { levels, firsts, counts, base, documents, reserved, vocab_size: header.vocab_size })
    }

    /// The key that ends at `node`; `None` in damaged sections.
    pub fn key(&self, node: u32) -> Option<Vec<u32>> {
        let node = usize_of(node);
        let depth = self.firsts.partition_point(|&first| first <= node).checked_sub(1)?;
        let mut rank = node - self.firsts[depth];
        let mut key = vec![0; depth + 1];
        for at in (0..=depth).rev() {
            let value = self.levels.get(at)?.get(rank)?;
            key[at] = low_u32(value % u64::from(self.vocab_size));
            rank = crate::ids::usize_of_u64(value / u64::from(self.vocab_size));
        }
        Some(key)
    }

    /// The count of the key at `node`; `None` for no key and in damaged sections.
    pub fn count(&self, node: u32) -> Option<u64> {
        self.counts.get(usize_of(node))?.checked_sub(1)?.checked_add(self.base)
    }

    /// The documents with the key at `node`; 0 where they were not counted.
    pub fn documents(&self, node: u32) -> Option<u64> {
        let Some(documents) = &self.documents else { return Some(0) };
        Some(self.count(node)?.wrapping_sub(unzigzag(documents.get(usize_of(node))?)))
    }

    /// The key set, sorted and checked anew.
    ///
    /// # Errors
    /// [`Error::Format`] if it is not the set with the fingerprint `expected`.
    pub fn key_set(&self, expected: Fingerprint, path: &std::path::Path) -> Result<KeySet> {
        let bad = |what: &str| Error::format(path, format!("{what}: the file is damaged; copy or build it again"));
        let vocab = u64::from(self.vocab_size);
        let mut tries: Vec<(Vec<u32>, Vec<u32>)> = Vec::with_capacity(self.levels.len());
        let (mut tokens, mut offsets, mut counts, mut documents) = (Vec::new(), vec![0u64], Vec::new(), Vec::new());
        let mut coded = self.counts.iter();
        let mut differences = self.documents.as_ref().map(Nibbles::iter);
        let mut key = [0u32; MAX_ORDER];
        for (depth, level) in self.levels.iter().enumerate() {
            let above = depth.checked_sub(1).map_or(1, |up| tries[up].1.len());
            let pairs = level.iter().map(|value| (low_u32(value / vocab), low_u32(value % vocab)));
            tries.push(pairs.unzip());
            let (parents, last) = &tries[depth];
            if last.len() != level.len() || parents.iter().any(|&parent| usize_of(parent) >= above) {
                return Err(bad("the levels contradict each other"));
            }
            for rank in 0..level.len() {
                let value = coded.next().ok_or_else(|| bad("the counts end early"))?;
                let difference = match &mut differences {
                    Some(differences) => differences.next().ok_or_else(|| bad("the documents end early"))?,
                    None => 0,
                };
                let Some(above_base) = value.checked_sub(1) else { continue };
                let mut at = rank;
                for up in (0..=depth).rev() {
                    key[up] = tries[up].1[at];
                    at = usize_of(tries[up].0[at]);
                }
                tokens.extend_from_slice(&key[..=depth]);
                offsets.push(u64_of(tokens.len()));
                let count = above_base.checked_add(self.base).ok_or_else(|| bad("a count overflows"))?;
                counts.push(count);
                documents.push(if differences.is_some() { count.wrapping_sub(unzigzag(difference)) } else { 0 });
            }
        }
        drop(tries);
        let arrays = Arrays { tokens: &tokens, offsets: &offsets, counts: &counts, documents: Some(&documents) };
        let keys = KeySet::from_arrays(arrays, self.vocab_size, &self.reserved, String::new())
            .map_err(|e| bad(&e.to_string()))?;
        if keys.fingerprint() != expected {
            let found = keys.fingerprint();
            return Err(bad(&format!("expected the key set {expected}, got {found}")));
        }
        Ok(keys)
    }
}

/// Small for small differences of either sign.
fn zigzag(difference: u64) -> u64 {
    difference << 1 ^ if difference >> 63 == 1 { u64::MAX } else { 0 }
}

fn unzigzag(coded: u64) -> u64 {
    coded >> 1 ^ if coded & 1 == 1 { u64::MAX } else { 0 }
}

/// What was just encoded decodes; an error here is a bug, reported instead of a panic.
fn decoded<T>(coded: Option<T>) -> Result<T> {
    coded.ok_or_else(|| Error::argument("canonical sections: the encoder contradicts itself; please report this"))
}

//! The canonical sections of an index: the prefixes of all keys level by
//! level, counts and document frequencies, compressed. Rows follow from them
//! (descending count, ties by key), so does everything else in the file.

mod elias_fano;
mod nibbles;
mod packed;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use elias_fano::EliasFano;
use nibbles::Nibbles;
use packed::{Pairs, pack_level, pack_numbers, unpack_level, unpack_numbers};

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
const PACKED_COUNTS: u32 = 128;
const PACKED_DOCUMENTS: u32 = 129;
const PACKED_LEVELS: u32 = 160;

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

/// Nodes whose numbers are read at once.
const READ_AHEAD: usize = 256;

/// `number(row)` of each node, 0 for one that is no key.
///
/// Rows lie anywhere: reading them is fast only many at a time, before anything branches on what was read.
fn numbers(trie: &Trie, number: impl Fn(usize) -> u64) -> impl Iterator<Item = u64> {
    let chunks = trie.levels.iter().flat_map(|level| level.row.chunks(READ_AHEAD));
    chunks.flat_map(move |rows| {
        let mut read = [0; READ_AHEAD];
        for (number_of_node, &row) in read.iter_mut().zip(rows) {
            *number_of_node = if row == NO_ROW { 0 } else { number(usize_of(row)) };
        }
        read.into_iter().take(rows.len())
    })
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
        for (depth, level) in trie.levels.iter().enumerate() {
            let values = trie.pairs(depth).map(|(parent, token)| u64::from(parent) * vocab + u64::from(token));
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
        let (by_row, documents) = (keys.counts(), keys.documents());
        let counts = numbers(trie, |row: usize| by_row[row] - base + 1);
        let difference = |row: usize| zigzag(by_row[row].wrapping_sub(documents[row]));
        let documents = documents.iter().any(|&n| n != 0).then(|| Nibbles::encode(numbers(trie, difference)));
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

    /// The section that both forms write alike.
    pub fn reserved_section(&self) -> Section<'_> {
        Section { tag: RESERVED, alignment: 64, bytes: bytes_of(&self.reserved) }
    }

    /// The sections of the fast form.
    pub fn sections(&self) -> Vec<Section<'_>> {
        let section = |tag, bytes| Section { tag, alignment: 64, bytes };
        let mut out = vec![self.reserved_section()];
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
    pub fn key_set(&self, expected: Fingerprint, path: &Path) -> Result<KeySet> {
        let vocab = u64::from(self.vocab_size);
        let pairs = |value| (low_u32(value / vocab), low_u32(value % vocab));
        let mut levels = Vec::with_capacity(self.levels.len());
        for level in &self.levels {
            let read: Pairs = level.iter().map(pairs).unzip();
            let above = levels.last().map_or(1, |(_, tokens): &Pairs| tokens.len());
            if read.1.len() != level.len() || read.0.iter().any(|&parent| usize_of(parent) >= above) {
                return Err(damaged(path, "the levels contradict each other"));
            }
            levels.push(read);
        }
        let documents = self.documents.as_ref().map(|documents| documents.iter());
        let parts = Parts { levels, base: self.base, reserved: &self.reserved, vocab_size: self.vocab_size };
        parts.key_set(self.counts.iter(), documents, expected, path)
    }

    /// The sections of the archive form: tag and bytes.
    ///
    /// # Errors
    /// Those of the encoder.
    pub fn packed_sections(&self, threads: usize) -> std::io::Result<Vec<(u32, Vec<u8>)>> {
        let vocab = u64::from(self.vocab_size);
        let pack = |i: usize| match (i, &self.documents) {
            (0, _) => pack_numbers(self.counts.iter()).map(|bytes| (PACKED_COUNTS, bytes)),
            (1, Some(documents)) => pack_numbers(documents.iter()).map(|bytes| (PACKED_DOCUMENTS, bytes)),
            _ => {
                let order = i - usize::from(self.documents.is_some());
                let pairs = self.levels[order - 1].iter().map(|value| (low_u32(value / vocab), low_u32(value % vocab)));
                let above = order.checked_sub(2).map_or(1, |up| self.levels[up].len());
                let bytes = pack_level(pairs, above, self.vocab_size)?;
                Ok((PACKED_LEVELS + saturating_u32(order), bytes))
            }
        };
        let num_sections = self.levels.len() + 1 + usize::from(self.documents.is_some());
        let next = AtomicUsize::new(0);
        let work = |_| -> std::io::Result<Vec<(u32, Vec<u8>)>> {
            let claims =
                std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&i| i < num_sections));
            claims.map(pack).collect()
        };
        let done = crate::threads::run(threads.min(num_sections), work);
        let mut sections = done.into_iter().collect::<std::io::Result<Vec<_>>>()?.concat();
        sections.sort_unstable_by_key(|&(tag, _)| tag);
        Ok(sections)
    }
}

/// The key set of an archive that holds packed sections; `None` for one of format 1.0, whose sections [`Canon::open`]
/// reads.
///
/// # Errors
/// [`Error::Format`] where the sections are damaged or missing.
pub(crate) fn unpack(container: &Container, base: u64) -> Result<Option<KeySet>> {
    let (header, path) = (&container.header, &container.path);
    if container.entry(PACKED_COUNTS).is_none() {
        return Ok(None);
    }
    let mut levels: Vec<Pairs> = Vec::new();
    for order in 1..=header.max_order {
        let bytes: Store<u8> = container.section(PACKED_LEVELS + order, "packed level")?;
        let above = levels.last().map_or(1, |(_, tokens)| tokens.len());
        // Every prefix of n tokens belongs to a key of at least n.
        let most = header.keys_by_order[usize_of(order) - 1..].iter().fold(0, |sum: u64, &n| sum.saturating_add(n));
        let level = unpack_level(&bytes, above, header.vocab_size, most);
        levels.push(level.ok_or_else(|| damaged(path, &format!("level {order} contradicts itself")))?);
    }
    let nodes = levels.iter().map(|(_, tokens)| tokens.len()).sum();
    let numbers = |tag, name: &str| {
        let bytes: Store<u8> = container.section(tag, name)?;
        unpack_numbers(&bytes, nodes).ok_or_else(|| damaged(path, &format!("section {name} contradicts itself")))
    };
    let counts = numbers(PACKED_COUNTS, "packed counts")?;
    let documents = container.entry(PACKED_DOCUMENTS).map(|_| numbers(PACKED_DOCUMENTS, "packed documents"));
    let documents = documents.transpose()?.map(Vec::into_iter);
    let reserved: Store<u32> = container.section(RESERVED, "reserved")?;
    let parts = Parts { levels, base, reserved: &reserved, vocab_size: header.vocab_size };
    parts.key_set(counts.into_iter(), documents, header.keyset_fingerprint, path).map(Some)
}

/// The canonical sections as read, but for counts and documents.
struct Parts<'a> {
    levels: Vec<Pairs>,
    base: u64,
    reserved: &'a [u32],
    vocab_size: u32,
}

impl Parts<'_> {
    /// The key set; `counts` and `documents` are coded as in [`Canon`], one number a node.
    fn key_set(
        self,
        mut counts: impl Iterator<Item = u64>,
        mut documents: Option<impl Iterator<Item = u64>>,
        expected: Fingerprint,
        path: &Path,
    ) -> Result<KeySet> {
        let (mut tokens, mut offsets) = (Vec::new(), vec![0u64]);
        let (mut key_counts, mut key_documents) = (Vec::new(), Vec::new());
        let mut key = [0u32; MAX_ORDER];
        for (depth, (_, last)) in self.levels.iter().enumerate() {
            for rank in 0..last.len() {
                let value = counts.next().ok_or_else(|| damaged(path, "the counts end early"))?;
                let difference = match &mut documents {
                    Some(documents) => Some(documents.next().ok_or_else(|| damaged(path, "the documents end early"))?),
                    None => None,
                };
                let Some(above_base) = value.checked_sub(1) else { continue };
                let mut at = rank;
                for up in (0..=depth).rev() {
                    let (parents, last) = &self.levels[up];
                    key[up] = last[at];
                    at = usize_of(parents[at]);
                }
                tokens.extend_from_slice(&key[..=depth]);
                offsets.push(u64_of(tokens.len()));
                let count = above_base.checked_add(self.base).ok_or_else(|| damaged(path, "a count overflows"))?;
                key_counts.push(count);
                key_documents.push(difference.map_or(0, |difference| count.wrapping_sub(unzigzag(difference))));
            }
        }
        drop(self.levels);
        let documents = Some(key_documents.as_slice());
        let arrays = Arrays { tokens: &tokens, offsets: &offsets, counts: &key_counts, documents };
        let keys = KeySet::from_arrays(arrays, self.vocab_size, self.reserved, String::new())
            .map_err(|e| if matches!(e, Error::Interrupted) { e } else { damaged(path, &e.to_string()) })?;
        if keys.fingerprint() != expected {
            let found = keys.fingerprint();
            return Err(damaged(path, &format!("expected the key set {expected}, got {found}")));
        }
        Ok(keys)
    }
}

fn damaged(path: &Path, what: &str) -> Error {
    Error::format(path, format!("{what}: the file is damaged; copy or build it again"))
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

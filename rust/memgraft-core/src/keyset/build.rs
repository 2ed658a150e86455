//! From arrays in any order to a checked key set.

use super::sort::{by_descending_count, lexicographic};
use super::{KeySet, MARK_ROWS, content_fingerprint};
use crate::format::{Store, bytes_of};
use crate::ids::{
    MAX_KEYS, MAX_ORDER, RowId, check_vocab_size, low_u8, saturating_u32, u64_of, usize_of, usize_of_u64,
};
use crate::{Error, Result, stop};

/// Keys as flat arrays, in any order.
#[derive(Debug, Clone, Copy)]
pub struct Arrays<'a> {
    /// All keys' tokens one after another.
    pub tokens: &'a [u32],
    /// Where each key starts in `tokens`, and one end: `num_keys + 1` ascending offsets from 0.
    pub offsets: &'a [u64],
    /// Occurrences of each key.
    pub counts: &'a [u64],
    /// Documents with each key, if counted.
    pub documents: Option<&'a [u64]>,
}

impl<'a> Arrays<'a> {
    fn key(&self, i: u32) -> &'a [u32] {
        let i = usize_of(i);
        &self.tokens[usize_of_u64(self.offsets[i])..usize_of_u64(self.offsets[i + 1])]
    }

    fn check(&self, vocab_size: u32, reserved: &[u32]) -> Result<u32> {
        let num_keys = self.offsets.len().checked_sub(1).ok_or_else(|| {
            Error::argument("offsets: expected one more element than there are keys, got an empty array")
        })?;
        if u64_of(num_keys) > MAX_KEYS {
            let message = format!("keys: at most {MAX_KEYS}, got {num_keys}; split the set into several banks");
            return Err(Error::Limit { message });
        }
        for (name, len) in [("counts", self.counts.len()), ("documents", self.documents.map_or(num_keys, <[u64]>::len))]
        {
            if len != num_keys {
                return Err(Error::argument(format!("{name}: expected {num_keys} elements, one a key, got {len}")));
            }
        }
        let bounds = (self.offsets[0], self.offsets[num_keys]);
        if bounds != (0, u64_of(self.tokens.len())) {
            let (first, last) = bounds;
            let total = self.tokens.len();
            return Err(Error::argument(format!("offsets: expected to run from 0 to {total}, got {first} to {last}")));
        }
        // Before any key is sliced: offsets ascend, and each key has 1 to 16 tokens.
        for (i, pair) in self.offsets.windows(2).enumerate() {
            if pair[1] < pair[0] || pair[1] > u64_of(self.tokens.len()) {
                return Err(Error::argument(format!(
                    "offsets: expected ascending offsets, got {} then {} at {i}",
                    pair[0], pair[1]
                )));
            }
            let len = pair[1] - pair[0];
            if len == 0 || len > u64_of(MAX_ORDER) {
                let what = "expected 1 to 16 tokens";
                return Err(Error::keyset(format!("key {i}: {what}, got {len}; filter such keys out")));
            }
        }
        for (name, values) in [("counts", self.counts), ("documents", self.documents.unwrap_or_default())] {
            if let Some(at) = values.iter().position(|&value| value >> 63 != 0) {
                return Err(Error::argument(format!("{name}[{at}]: expected less than 2^63, got {}", values[at])));
            }
        }
        let is_reserved = |token: u32| reserved.binary_search(&token).is_ok();
        let fine = |&token: &u32| token < vocab_size && (reserved.is_empty() || !is_reserved(token));
        if self.tokens.iter().all(fine) {
            return Ok(saturating_u32(num_keys));
        }
        for i in 0..saturating_u32(num_keys) {
            let key = self.key(i);
            if let Some(token) = key.iter().find(|&&token| token >= vocab_size) {
                let message = format!(
                    "key {i} {}: token {token} lies outside the vocabulary of {vocab_size}; \
                     pass the vocab_size of the tokenizer that made the keys",
                    show(key)
                );
                return Err(Error::Token { message });
            }
            if let Some(token) = key.iter().find(|&&token| is_reserved(token)) {
                let shown = show(key);
                return Err(Error::keyset(format!("key {i} {shown} holds the reserved token {token}; filter it out")));
            }
        }
        Ok(saturating_u32(num_keys))
    }
}

/// A key as a Python tuple.
pub(super) fn show(key: &[u32]) -> String {
    let tokens: Vec<String> = key.iter().map(u32::to_string).collect();
    format!("({}{})", tokens.join(", "), if key.len() == 1 { "," } else { "" })
}

impl KeySet {
    /// Sorts and checks `arrays`.
    ///
    /// # Errors
    /// [`Error::KeySet`] for a duplicate, empty, too long or reserved key, [`Error::Token`] for
    /// a token outside the vocabulary, [`Error::Argument`] for arrays that do not fit together,
    /// [`Error::Limit`] beyond 2^31 - 1 keys, [`Error::Interrupted`] where the caller has asked the work to end.
    pub fn from_arrays(arrays: Arrays<'_>, vocab_size: u32, reserved: &[u32], metadata: String) -> Result<Self> {
        check_vocab_size(vocab_size)?;
        let mut reserved = reserved.to_vec();
        reserved.sort_unstable();
        reserved.dedup();
        if let Some(token) = reserved.last().filter(|&&token| token >= vocab_size) {
            let message = format!("reserved: token {token} lies outside the vocabulary of {vocab_size}");
            return Err(Error::Token { message });
        }
        let num_keys = arrays.check(vocab_size, &reserved)?;
        let mut order = Vec::with_capacity(usize_of(num_keys));
        lexicographic(num_keys, vocab_size, |i| arrays.key(i), |i, _| order.push(i))?;
        if let Some(pair) = order.windows(2).find(|pair| arrays.key(pair[0]) == arrays.key(pair[1])) {
            let shown = show(arrays.key(pair[0]));
            let (a, b) = (pair[0].min(pair[1]), pair[0].max(pair[1]));
            return Err(Error::keyset(format!("keys {a} and {b} are both {shown}; merge their counts first")));
        }
        stop::check()?;
        by_descending_count(&mut order, |i| arrays.counts[usize_of(i)])?;
        Self::gather(&arrays, &order, vocab_size, reserved, metadata)
    }

    /// The subset of the given `rows` (ascending, distinct), renumbered in the same relative order.
    ///
    /// # Errors
    /// [`Error::Argument`] for a row past the end or out of order.
    pub fn select(&self, rows: &[u32]) -> Result<Self> {
        if let Some(pair) = rows.windows(2).find(|pair| pair[0] >= pair[1]) {
            let (a, b) = (pair[0], pair[1]);
            return Err(Error::argument(format!("rows: expected ascending and distinct rows, got {a} then {b}")));
        }
        let mut offsets = Vec::with_capacity(rows.len() + 1);
        let mut tokens = Vec::new();
        let mut counts = Vec::with_capacity(rows.len());
        let mut documents = Vec::with_capacity(rows.len());
        offsets.push(0);
        for &row in rows {
            tokens.extend_from_slice(self.key(RowId(row))?);
            offsets.push(u64_of(tokens.len()));
            counts.push(self.counts[usize_of(row)]);
            documents.push(self.documents[usize_of(row)]);
        }
        let arrays = Arrays { tokens: &tokens, offsets: &offsets, counts: &counts, documents: Some(&documents) };
        let order: Vec<u32> = (0..saturating_u32(rows.len())).collect();
        Self::gather(&arrays, &order, self.vocab_size, self.reserved.clone(), self.metadata.clone())
    }

    /// Copies the keys in `order`, which is known to be row order.
    fn gather(
        arrays: &Arrays<'_>,
        order: &[u32],
        vocab_size: u32,
        reserved: Vec<u32>,
        metadata: String,
    ) -> Result<Self> {
        let mut rows = RowBuilder::with_capacity(order.len(), vocab_size, reserved);
        rows.tokens.reserve(arrays.tokens.len());
        for (turn, &i) in (0..).zip(order) {
            stop::check_at(turn)?;
            let documents = arrays.documents.map_or(0, |documents| documents[usize_of(i)]);
            rows.append(arrays.key(i).iter().copied(), arrays.counts[usize_of(i)], documents);
        }
        rows.finish(metadata)
    }
}

/// Makes a key set of keys that come in row order.
pub(crate) struct RowBuilder {
    tokens: Vec<u32>,
    lengths: Vec<u8>,
    marks: Vec<u64>,
    counts: Vec<u64>,
    documents: Vec<u64>,
    keys_by_order: [u64; MAX_ORDER],
    vocab_size: u32,
    reserved: Vec<u32>,
}

impl RowBuilder {
    /// A builder of `num_keys` keys.
    ///
    /// # Errors
    /// [`Error::Limit`] beyond 2^31 - 1 keys.
    pub(crate) fn new(num_keys: usize, vocab_size: u32, reserved: &[u32]) -> Result<Self> {
        if u64_of(num_keys) > MAX_KEYS {
            let message = format!("keys: at most {MAX_KEYS}, got {num_keys}; choose a smaller budget");
            return Err(Error::Limit { message });
        }
        let mut reserved = reserved.to_vec();
        reserved.sort_unstable();
        reserved.dedup();
        Ok(Self::with_capacity(num_keys, vocab_size, reserved))
    }

    fn with_capacity(num_keys: usize, vocab_size: u32, reserved: Vec<u32>) -> Self {
        Self {
            tokens: Vec::new(),
            lengths: Vec::with_capacity(num_keys),
            marks: Vec::with_capacity(num_keys.div_ceil(MARK_ROWS)),
            counts: Vec::with_capacity(num_keys),
            documents: Vec::with_capacity(num_keys),
            keys_by_order: [0; MAX_ORDER],
            vocab_size,
            reserved,
        }
    }

    /// Appends a key that comes after those appended so far.
    ///
    /// # Errors
    /// [`Error::KeySet`] for a key with a reserved token or one outside the vocabulary, [`Error::Limit`] for a count
    /// beyond 2^63 - 1.
    pub(crate) fn push(&mut self, key: impl Iterator<Item = u32>, count: u64, documents: u64) -> Result<()> {
        let start = self.tokens.len();
        self.append(key, count, documents);
        let key = &self.tokens[start..];
        if let Some(token) = key.iter().find(|&&t| t >= self.vocab_size || self.reserved.binary_search(&t).is_ok()) {
            return Err(Error::keyset(format!("key {} holds the token {token}, which no key may hold", show(key))));
        }
        if (count | documents) >> 63 != 0 {
            let message = format!("key {}: expected counts below 2^63, found {count} and {documents}", show(key));
            return Err(Error::Limit { message });
        }
        Ok(())
    }

    fn append(&mut self, key: impl Iterator<Item = u32>, count: u64, documents: u64) {
        let start = self.tokens.len();
        if self.lengths.len().is_multiple_of(MARK_ROWS) {
            self.marks.push(u64_of(start));
        }
        self.tokens.extend(key);
        let len = self.tokens.len() - start;
        self.lengths.push(low_u8(saturating_u32(len)));
        self.keys_by_order[len - 1] += 1;
        self.counts.push(count);
        self.documents.push(documents);
    }

    /// The key set.
    ///
    /// # Errors
    /// [`Error::Interrupted`] where the caller has asked the work to end.
    pub(crate) fn finish(self, metadata: String) -> Result<KeySet> {
        let arrays =
            [bytes_of(&self.tokens), bytes_of(&self.lengths), bytes_of(&self.counts), bytes_of(&self.documents)];
        let fingerprint = content_fingerprint(self.vocab_size, &self.reserved, arrays)?;
        Ok(KeySet {
            tokens: Store::from(self.tokens),
            lengths: Store::from(self.lengths),
            marks: Store::from(self.marks),
            counts: Store::from(self.counts),
            documents: Store::from(self.documents),
            reserved: self.reserved,
            vocab_size: self.vocab_size,
            keys_by_order: self.keys_by_order,
            fingerprint,
            metadata,
            container: None,
        })
    }
}

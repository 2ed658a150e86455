//! KenLM's way: one hashed table per order, read backwards from each position
//! until no longer n-gram is known. 64-bit hashes stand for the keys, unverified.

use memgraft_core::format::HugeBuffer;
use memgraft_core::keyset::KeySet;

use crate::Fallible;
use crate::memory::{mix, prefetch};

/// Words of an entry: the hash's two halves, the row + 1 (0: a suffix that is no key).
const ENTRY: usize = 3;
/// Slots per entry, KenLM's default.
const SPACE: f64 = 1.5;
/// Positions whose entries are asked for ahead.
const AHEAD: usize = 12;

/// `log2` of the bits that remember which n-grams occur in a text: some sixty for each of 2 M tokens' n-grams.
const SEEN_BITS: u32 = 30;

/// The tables, one per order.
#[derive(Debug)]
pub struct BackwardWalk {
    levels: Vec<Level>,
}

#[derive(Debug)]
struct Level {
    buffer: HugeBuffer,
    slots: u64,
}

/// The hash of a key's last n tokens from that of its last n-1: read right to left.
#[inline(always)]
fn extend(hash: u64, token: u32) -> u64 {
    (hash ^ (u64::from(token) + 1)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
}

/// What is stored: mixed, and never 0, which marks a free slot.
#[inline(always)]
fn stored(hash: u64) -> u64 {
    mix(hash) | 1
}

impl BackwardWalk {
    /// Every key and every suffix of a key, so that the walk may stop at the first one it does not find.
    ///
    /// # Errors
    /// The system refuses the memory.
    pub fn new(keys: &KeySet) -> Fallible<Self> {
        Self::of(keys, |_| true)
    }

    /// Only the keys that occur in `tokens`, which gives the same answers there in far less memory; a few others may
    /// be among them.
    ///
    /// # Errors
    /// The system refuses the memory.
    pub fn for_text(keys: &KeySet, tokens: &[u32]) -> Fallible<Self> {
        let mut seen = vec![0u64; 1 << (SEEN_BITS - 6)];
        for end in 1..=tokens.len() {
            let mut hash = 0;
            for &token in tokens[..end].iter().rev().take(keys.max_order()) {
                hash = extend(hash, token);
                let bit = mix(hash) >> (64 - SEEN_BITS);
                seen[(bit / 64) as usize] |= 1 << (bit % 64);
            }
        }
        Self::of(keys, |hash| {
            let bit = mix(hash) >> (64 - SEEN_BITS);
            seen[(bit / 64) as usize] >> (bit % 64) & 1 == 1
        })
    }

    /// The keys whose hash `takes` part, and their suffixes.
    fn of(keys: &KeySet, takes: impl Fn(u64) -> bool) -> Fallible<Self> {
        let takes = |key: &[u32]| takes(key.iter().rev().fold(0, |hash, &token| extend(hash, token)));
        let mut at_least = vec![0usize; keys.max_order()];
        for key in keys.iter().filter(|key| takes(key)) {
            at_least[..key.len()].iter_mut().for_each(|num| *num += 1);
        }
        let mut levels = Vec::with_capacity(keys.max_order());
        for num in at_least {
            let slots = ((num as f64 * SPACE) as u64).max(4);
            levels.push(Level { buffer: HugeBuffer::zeroed(slots as usize * ENTRY * 4)?, slots });
        }
        for (row, key) in keys.iter().enumerate().filter(|(_, key)| takes(key)) {
            let mut hash = 0;
            for (n, &token) in key.iter().rev().enumerate() {
                hash = extend(hash, token);
                let row = if n + 1 == key.len() { row as u32 + 1 } else { 0 };
                levels[n].insert(stored(hash), row);
            }
        }
        Ok(Self { levels })
    }

    /// Bytes of all tables.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.levels.iter().map(|level| level.slots * 4 * ENTRY as u64).sum()
    }

    /// The row of the longest key at each position, -1 where there is none; no segments.
    pub fn lookup<const PREFETCH: bool>(&mut self, tokens: &[u32], rows: &mut [i32]) {
        let levels: Vec<(&[u32], u64)> = self.levels.iter_mut().map(Level::parts).collect();
        for at in 0..tokens.len() {
            if PREFETCH && at + AHEAD < tokens.len() {
                let mut hash = 0;
                for (&(words, slots), &token) in levels.iter().zip(tokens[..=at + AHEAD].iter().rev()) {
                    hash = extend(hash, token);
                    prefetch(&words[slot(stored(hash), slots) * ENTRY]);
                }
            }
            let (mut hash, mut best) = (0, 0);
            for (&(words, slots), &token) in levels.iter().zip(tokens[..=at].iter().rev()) {
                hash = extend(hash, token);
                let Some(row) = find(words, slots, stored(hash)) else { break };
                best = if row == 0 { best } else { row };
            }
            rows[at] = best as i32 - 1;
        }
    }
}

#[inline(always)]
fn slot(hash: u64, slots: u64) -> usize {
    ((u128::from(hash) * u128::from(slots)) >> 64) as usize
}

#[inline(always)]
fn find(words: &[u32], slots: u64, hash: u64) -> Option<u32> {
    let mut at = slot(hash, slots);
    loop {
        let entry = &words[at * ENTRY..][..ENTRY];
        let held = u64::from(entry[0]) | u64::from(entry[1]) << 32;
        if held == hash {
            return Some(entry[2]);
        }
        if held == 0 {
            return None;
        }
        at = if at + 1 == slots as usize { 0 } else { at + 1 };
    }
}

impl Level {
    fn parts(&mut self) -> (&[u32], u64) {
        let slots = self.slots;
        (self.buffer.words_mut(), slots)
    }

    fn insert(&mut self, hash: u64, row: u32) {
        let slots = self.slots as usize;
        let words = self.buffer.words_mut();
        let mut at = slot(hash, slots as u64);
        loop {
            let entry = &mut words[at * ENTRY..][..ENTRY];
            let held = u64::from(entry[0]) | u64::from(entry[1]) << 32;
            if held == 0 || held == hash {
                (entry[0], entry[1]) = (hash as u32, (hash >> 32) as u32);
                entry[2] = entry[2].max(row);
                return;
            }
            at = if at + 1 == slots { 0 } else { at + 1 };
        }
    }
}

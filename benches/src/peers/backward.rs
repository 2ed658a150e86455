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
        let mut levels = Vec::with_capacity(keys.max_order());
        for order in 1..=keys.max_order() {
            let num = keys.lengths().iter().filter(|&&n| usize::from(n) >= order).count();
            let slots = ((num as f64 * SPACE) as u64).max(4);
            levels.push(Level { buffer: HugeBuffer::zeroed(slots as usize * ENTRY * 4)?, slots });
        }
        for (row, key) in keys.iter().enumerate() {
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

//! A sketch of the corpus that knows n-grams seen once, so that they need not be sorted.
//!
//! A slot counts to two. N-grams that share a slot are counted together, so a slot never counts too little: one that
//! stands at one belongs to a single occurrence of a single n-gram. Leaving that occurrence out takes exactly one from
//! the distinct n-grams and cannot touch a key that must occur twice. Keys that are required whatever their count are
//! kept by name.

use std::sync::atomic::{AtomicU64, Ordering};

use super::window::{Key, Orders, Packing};
use crate::ids::{low_u32, u64_of, usize_of_u64};

/// Slots of two bits in a word.
const SLOTS: u64 = 32;

/// Two bits for every slot.
pub(super) struct Sketch {
    words: Vec<AtomicU64>,
    /// Orders from the longest down; those of one token are never left out.
    orders: Vec<usize>,
}

impl Sketch {
    /// An empty sketch of about `bytes` for n-grams of `orders`.
    pub(super) fn new(bytes: u64, orders: impl Iterator<Item = usize>) -> Self {
        let num_words = usize_of_u64((bytes / 8).max(1));
        let mut orders: Vec<usize> = orders.filter(|&order| order > 1).collect();
        orders.sort_unstable_by(|a, b| b.cmp(a));
        Self { words: std::iter::repeat_with(AtomicU64::default).take(num_words).collect(), orders }
    }

    /// Counts the n-grams of all orders at the start of `key`.
    pub(super) fn add<const W: usize>(&self, packing: &Packing, key: &Key<W>) {
        let len = packing.len(key);
        for &order in self.orders.iter().filter(|&&order| order <= len) {
            let (word, bit) = self.slot(&packing.prefix(key, order));
            // The second of two threads sees what the first has set, so two always leave a two.
            if self.words[word].fetch_or(bit, Ordering::Relaxed) & bit != 0 {
                self.words[word].fetch_or(bit << 1, Ordering::Relaxed);
            }
        }
    }

    /// Never leaves out `key`, however often it occurs.
    pub(super) fn keep<const W: usize>(&self, key: &Key<W>) {
        let (word, bit) = self.slot(key);
        self.words[word].fetch_or(bit | bit << 1, Ordering::Relaxed);
    }

    /// `key` cut to the longest order that may occur twice; counts the n-grams left out by order.
    pub(super) fn shorten<const W: usize>(&self, packing: &Packing, key: &Key<W>, dropped: &mut Orders) -> Key<W> {
        let len = packing.len(key);
        let mut any = false;
        for &order in self.orders.iter().filter(|&&order| order <= len) {
            let prefix = packing.prefix(key, order);
            let (word, bit) = self.slot(&prefix);
            if self.words[word].load(Ordering::Relaxed) & (bit << 1) != 0 {
                return if any { prefix } else { *key };
            }
            dropped[order] += 1;
            any = true;
        }
        if any { packing.prefix(key, 1) } else { *key }
    }

    fn slot<const W: usize>(&self, key: &Key<W>) -> (usize, u64) {
        let mut hash = 0u64;
        for word in key {
            hash = (hash.rotate_left(25) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            hash ^= hash >> 29;
        }
        hash = (hash ^ (hash >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        hash ^= hash >> 32;
        let slot = (u128::from(hash) * u128::from(u64_of(self.words.len()) * SLOTS)) >> 64;
        let slot = u64::try_from(slot).unwrap_or(0);
        (usize_of_u64(slot / SLOTS), 1 << (2 * low_u32(slot % SLOTS)))
    }
}

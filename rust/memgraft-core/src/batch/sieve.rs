//! Where the keys of an overlay can end: tests of bits that spare it nearly all positions of a text that it is not for.
//!
//! Two tests, the second of what passes the first: **sift** asks for every position whether some key may end with its last
//! tokens (one word of memory a position, no branch); **weigh** asks how long a whole key may be. A position that ends a
//! key passes both, whatever else does; [`super::sifting`] reads the rest with the index.

#![forbid(unsafe_code)]

use std::hint::select_unpredictable;

use crate::ids::{MAX_ORDER, low_u8, usize_of, usize_of_u64};

/// More keys than this get no sieve: it would take more than 32 MB.
pub(crate) const MAX_SIEVED_KEYS: usize = 1 << 22;
/// Positions sifted at once; what they need stays in the first cache.
pub(super) const BLOCK: usize = 1 << 11;
/// Tokens before a block that its keys may have.
pub(super) const LEAD: usize = MAX_ORDER - 1;
/// Odd multipliers: fractional parts of square roots of primes.
const LAST: u32 = 0x6A09_E667;
const PREVIOUS: u32 = 0xBB67_AE85;
const BEFORE: u32 = 0x3C6E_F373;
const PAIR: u32 = 0xA54F_F53B;
const WHOLE: u64 = 0x510E_527F_9B05_688D;

/// What tells that no key of a small index ends at a position.
#[derive(Debug)]
pub(crate) struct Sieve {
    /// By the hash of the last two tokens: a bit for a key of these two, and for longer keys one of the token before them.
    ends: Box<[u32]>,
    ends_shift: u32,
    /// Three bits a key in one word, by the hash of all its tokens.
    keys: Box<[u64]>,
    keys_shift: u32,
    /// A bit for each token that is a key by itself; empty where none is.
    singles: Box<[u32]>,
    /// Bit *n* says whether there are keys of *n* tokens.
    orders: u32,
}

/// Room to sift a block in.
#[derive(Debug)]
pub(super) struct Room {
    /// Tokens of the block, those before it first.
    pub words: [u32; LEAD + BLOCK],
    codes: [u32; BLOCK],
    /// Whether the test of a place is passed, 0 or 1.
    passed: [u8; BLOCK],
    /// Places in the block that passed the test of the step before, and the longest key that each may end.
    pub places: [u32; BLOCK],
    pub longest: [u32; BLOCK],
}

impl Default for Room {
    fn default() -> Self {
        Self {
            words: [0; LEAD + BLOCK],
            codes: [0; BLOCK],
            passed: [0; BLOCK],
            places: [0; BLOCK],
            longest: [0; BLOCK],
        }
    }
}

/// The hash of the last two tokens, with a number of the token before them in its last five bits.
#[inline(always)]
fn code(before: u32, previous: u32, last: u32) -> u32 {
    let sum = last.wrapping_mul(LAST).wrapping_add(previous.wrapping_mul(PREVIOUS));
    let pair = (sum ^ (sum >> 15)).wrapping_mul(PAIR);
    (pair & !31) | (before.wrapping_mul(BEFORE) >> 27)
}

/// The bit of a word of `ends` that a key of two tokens sets; one of a longer key is `code` itself, modulo 32.
#[inline(always)]
fn pair_bit(code: u32) -> u32 {
    code >> 5
}

/// Continues the hash of a key's last tokens with the one before them.
#[inline(always)]
fn longer(hash: u64, token: u32) -> u64 {
    (hash ^ u64::from(token)).wrapping_mul(WHOLE)
}

/// The three bits of a word of `keys`.
#[inline(always)]
fn key_bits(hash: u64) -> u64 {
    (1 << ((hash >> 32) & 63)) | (1 << ((hash >> 26) & 63)) | (1 << ((hash >> 20) & 63))
}

impl Sieve {
    /// Sifts for `keys`, of which there are `num_keys`, at most [`MAX_SIEVED_KEYS`].
    pub fn new<'k>(keys: impl Iterator<Item = &'k [u32]>, num_keys: usize) -> Self {
        let num_ends = num_keys.clamp(64, MAX_SIEVED_KEYS).next_power_of_two();
        let num_words = num_ends / 2;
        let mut sieve = Self {
            ends: vec![0; num_ends].into(),
            ends_shift: 32 - num_ends.trailing_zeros(),
            keys: vec![0; num_words].into(),
            keys_shift: 64 - num_words.trailing_zeros(),
            singles: Box::default(),
            orders: 0,
        };
        let mut singles = Vec::new();
        for key in keys {
            match *key {
                [] => continue,
                [token] => {
                    let word = usize_of(token / 32);
                    singles.resize(singles.len().max(word + 1), 0u32);
                    singles[word] |= 1 << (token % 32);
                }
                [previous, last] => {
                    let code = code(0, previous, last);
                    sieve.ends[usize_of(code >> sieve.ends_shift)] |= 1 << (pair_bit(code) & 31);
                }
                [.., before, previous, last] => {
                    let code = code(before, previous, last);
                    sieve.ends[usize_of(code >> sieve.ends_shift)] |= 1 << (code & 31);
                }
            }
            let hash = key.iter().rev().fold(0, |hash, &token| longer(hash, token));
            sieve.keys[usize_of_u64(hash >> sieve.keys_shift)] |= key_bits(hash);
            sieve.orders |= 1 << key.len();
        }
        sieve.singles = singles.into();
        sieve
    }

    /// Writes into `room` which of its first `num` places may end a key, and returns how many.
    #[inline(always)]
    pub(super) fn sift(&self, room: &mut Room, num: usize) -> usize {
        // One small loop after the other: each keeps what it needs in registers.
        let Room { words, codes, passed, places, .. } = room;
        let (codes, passed) = (&mut codes[..num], &mut passed[..num]);
        let last = &words[LEAD..];
        let (before, previous) = (&words[LEAD - 2..], &words[LEAD - 1..]);
        for (((out, &last), &previous), &before) in codes.iter_mut().zip(last).zip(previous).zip(before) {
            *out = code(before, previous, last);
        }
        let (ends, shift) = (&*self.ends, self.ends_shift);
        for (passed, &code) in passed.iter_mut().zip(&*codes) {
            let word = ends[usize_of(code >> shift)];
            *passed = low_u8(((word >> (code & 31)) | (word >> (pair_bit(code) & 31))) & 1);
        }
        if !self.singles.is_empty() {
            for (passed, &token) in passed.iter_mut().zip(last) {
                let word = self.singles.get(usize_of(token / 32)).copied().unwrap_or(0);
                *passed |= low_u8(word >> (token % 32) & 1);
            }
        }
        let mut found = 0;
        for (at, &passed) in (0..).zip(&*passed) {
            places[found & (BLOCK - 1)] = at;
            found += usize::from(passed);
        }
        found
    }

    /// Leaves of the first `found` places in `room` those that may end a whole key, one as long as the answer in `orders` at
    /// least, with its longest possible length; returns how many.
    #[inline(always)]
    pub(super) fn weigh(&self, room: &mut Room, found: usize, orders: &[u8]) -> usize {
        let Room { words, places, longest, .. } = room;
        let max_order = 32 - self.orders.leading_zeros();
        let mut left = 0;
        for candidate in 0..found {
            let place = places[candidate];
            let at = usize_of(place);
            let (mut hash, mut length) = (0, 0);
            for order in 1..max_order {
                hash = longer(hash, words[LEAD + at - usize_of(order - 1)]);
                let bits = key_bits(hash);
                let holds = self.keys[usize_of_u64(hash >> self.keys_shift)] & bits == bits;
                length = select_unpredictable(holds & (self.orders >> order & 1 == 1), order, length);
            }
            (places[left], longest[left]) = (place, length);
            left += usize::from(length >= u32::from(orders[at]).max(1));
        }
        left
    }
}

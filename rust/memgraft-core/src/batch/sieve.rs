//! Where the keys of a small index can end: a bit test that spares it nearly all positions of a batch.

#![forbid(unsafe_code)]

use super::segments::{Feeder, Run};
use super::tokens::Tokens;
use crate::ids::{u64_of, usize_of_u64};

/// Bits a key, at least; a bit in forty is set at most.
const BITS_PER_KEY: usize = 32;
/// Stands before the first token of a segment; no vocabulary has it.
const OUTSIDE: u32 = u32::MAX;
/// Odd multipliers of a key's last three tokens, from the last one back: the fractional parts of square roots of primes.
const MULTIPLIERS: [u64; 3] = [0x6A09_E667_F3BC_C909, 0xBB67_AE85_84CA_A73B, 0x3C6E_F372_FE94_F82B];

/// A set of hashes of the last tokens of all keys: of a key's last three, or of the whole key where it is shorter.
///
/// A position whose last tokens are not in the set ends no key. One whose tokens are in it may end one.
#[derive(Debug, Clone)]
pub(crate) struct Sieve {
    words: Box<[u64]>,
    shift: u32,
    /// Whether there are keys of one token.
    single: bool,
}

impl Sieve {
    /// Sifts for `keys`, of which there are about `num_keys`.
    pub fn new<'k>(keys: impl Iterator<Item = &'k [u32]>, num_keys: usize) -> Self {
        let bits = (num_keys.max(2) * BITS_PER_KEY).next_power_of_two();
        let mut sieve = Self { words: vec![0; bits / 64].into(), shift: 64 - bits.trailing_zeros(), single: false };
        for key in keys {
            let sum =
                key.iter().rev().zip(MULTIPLIERS).fold(0, |sum: u64, (&token, by)| sum.wrapping_add(part(token, by)));
            let bit = sum >> sieve.shift;
            sieve.words[usize_of_u64(bit / 64)] |= 1 << (bit % 64);
            sieve.single |= key.len() == 1;
        }
        sieve
    }

    #[inline(always)]
    fn holds(&self, sum: u64) -> bool {
        let bit = sum >> self.shift;
        self.words[usize_of_u64(bit / 64)] >> (bit % 64) & 1 == 1
    }

    /// Whether a key may end with the last of these three tokens.
    #[inline(always)]
    fn may_end(&self, [before, previous, token]: [u32; 3]) -> bool {
        let one = part(token, MULTIPLIERS[0]);
        let two = one.wrapping_add(part(previous, MULTIPLIERS[1]));
        let three = two.wrapping_add(part(before, MULTIPLIERS[2]));
        self.holds(two) | self.holds(three) || self.single && self.holds(one)
    }

    /// The parts of the feeder's runs where keys may end, each with the context it needs; padding is left out.
    pub(super) fn choose(&self, feeder: Feeder<'_>, tokens: &Tokens<'_>) -> Vec<Run> {
        let (warmth, mut chosen) = (feeder.warmth(), Vec::new());
        let mut words = vec![OUTSIDE; feeder.longest() + 2];
        for run in feeder.filter(|run| !run.padding) {
            // The first two words stay outside: what lies before the context is in no key that ends in the run.
            tokens.read(run.warm..run.end, &mut words[2..2 + run.end - run.warm]);
            let first = run.start - run.warm;
            let mut open: Option<Run> = None;
            for (at, last) in (run.start..run.end).zip(words[first..].windows(3)) {
                if !self.may_end([last[0], last[1], last[2]]) {
                    continue;
                }
                match &mut open {
                    // Reading on costs no more than reading the context again.
                    Some(before) if at - before.end <= warmth => before.end = at + 1,
                    _ => {
                        let warm = run.warm.max(at.saturating_sub(warmth));
                        chosen.extend(open.replace(Run { warm, start: at, end: at + 1, padding: false }));
                    }
                }
            }
            chosen.extend(open);
        }
        chosen
    }
}

#[inline(always)]
fn part(token: u32, by: u64) -> u64 {
    u64::from(token).wrapping_mul(by)
}

/// Where lanes get their runs from.
pub(super) enum Runs<'a> {
    All(Feeder<'a>),
    /// What a sieve chose, and the longest run it may hold.
    Chosen(std::vec::IntoIter<Run>, usize),
}

impl Runs<'_> {
    /// Positions of the longest run.
    pub fn longest(&self) -> usize {
        match self {
            Self::All(feeder) => feeder.longest(),
            Self::Chosen(_, longest) => *longest,
        }
    }
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        match self {
            Self::All(feeder) => feeder.next(),
            Self::Chosen(runs, _) => runs.next(),
        }
    }
}

/// Positions that the runs read, contexts included.
pub(super) fn positions(runs: &[Run]) -> u64 {
    runs.iter().map(|run| u64_of(run.end - run.warm)).sum()
}

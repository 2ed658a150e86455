//! One probe: does a part of a block hold a token, and what does its entry say.
//!
//! A block holds the children of one state, and a part is what one line holds of
//! it: `n` entries and the state's suffix link. [`super::words`] has the words.
//!
//! [`Prober::probe`] compares all token words of a part at once and then reads
//! the state and the row of the entry that matched. Two ways compare: portable
//! code, and AVX2 where the processor has it; the tests hold both equal.
//!
//! The lookup probes once for every token and does little else, and the number
//! of instructions bounds its speed. So a miss takes the same path as a hit. The
//! result of the comparison has a bit for each word, and the lowest bit is the
//! entry's place. All bits from `n` on are set as well, so that the place is `n`
//! if no entry matched. An entry's row is word `2n + place`. For place `n` this
//! is word `3n`, the suffix link, and the next probe looks in that state.

#![allow(unsafe_code)]

use std::hint::select_unpredictable;

use super::words::{ENTRIES, TokenWord};
use crate::ids::usize_of;

/// Words from the start of a part that a probe may read. A damaged part says up to seven entries, so that the link is
/// word 21. The power of two above it lets the compiler see that no index leads outside.
pub(crate) const REACH: usize = 32;

/// A part of a block and the words after it.
pub(crate) type Part = [u32; REACH];

/// What a part said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Probe {
    /// Whether the part holds the token.
    pub hit: bool,
    /// After a miss: whether the block goes on in the next line, where the token may be.
    pub go_on: bool,
    /// After a hit: the next state. After a miss: the suffix link.
    pub state: u32,
    /// After a hit: the row. After a miss: anything.
    pub row: u32,
    /// After a hit: the token word, which has the order. After a miss: anything.
    pub entry: TokenWord,
}

/// A way to compare tokens.
pub(crate) trait Prober: Copy {
    /// Bit `i` of the result says whether word `i` of `part` holds `token`. This is so for every word that can be a token
    /// word: the first five of a part that begins its line, the first three of others. The other bits may be anything.
    fn matches(self, part: &Part, token: u32) -> u32;

    /// Looks for `token` in `part`.
    #[inline(always)]
    fn probe(self, part: &Part, token: u32) -> Probe {
        let first = TokenWord::from_bits(part[0]);
        let n = first.len();
        let place = (self.matches(part, token) | (u32::MAX << n)).trailing_zeros();
        let word = |at: u32| part[usize_of(at)];
        let (state, row, entry) = (word(place + n), word(place + n + n), TokenWord::from_bits(word(place)));
        let hit = place < n;
        // After a hit `place` is less than `len`, so that one comparison asks for a miss and for `spills`.
        let go_on = first.spills_after(place);
        Probe { hit, go_on, state: select_unpredictable(hit, state, row), row, entry }
    }
}

/// For any processor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

impl Prober for Portable {
    #[inline(always)]
    fn matches(self, part: &Part, token: u32) -> u32 {
        let mut bits = 0;
        for (i, &word) in part[..ENTRIES].iter().enumerate() {
            bits |= u32::from(TokenWord::from_bits(word).token() == token) << i;
        }
        bits
    }
}

/// For processors with AVX2; made by [`Avx2::detect`] alone.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

#[cfg(target_arch = "x86_64")]
impl Avx2 {
    /// The token that proves the processor has AVX2, BMI1, BMI2 and LZCNT.
    pub fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt");
        found.then_some(Self(()))
    }
}

#[cfg(target_arch = "x86_64")]
impl Prober for Avx2 {
    #[inline(always)]
    fn matches(self, part: &Part, token: u32) -> u32 {
        use std::arch::x86_64::{
            _mm_loadu_si128, _mm256_and_si256, _mm256_castsi128_si256, _mm256_castsi256_ps, _mm256_cmpeq_epi32,
            _mm256_inserti128_si256, _mm256_movemask_ps, _mm256_set1_epi32,
        };
        let low = part.as_ptr();
        // A part that begins at an odd unit has at most three entries, in its first four words. For those `high` is `low`:
        // the four words after the last unit lie in the next line, which may not be in the cache.
        let high = low.map_addr(|address| address | 16);
        // SAFETY: `self` exists, so `detect` found AVX2; both loads end at most eight words after the start of `part`.
        unsafe {
            let (low, high) = (_mm_loadu_si128(low.cast()), _mm_loadu_si128(high.cast()));
            let words = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high);
            let tokens = _mm256_and_si256(words, _mm256_set1_epi32(TokenWord::TOKEN.cast_signed()));
            let same = _mm256_cmpeq_epi32(tokens, _mm256_set1_epi32(token.cast_signed()));
            _mm256_movemask_ps(_mm256_castsi256_ps(same)).cast_unsigned()
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::super::words::LINE;
    use super::*;

    #[repr(align(64))]
    struct Lines([u32; 4 * LINE]);

    #[test]
    fn all_ways_say_the_same() {
        let Some(avx2) = Avx2::detect() else { return };
        let mut seed = 1u64;
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            crate::ids::low_u32(seed >> 33)
        };
        let mut hits = 0;
        for _ in 0..20_000 {
            for unit in 0..4 {
                // What fits the line from this unit on, as in a table.
                let n = 1 + next() % [5, 3, 2, 1][unit];
                let mut lines = Lines(std::array::from_fn(|_| next() & 0x03E0_0003));
                lines.0[unit * 4] = TokenWord::from_bits(lines.0[unit * 4]).begin(n, next() & 1 << 29 != 0).bits();
                let part: &Part = lines.0[unit * 4..].first_chunk().unwrap();
                for token in 0..4 {
                    let portable = Portable.probe(part, token);
                    assert_eq!(avx2.probe(part, token), portable);
                    let n = usize_of(n);
                    let expected = part[..n].iter().position(|&word| TokenWord::from_bits(word).token() == token);
                    hits += u32::from(expected.is_some());
                    assert_eq!(portable.hit, expected.is_some());
                    assert_eq!(portable.go_on, expected.is_none() && TokenWord::from_bits(part[0]).spills());
                    assert_eq!(portable.state, part[expected.map_or(3 * n, |i| n + i)]);
                    if let Some(i) = expected {
                        assert_eq!(
                            (portable.row, portable.entry.order()),
                            (part[2 * n + i], (part[i] >> 21 & 31) as u8)
                        );
                    }
                }
            }
        }
        assert!(hits > 10_000);
    }

    #[test]
    fn no_words_lead_outside() {
        let mut seed = 1u64;
        for _ in 0..20_000 {
            let part: Part = std::array::from_fn(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                crate::ids::low_u32(seed >> 32)
            });
            // Indexing would panic.
            Portable.probe(&part, TokenWord::from_bits(part[1]).token());
            if let Some(avx2) = Avx2::detect() {
                avx2.probe(&part, TokenWord::from_bits(part[1]).token());
            }
        }
    }
}

//! One look at one part of a block: the portable way and the one for AVX2, held equal by the tests; and the prefetch
//! hint.
//!
//! With `n` entries: tokens at words `0..n`, states at `n..2n`, rows at `2n..3n`, the suffix link at `3n`. The loop
//! that does this does little else, and what bounds it is the number of instructions that compute; so the place of a
//! miss is made to be `n`, which needs no case of its own: the row's word is then the link.

use std::hint::select_unpredictable;

use super::table::{ENTRIES, LEN_SHIFT, ORDER_SHIFT, SPILL, TOKEN_MASK};
use crate::ids::{low_u8, usize_of};

/// Words from the start of a part that a probe may read, whatever they hold: three times up to seven, rounded up so
/// that the compiler sees it too.
pub(crate) const REACH: usize = 32;

/// A part of a block and what follows it.
pub(crate) type Part = [u32; REACH];

/// What a part said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Probe {
    pub hit: bool,
    /// Not here, but the block goes on in the next line.
    pub go_on: bool,
    /// After a hit: the next state. After a miss: the suffix link.
    pub state: u32,
    /// After a miss: anything.
    pub row: u32,
    /// The token word with the order, for [`order`]. After a miss: anything.
    pub entry: u32,
}

/// The order in a token word.
#[inline(always)]
pub(crate) fn order(entry: u32) -> u8 {
    low_u8(entry >> ORDER_SHIFT) & 31
}

/// A way to compare tokens.
pub(crate) trait Prober: Copy {
    /// Which of the words of `part` that can be tokens hold `token`, as bits: the first five of a part that begins its
    /// line, the first three of others. The bits above say nothing.
    fn matches(self, part: &Part, token: u32) -> u32;

    /// Looks for `token` in `part`.
    #[inline(always)]
    fn probe(self, part: &Part, token: u32) -> Probe {
        let first = part[0] >> LEN_SHIFT;
        let n = first & 7;
        let place = (self.matches(part, token) | (u32::MAX << n)).trailing_zeros();
        let word = |at: u32| part[usize_of(at)];
        let (state, row, entry) = (word(place + n), word(place + n + n), word(place));
        let hit = place < n;
        let go_on = first == place + (SPILL >> LEN_SHIFT);
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
            bits |= u32::from(word & TOKEN_MASK == token) << i;
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
        // The fifth word is wanted of a part that begins its line, the only one to have five entries. After the last unit
        // comes the next line, which nobody asked for; so an odd unit is read twice instead of the one after it.
        let high = low.map_addr(|address| address | 16);
        // SAFETY: `self` exists, so `detect` found AVX2; both loads end at most eight words after the start of `part`.
        unsafe {
            let (low, high) = (_mm_loadu_si128(low.cast()), _mm_loadu_si128(high.cast()));
            let words = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high);
            let tokens = _mm256_and_si256(words, _mm256_set1_epi32(TOKEN_MASK.cast_signed()));
            let same = _mm256_cmpeq_epi32(tokens, _mm256_set1_epi32(token.cast_signed()));
            _mm256_movemask_ps(_mm256_castsi256_ps(same)).cast_unsigned()
        }
    }
}

/// Asks the processor to bring in the line that holds `target`, which may be any address; never changes a result.
#[inline(always)]
pub(crate) fn prefetch<T>(target: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint that never faults; SSE is part of x86-64.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(target.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a hint that never faults; it reads no register but its operand and writes none.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{0}]", in(reg) target, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = target;
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::super::table::LINE;
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
                lines.0[unit * 4] |= n << LEN_SHIFT | (next() & SPILL);
                let part: &Part = lines.0[unit * 4..].first_chunk().unwrap();
                for token in 0..4 {
                    let portable = Portable.probe(part, token);
                    assert_eq!(avx2.probe(part, token), portable);
                    let n = usize_of(n);
                    let expected = part[..n].iter().position(|&word| word & TOKEN_MASK == token);
                    hits += u32::from(expected.is_some());
                    assert_eq!(portable.hit, expected.is_some());
                    assert_eq!(portable.go_on, expected.is_none() && part[0] & SPILL != 0);
                    assert_eq!(portable.state, part[expected.map_or(3 * n, |i| n + i)]);
                    if let Some(i) = expected {
                        assert_eq!(
                            (portable.row, order(portable.entry)),
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
            Portable.probe(&part, part[1] & TOKEN_MASK);
            if let Some(avx2) = Avx2::detect() {
                avx2.probe(&part, part[1] & TOKEN_MASK);
            }
        }
    }
}

//! One look at one line: the portable way and those for AVX2 and AVX-512, held equal by the tests; and the prefetch
//! hint.
//!
//! With `n` entries from word `w`: tokens at `w..w+n`, states at `w+n..w+2n`, rows at `w+2n..w+3n`, the suffix
//! link at `w+3n`. Word indices are masked, so that no content of a line leads outside it.

use std::hint::select_unpredictable;

use super::table::{LEN_SHIFT, LINE, ORDER_SHIFT, SPILL, TOKEN_MASK, UNIT};
use crate::ids::usize_of;

/// What a line said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Probe {
    pub hit: bool,
    /// Not here, but the block goes on in the next line.
    pub spill: bool,
    /// After a hit: the next state. After a miss: the suffix link.
    pub state: u32,
    pub row: u32,
    pub order: u32,
}

/// A way to look at a line.
pub(crate) trait Prober: Copy {
    /// The words of `line` whose token is `token`, as bits.
    fn matches(self, line: &[u32; LINE], token: u32) -> u32;

    /// Looks for `token` in the block part that starts at `unit`, which lies in `line`.
    #[inline(always)]
    fn probe(self, line: &[u32; LINE], unit: u32, token: u32) -> Probe {
        let base = (unit & 3) * 4;
        let first = line[usize_of(base)];
        let n = (first >> LEN_SHIFT) & 7;
        let matches = (self.matches(line, token) >> base) & ((1 << n) - 1);
        let hit = matches != 0;
        let entry = base + matches.trailing_zeros();
        let at = |word: u32| line[usize_of(word) & (LINE - 1)];
        let state = at(select_unpredictable(hit, entry + n, base + 3 * n));
        let order = (at(entry) >> ORDER_SHIFT) & 31;
        Probe { hit, spill: first & SPILL != 0, state, row: at(entry + 2 * n), order }
    }
}

/// For any processor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

impl Prober for Portable {
    #[inline(always)]
    fn matches(self, line: &[u32; LINE], token: u32) -> u32 {
        let mut bits = 0;
        for (i, &word) in line.iter().enumerate() {
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
    /// The token that proves the processor has AVX2, BMI1 and BMI2.
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
    fn matches(self, line: &[u32; LINE], token: u32) -> u32 {
        use std::arch::x86_64::{
            __m256i, _mm256_and_si256, _mm256_castsi256_ps, _mm256_cmpeq_epi32, _mm256_loadu_si256, _mm256_movemask_ps,
            _mm256_set1_epi32,
        };
        // SAFETY: `self` exists, so `detect` found AVX2; both loads lie inside the 64 bytes of `line`.
        unsafe {
            let wanted = _mm256_set1_epi32(token.cast_signed());
            let mask = _mm256_set1_epi32(TOKEN_MASK.cast_signed());
            let half = |i: usize| {
                let words = _mm256_loadu_si256(line.as_ptr().add(8 * i).cast::<__m256i>());
                let same = _mm256_cmpeq_epi32(_mm256_and_si256(words, mask), wanted);
                _mm256_movemask_ps(_mm256_castsi256_ps(same)).cast_unsigned()
            };
            half(0) | half(1) << 8
        }
    }
}

/// For processors with AVX-512; made by [`Avx512::detect`] alone.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512(());

#[cfg(target_arch = "x86_64")]
impl Avx512 {
    /// The token that proves the processor has AVX-512F and what [`Avx2`] asks for.
    pub fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx512f") && Avx2::detect().is_some()).then_some(Self(()))
    }
}

#[cfg(target_arch = "x86_64")]
impl Prober for Avx512 {
    #[inline(always)]
    fn matches(self, line: &[u32; LINE], token: u32) -> u32 {
        use std::arch::x86_64::{_mm512_loadu_si512, _mm512_set1_epi32, _mm512_testn_epi32_mask, _mm512_xor_si512};
        // SAFETY: `self` exists, so `detect` found AVX-512F; the load lies inside the 64 bytes of `line`.
        unsafe {
            let words = _mm512_loadu_si512(line.as_ptr().cast());
            let differences = _mm512_xor_si512(words, _mm512_set1_epi32(token.cast_signed()));
            u32::from(_mm512_testn_epi32_mask(differences, _mm512_set1_epi32(TOKEN_MASK.cast_signed())))
        }
    }
}

/// Asks the processor to bring in the line that holds `target`; never changes a result.
#[inline(always)]
pub(crate) fn prefetch<T>(target: &T) {
    let target = std::ptr::from_ref(target);
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

const _: () = assert!(UNIT * 4 == LINE, "units of a line");

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn all_ways_say_the_same() {
        let Some(avx2) = Avx2::detect() else { return };
        let mut seed = 1u64;
        for _ in 0..20_000 {
            let line: [u32; LINE] = std::array::from_fn(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                crate::ids::low_u32(seed >> 33) & 0x3C00_0003
            });
            for unit in 0..4 {
                for token in 0..4 {
                    let portable = Portable.probe(&line, unit, token);
                    assert_eq!(avx2.probe(&line, unit, token), portable);
                    if let Some(avx512) = Avx512::detect() {
                        assert_eq!(avx512.probe(&line, unit, token), portable);
                    }
                }
            }
        }
    }
}

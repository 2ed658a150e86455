//! The copy of one row: stores that go past the caches, and a prefetch of rows
//! to come.
//!
//! Rows are random lines of a table far larger than the caches, written once
//! and read later by a device or another thread: keeping either side in the
//! cache gains nothing. What bounds the copy is how many lines a core waits for
//! at a time: its first cache waits for two dozen, its second for more. So rows
//! of 2 KiB and more are asked for whole, up to 4 KiB, two ahead and into the second cache;
//! for shorter ones the first half KiB, four ahead and into the first, does better.
#![allow(unsafe_code)]

/// Rows from here on are asked for whole, up to [`MOST_AHEAD`].
const LONG_ROW: usize = 2 << 10;
/// Most of a row that is asked for ahead.
const MOST_AHEAD: usize = 4 << 10;
/// Outputs below this fit a cache that the reader shares: plain stores.
const MIN_STREAMED: usize = 2 << 20;
/// Shorter rows gain nothing from streaming.
const MIN_STREAMED_ROW: usize = 256;

/// How rows are copied, chosen once per gather.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Copier {
    /// `memcpy`.
    Plain,
    /// 32-byte stores past the caches.
    #[cfg(target_arch = "x86_64")]
    Streamed,
}

impl Copier {
    /// The fastest copy on this machine for `total_bytes` in rows of `row_bytes`.
    pub fn choose(total_bytes: usize, row_bytes: usize) -> Self {
        #[cfg(target_arch = "x86_64")]
        if total_bytes >= MIN_STREAMED && row_bytes >= MIN_STREAMED_ROW && is_x86_feature_detected!("avx") {
            return Self::Streamed;
        }
        let _ = (total_bytes, row_bytes);
        Self::Plain
    }

    /// How many rows ahead of the one copied [`Self::prefetch`] wants the next one.
    pub fn ahead(row_bytes: usize) -> usize {
        if row_bytes >= LONG_ROW { 2 } else { 4 }
    }

    /// Brings `row` towards the core; the hardware fetches the rest of a very long one once the copy runs.
    #[inline]
    pub fn prefetch(row: &[u8]) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
            // SAFETY: SSE is part of x86-64, and a prefetch never faults.
            unsafe {
                if row.len() >= LONG_ROW {
                    row.chunks(64)
                        .take(MOST_AHEAD / 64)
                        .for_each(|line| _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()));
                } else {
                    row.chunks(64).take(8).for_each(|line| _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()));
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = row;
    }

    /// Copies `from` to `to` of the same length.
    #[inline]
    pub fn copy(self, from: &[u8], to: &mut [u8]) {
        match self {
            Self::Plain => to.copy_from_slice(from),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `choose` makes `Streamed` only where the machine has AVX.
            Self::Streamed => unsafe { stream(from, to) },
        }
    }

    /// Makes streamed stores visible to whoever synchronises with this thread.
    pub fn finish(self) {
        #[cfg(target_arch = "x86_64")]
        if self == Self::Streamed {
            // SAFETY: SSE is part of x86-64.
            unsafe { std::arch::x86_64::_mm_sfence() };
        }
    }
}

/// Copies with stores past the caches.
///
/// # Safety
/// The machine has AVX.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
unsafe fn stream(from: &[u8], to: &mut [u8]) {
    use std::arch::x86_64::{__m256i, _mm256_loadu_si256, _mm256_stream_si256};
    assert_eq!(from.len(), to.len(), "a row and its place differ in length");
    let head = to.as_ptr().align_offset(64).min(to.len());
    to[..head].copy_from_slice(&from[..head]);
    let (from, to) = (&from[head..], &mut to[head..]);
    let body = to.len() / 64 * 64;
    for at in (0..body).step_by(64) {
        // SAFETY: `at + 64 <= body <=` both lengths, asserted equal above; `to` is
        // 64-aligned after the head, as the stores need; loads need no alignment.
        unsafe {
            let source: *const __m256i = from.as_ptr().add(at).cast();
            let target: *mut __m256i = to.as_mut_ptr().add(at).cast();
            let (low, high) = (_mm256_loadu_si256(source), _mm256_loadu_si256(source.add(1)));
            _mm256_stream_si256(target, low);
            _mm256_stream_si256(target.add(1), high);
        }
    }
    to[body..].copy_from_slice(&from[body..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streamed_copy_is_a_copy_at_any_alignment_and_length() {
        let from: Vec<u8> = (0..5000_usize).map(|i| (i * 7 % 251) as u8).collect();
        let copier = Copier::choose(usize::MAX, usize::MAX);
        for start in [0, 1, 31, 32, 63, 64] {
            for shift in [0, 1, 17, 64] {
                for length in [0, 1, 63, 64, 65, 255, 256, 4096, 4100] {
                    let mut to = vec![0xEE_u8; 5000];
                    copier.copy(&from[start..start + length], &mut to[shift..shift + length]);
                    copier.finish();
                    assert_eq!(to[shift..shift + length], from[start..start + length]);
                    assert!(to[..shift].iter().chain(&to[shift + length..]).all(|&byte| byte == 0xEE));
                }
            }
        }
    }

    #[test]
    fn small_outputs_stay_in_the_cache() {
        assert_eq!(Copier::choose(8 * 4096, 4096), Copier::Plain);
        assert_eq!(Copier::choose(1 << 30, 64), Copier::Plain);
    }
}

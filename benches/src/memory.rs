//! The machine's own limit: dependent reads of random 64-byte lines, many in flight.

#![allow(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use memgraft_core::format::{HugeBuffer, Store};

use crate::Fallible;

/// Walks that wait for memory at the same time on one core.
pub const IN_FLIGHT: usize = 32;
const WORDS: usize = 16;

/// A buffer of random words on huge pages where the system grants them.
#[derive(Debug)]
pub struct RandomLines {
    words: Store<u32>,
    lines: u64,
}

/// `splitmix64`.
#[inline]
#[must_use]
pub fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl RandomLines {
    /// A buffer of `bytes` bytes, filled.
    ///
    /// # Errors
    /// The system refuses the memory.
    pub fn new(bytes: usize) -> Fallible<Self> {
        let lines = (bytes / 64).max(IN_FLIGHT);
        let mut buffer = HugeBuffer::zeroed(lines * 64)?;
        for (i, word) in buffer.words_mut().iter_mut().enumerate() {
            *word = (mix(i as u64) >> 32) as u32;
        }
        let words = Store::mapped(Arc::new(buffer.freeze()?), 0..lines * 64);
        Ok(Self { words: words.ok_or("expected the buffer to hold whole words")?, lines: lines as u64 })
    }

    /// Reads `reads` lines on each of `threads` threads; every read's place depends on the one before in its walk.
    pub fn read(&self, reads: usize, threads: usize) -> u64 {
        let (words, lines) = (&*self.words, self.lines);
        if threads <= 1 {
            return walks(words, lines, reads, 1);
        }
        std::thread::scope(|scope| {
            let handles: Vec<_> =
                (0..threads).map(|thread| scope.spawn(move || walks(words, lines, reads, thread as u64 + 1))).collect();
            handles.into_iter().map(|handle| handle.join().unwrap_or(0)).fold(0, u64::wrapping_add)
        })
    }
}

fn walks(words: &[u32], lines: u64, reads: usize, seed: u64) -> u64 {
    // 32 random bits to a line.
    let line_of = |bits: u32| ((u64::from(bits) * lines) >> 32) as usize;
    let mut places: [usize; IN_FLIGHT] = std::array::from_fn(|i| line_of((mix((seed << 32) + i as u64) >> 32) as u32));
    let mut stride = seed as u32;
    for _ in 0..reads.div_ceil(IN_FLIGHT) {
        // The turn enters into the next place: a map from line to line alone runs into a cycle of sqrt(lines).
        stride = stride.wrapping_add(0x9E37_79B9);
        for place in &mut places {
            let word = words[*place * WORDS + (*place & (WORDS - 1))];
            *place = line_of(word.wrapping_add(stride));
            prefetch(&words[*place * WORDS]);
        }
    }
    places.iter().fold(0, |sum, &place| sum.wrapping_add(place as u64))
}

/// Asks for the line of `target`.
#[inline(always)]
pub fn prefetch<T>(target: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint on a live reference; SSE is part of x86-64.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(target).cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a hint on a live reference; it reads no register but its operand and writes none.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{0}]", in(reg) std::ptr::from_ref(target), options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = target;
}

/// Runs `work` and says how many bytes of private memory this process held at most meanwhile, sampled every few
/// milliseconds; mapped files do not count.
pub fn peak_private_bytes<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut peak = 0;
            while !done.load(Ordering::Relaxed) {
                peak = peak.max(status_bytes("RssAnon:"));
                std::thread::sleep(Duration::from_millis(2));
            }
            peak
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        (result, sampler.join().unwrap_or(0))
    })
}

fn status_bytes(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kilobytes = line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

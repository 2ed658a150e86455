//! The hint that brings a line into the cache before it is read.
#![allow(unsafe_code)]

/// Asks the processor for the line that holds `target`. `target` may be any address; results never depend on it.
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

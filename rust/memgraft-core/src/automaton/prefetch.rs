//! The prefetch hint, where the processor has one.

/// Asks the processor to bring in the line that holds `target`; never faults, never changes a result.
#[inline(always)]
pub(crate) fn prefetch<T>(target: &T) {
    #[cfg(all(target_arch = "x86_64", not(feature = "portable")))]
    // SAFETY: a hint on a live reference; SSE is part of x86-64.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(target).cast());
    }
    #[cfg(all(target_arch = "aarch64", not(feature = "portable")))]
    // SAFETY: a hint on a live reference; it reads no register but its operand and writes none.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{0}]", in(reg) std::ptr::from_ref(target), options(nostack, preserves_flags, readonly));
    }
    #[cfg(any(feature = "portable", not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
    let _ = target;
}

//! Lexicographic order of keys by radix sort, last token first.

#![forbid(unsafe_code)]

use crate::ids::{low_u32, u64_of, usize_of, usize_of_u64};

/// Widest digit of one counting pass.
const DIGIT_BITS: u32 = 11;

/// The keys `0..num_keys` in lexicographic order (a prefix before its extensions), as Python orders tuples.
///
/// `key(i)` is the i-th key. Linear in the number of tokens; 20 bytes of memory per key.
pub(crate) fn lexicographic<'a>(num_keys: u32, vocab_size: u32, key: impl Fn(u32) -> &'a [u32]) -> Vec<u32> {
    let longest = (0..num_keys).map(|i| key(i).len()).max().unwrap_or(0);
    let mut by_len: Vec<Vec<u32>> = vec![Vec::new(); longest + 1];
    for i in 0..num_keys {
        by_len[key(i).len()].push(i);
    }
    let token_bits = (32 - vocab_size.saturating_sub(1).leading_zeros()).max(1);
    let mut items: Vec<u64> = Vec::new();
    let mut scratch: Vec<u64> = Vec::new();
    // Invariant: `order` holds the keys longer than `depth`, sorted by their tokens from `depth` on.
    let mut order: Vec<u32> = Vec::new();
    for depth in (0..longest).rev() {
        let shorter = std::mem::take(&mut by_len[depth + 1]);
        items.clear();
        items.extend(shorter.iter().chain(&order).map(|&i| u64::from(key(i)[depth]) << 32 | u64::from(i)));
        drop(shorter);
        let mut done = 0;
        while done < token_bits {
            let bits = (token_bits - done).min(DIGIT_BITS);
            counting_pass(&items, &mut scratch, 32 + done, bits);
            std::mem::swap(&mut items, &mut scratch);
            done += bits;
        }
        order.clear();
        order.extend(items.iter().map(|&item| low_u32(item)));
    }
    order
}

/// A stable counting sort of `items` into `out` by `bits` bits from `shift`.
pub(crate) fn counting_pass(items: &[u64], out: &mut Vec<u64>, shift: u32, bits: u32) {
    let mask = (1u64 << bits) - 1;
    let digit = |item: u64| usize_of_u64((item >> shift) & mask);
    let mut starts = vec![0usize; usize_of(1 << bits) + 1];
    for &item in items {
        starts[digit(item) + 1] += 1;
    }
    for i in 1..starts.len() {
        starts[i] += starts[i - 1];
    }
    out.clear();
    out.resize(items.len(), 0);
    for &item in items {
        let at = &mut starts[digit(item)];
        out[*at] = item;
        *at += 1;
    }
}

/// Stable sort of `order` by descending `count`.
pub(crate) fn by_descending_count(order: &mut Vec<u32>, count: impl Fn(u32) -> u64) {
    let largest = order.iter().map(|&i| count(i)).max().unwrap_or(0);
    if largest > u64::from(u32::MAX) {
        order.sort_by_key(|&i| std::cmp::Reverse(count(i)));
        return;
    }
    let bits = u64::BITS - largest.leading_zeros();
    let mut items: Vec<u64> = order.iter().map(|&i| (largest - count(i)) << 32 | u64::from(i)).collect();
    let mut scratch = Vec::with_capacity(items.len());
    let mut done = 0;
    while done < bits {
        let width = (bits - done).min(DIGIT_BITS);
        counting_pass(&items, &mut scratch, 32 + done, width);
        std::mem::swap(&mut items, &mut scratch);
        done += width;
    }
    debug_assert_eq!(u64_of(items.len()), u64_of(order.len()));
    order.clear();
    order.extend(items.iter().map(|&item| low_u32(item)));
}

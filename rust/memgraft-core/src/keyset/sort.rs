//! Two sorts: keys in lexicographic order, and rows by descending count.
//!
//! The lexicographic sort puts keys into buckets by their first token. Within a bucket it packs the next tokens of each
//! key into one 64-bit word, three or more of them, and sorts the words. Keys with equal words are sorted by the tokens
//! after those.

use crate::ids::{low_u32, saturating_u32, u64_of, usize_of, usize_of_u64};
use crate::{Result, stop};

/// Widest digit of one counting pass.
const DIGIT_BITS: u32 = 11;

/// Gives `each` the keys `0..num_keys` in lexicographic order (a prefix before its extensions), as Python orders tuples.
///
/// `key(i)` is the i-th key: at least one token, all below `vocab_size`. Equal keys come one after another. `each` is called
/// after each bucket is sorted, while the bucket's keys are still in the cache. The sort takes 4 bytes of memory for each key
/// and 16 for each key of the largest bucket.
///
/// # Errors
/// [`crate::Error::Interrupted`] where the caller has asked the work to end.
pub(crate) fn lexicographic<'a>(
    num_keys: u32,
    vocab_size: u32,
    key: impl Fn(u32) -> &'a [u32],
    mut each: impl FnMut(u32, &'a [u32]),
) -> Result<()> {
    let mut ends = vec![0u32; usize_of(vocab_size)];
    for i in 0..num_keys {
        stop::check_at(i)?;
        ends[usize_of(key(i)[0])] += 1;
    }
    let mut sum = 0;
    for end in &mut ends {
        sum += std::mem::replace(end, sum);
    }
    // `ends` holds where each bucket starts. Putting keys in moves every entry to where its bucket ends.
    let mut order = vec![0u32; usize_of(num_keys)];
    for i in 0..num_keys {
        stop::check_at(i)?;
        let at = &mut ends[usize_of(key(i)[0])];
        order[usize_of(*at)] = i;
        *at += 1;
    }
    let words = Words::new(vocab_size);
    let mut items: Vec<(u64, u32)> = Vec::new();
    let (mut start, mut turn) = (0, 0);
    for &end in &ends {
        let bucket = &order[start..usize_of(end)];
        start = usize_of(end);
        items.clear();
        items.extend(bucket.iter().map(|&i| (0, i)));
        words.sort(&mut items, 1, &key);
        for &(_, i) in &items {
            stop::check_at(turn)?;
            turn += 1;
            each(i, key(i));
        }
    }
    Ok(())
}

/// How tokens are packed into a word: each as its number plus one, because 0 says that the key has ended.
#[derive(Clone, Copy)]
struct Words {
    bits: u32,
    tokens: usize,
}

impl Words {
    fn new(vocab_size: u32) -> Self {
        let bits = u32::BITS - vocab_size.leading_zeros();
        Self { bits, tokens: usize_of(u64::BITS / bits) }
    }

    /// The tokens of `key` from `depth` on, the first one highest.
    fn of(self, key: &[u32], depth: usize) -> u64 {
        let rest = key.get(depth..).unwrap_or_default();
        let held = rest.iter().take(self.tokens);
        let missing = self.bits * saturating_u32(self.tokens - held.len());
        let word = held.fold(0, |word, &token| word << self.bits | u64::from(token + 1));
        // Two shifts, because a key without further tokens misses 64 bits, and a shift by 64 is an error.
        word << (missing / 2) << (missing - missing / 2)
    }

    /// Sorts `items` by the tokens of their keys from `depth` on; the keys agree before it. The words in `items` are
    /// overwritten.
    fn sort<'a>(self, items: &mut [(u64, u32)], depth: usize, key: &impl Fn(u32) -> &'a [u32]) {
        if items.len() < 2 {
            return;
        }
        for (word, i) in &mut *items {
            *word = self.of(key(*i), depth);
        }
        items.sort_unstable_by_key(|&(word, _)| word);
        let last_token = (1 << self.bits) - 1;
        for run in items.chunk_by_mut(|a, b| a.0 == b.0) {
            // Keys that end within this word are equal here, so that nothing is left to sort. The last token of the word
            // is not 0 where they may go on.
            if run[0].0 & last_token != 0 {
                self.sort(run, depth + self.tokens, key);
            }
        }
    }
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
///
/// # Errors
/// [`crate::Error::Interrupted`] where the caller has asked the work to end.
pub(crate) fn by_descending_count(order: &mut Vec<u32>, count: impl Fn(u32) -> u64) -> Result<()> {
    let largest = order.iter().map(|&i| count(i)).max().unwrap_or(0);
    if largest > u64::from(u32::MAX) {
        order.sort_by_key(|&i| std::cmp::Reverse(count(i)));
        return Ok(());
    }
    let bits = u64::BITS - largest.leading_zeros();
    let mut items: Vec<u64> = order.iter().map(|&i| (largest - count(i)) << 32 | u64::from(i)).collect();
    let mut scratch = Vec::with_capacity(items.len());
    let mut done = 0;
    while done < bits {
        stop::check()?;
        let width = (bits - done).min(DIGIT_BITS);
        counting_pass(&items, &mut scratch, 32 + done, width);
        std::mem::swap(&mut items, &mut scratch);
        done += width;
    }
    debug_assert_eq!(u64_of(items.len()), u64_of(order.len()));
    order.clear();
    order.extend(items.iter().map(|&item| low_u32(item)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Vocabularies around what a word holds: 64 tokens of one, 4 of 2^15, 3 of 2^16 and of 2^20.
        #[test]
        fn lexicographic_order_is_that_of_a_plain_sort(
            vocab_size in prop::sample::select(vec![1u32, 2, 3, 100, 1 << 15, (1 << 16) - 1, 1 << 16, 1 << 20]),
            few in any::<bool>(),
            seeds in prop::collection::vec(prop::collection::vec(any::<u32>(), 1..17), 0..200),
        ) {
            // The highest ids, of a whole vocabulary or of three: then long prefixes are shared, and keys repeat.
            let token = |seed: u32| vocab_size - 1 - seed % if few { vocab_size.min(3) } else { vocab_size };
            let keys: Vec<Vec<u32>> = seeds.into_iter().map(|key| key.into_iter().map(token).collect()).collect();
            let mut found = Vec::new();
            lexicographic(saturating_u32(keys.len()), vocab_size, |i| &keys[usize_of(i)], |i, key| found.push((i, key))).unwrap();
            let mut want: Vec<&[u32]> = keys.iter().map(Vec::as_slice).collect();
            want.sort_unstable();
            prop_assert!(found.iter().map(|&(_, key)| key).eq(want));
            prop_assert!(found.iter().all(|&(i, key)| keys[usize_of(i)] == key));
            let mut rows: Vec<u32> = found.iter().map(|&(i, _)| i).collect();
            rows.sort_unstable();
            prop_assert!(rows.into_iter().eq(0..saturating_u32(keys.len())));
        }
    }
}

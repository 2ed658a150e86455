//! Row ids to distinct rows and an inverse.
//!
//! Three ways with one result: a sort for a few ids; a bitmap with ranks where
//! the table is not much larger than the batch; a radix sort where it is.
use std::cell::RefCell;

use super::bounded::{Distinct, check_rows};
use crate::ids::{low_u32, row_as_i32, u64_of, usize_of, usize_of_u64};
use crate::{Result, stop};

/// Distinct rows, ascending, and for each position its place among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dedup {
    /// Distinct rows, ascending.
    pub unique: Distinct,
    /// Per position its index into `unique`, or -1 where the position is a miss.
    pub inverse: Vec<i32>,
    /// Positions that are not a miss.
    pub num_hits: u64,
}

/// Rows that one word of the bitmap stands for.
const WORD_ROWS: u32 = 32;
/// The bitmap is scanned whole: worth it up to this many words per id.
const MAX_WORDS_PER_ID: usize = 4;
/// Up to here a comparison sort beats setting anything up.
const MAX_SORTED: usize = 256;
/// Rows between two looks whether the caller still waits.
const STEP: usize = 1 << 20;
/// Bits of a row that one radix pass sorts by.
const RADIX_BITS: u32 = 11;

thread_local! {
    /// The bitmap, all zeros between calls: fresh memory would fault on every page of every call.
    static BITMAP: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// Distinct rows of `rows`, where -1 is a miss.
///
/// # Errors
/// [`crate::Error::Argument`] naming the first position whose row is below -1 or not below `num_rows`;
/// [`crate::Error::Interrupted`] where the caller has asked the work to end.
pub fn dedup(rows: &[i32], num_rows: usize) -> Result<Dedup> {
    check_rows(rows, num_rows, -1)?;
    let words = num_rows.div_ceil(usize_of(WORD_ROWS));
    if rows.len() <= MAX_SORTED {
        by_sort(rows)
    } else if words <= rows.len() * MAX_WORDS_PER_ID {
        BITMAP.with_borrow_mut(|bitmap| by_bitmap(rows, words, bitmap))
    } else {
        by_radix(rows, num_rows)
    }
}

fn by_sort(rows: &[i32]) -> Result<Dedup> {
    let mut pairs: Vec<u64> = pairs(rows).collect();
    pairs.sort_unstable();
    from_sorted(&pairs, rows.len())
}

/// The hits of `rows` as `row << 32 | position`.
fn pairs(rows: &[i32]) -> impl Iterator<Item = u64> {
    let hits = rows.iter().enumerate().filter(|&(_, &row)| row >= 0);
    hits.map(|(position, &row)| u64::from(row.cast_unsigned()) << 32 | u64_of(position))
}

fn from_sorted(pairs: &[u64], positions: usize) -> Result<Dedup> {
    let mut inverse = vec![-1_i32; positions];
    let mut unique: Vec<i32> = Vec::new();
    let mut last = -1_i32;
    for pairs in pairs.chunks(STEP) {
        stop::check()?;
        for &pair in pairs {
            let row = row_as_i32(low_u32(pair >> 32));
            if row != last {
                unique.push(row);
                last = row;
            }
            inverse[usize_of(low_u32(pair))] = row_as_i32(low_u32(u64_of(unique.len() - 1)));
        }
    }
    Ok(Dedup { unique: Distinct::of(unique), inverse, num_hits: u64_of(pairs.len()) })
}

/// By a bitmap of all zeros, which is so again afterwards, after an error too.
fn by_bitmap(rows: &[i32], words: usize, bitmap: &mut Vec<u64>) -> Result<Dedup> {
    if bitmap.len() < words + 1 {
        bitmap.resize(words + 1, 0);
    }
    let made = by_ranks(rows, words, &mut bitmap[..=words]);
    bitmap[..=words].fill(0);
    made
}

/// Words hold 32 rows' bits below and the rank of their first row above.
fn by_ranks(rows: &[i32], words: usize, bitmap: &mut [u64]) -> Result<Dedup> {
    // One word past the end takes the misses, so that no branch depends on them.
    let place = |row: i32| if row < 0 { words } else { usize_of(row.cast_unsigned() / WORD_ROWS) };
    let mut misses = 0_u64;
    for rows in rows.chunks(STEP) {
        stop::check()?;
        for &row in rows {
            misses += u64::from(row < 0);
            bitmap[place(row)] |= 1 << (row.cast_unsigned() % WORD_ROWS);
        }
    }
    bitmap[words] = 0;
    let mut unique: Vec<i32> = Vec::with_capacity(rows.len().min(words * usize_of(WORD_ROWS)));
    for (place, word) in bitmap.iter_mut().enumerate() {
        let (first, mut bits) = (low_u32(u64_of(place)) * WORD_ROWS, low_u32(*word));
        *word |= u64_of(unique.len()) << 32;
        while bits != 0 {
            unique.push(row_as_i32(first + bits.trailing_zeros()));
            bits &= bits - 1;
        }
    }
    let rank = |row: i32| {
        let word = bitmap[place(row)];
        let below = (1_u32 << (row.cast_unsigned() % WORD_ROWS)) - 1;
        let found = low_u32(word >> 32) + (low_u32(word) & below).count_ones();
        if row < 0 { -1 } else { row_as_i32(found) }
    };
    let mut inverse = Vec::with_capacity(rows.len());
    for rows in rows.chunks(STEP) {
        stop::check()?;
        inverse.extend(rows.iter().map(|&row| rank(row)));
    }
    Ok(Dedup { unique: Distinct::of(unique), inverse, num_hits: u64_of(rows.len()) - misses })
}

/// Least significant digit first; positions stay ascending within a row.
fn by_radix(rows: &[i32], num_rows: usize) -> Result<Dedup> {
    const BUCKETS: usize = 1 << RADIX_BITS;
    let bits = usize::BITS - num_rows.saturating_sub(1).leading_zeros();
    let mut from: Vec<u64> = pairs(rows).collect();
    let mut to = vec![0_u64; from.len()];
    for pass in 0..bits.div_ceil(RADIX_BITS) {
        let shift = 32 + pass * RADIX_BITS;
        let digit = |pair: u64| usize_of_u64(pair >> shift) % BUCKETS;
        let mut starts = [0_u32; BUCKETS];
        for &pair in &from {
            starts[digit(pair)] += 1;
        }
        let mut sum = 0;
        for start in &mut starts {
            sum += std::mem::replace(start, sum);
        }
        for pairs in from.chunks(STEP) {
            stop::check()?;
            for &pair in pairs {
                let start = &mut starts[digit(pair)];
                to[usize_of(*start)] = pair;
                *start += 1;
            }
        }
        std::mem::swap(&mut from, &mut to);
    }
    from_sorted(&from, rows.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn naive(rows: &[i32]) -> Dedup {
        let unique: Vec<i32> = rows
            .iter()
            .copied()
            .filter(|&row| row >= 0)
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect();
        let place = |row: &i32| unique.iter().position(|found| found == row).map_or(-1, |place| place as i32);
        Dedup {
            inverse: rows.iter().map(place).collect(),
            num_hits: rows.iter().filter(|&&row| row >= 0).count() as u64,
            unique: Distinct::of(unique),
        }
    }

    proptest! {
        #[test]
        fn every_way_is_the_naive_one(
            num_rows in prop_oneof![1_i32..100, 1_i32..5000, Just(i32::MAX)],
            seeds in prop::collection::vec(any::<(u32, bool)>(), 0..700),
        ) {
            let row = |&(seed, miss): &(u32, bool)| if miss { -1 } else { (i64::from(seed) % i64::from(num_rows)) as i32 };
            let rows: Vec<i32> = seeds.iter().map(row).collect();
            let expected = naive(&rows);
            prop_assert_eq!(&by_sort(&rows).unwrap(), &expected);
            prop_assert_eq!(&by_radix(&rows, num_rows as usize).unwrap(), &expected);
            prop_assert_eq!(&dedup(&rows, num_rows as usize).unwrap(), &expected);
            if num_rows < 10_000 {
                let words = (num_rows as usize).div_ceil(WORD_ROWS as usize);
                let mut bitmap = vec![0; 3];
                for _ in 0..2 {
                    prop_assert_eq!(&by_bitmap(&rows, words, &mut bitmap).unwrap(), &expected);
                    prop_assert!(bitmap.iter().all(|&word| word == 0));
                }
            }
        }
    }

    #[test]
    fn each_way_ends_when_asked_and_leaves_a_clean_bitmap() {
        let (rows, mut bitmap) = ([3, -1, 0, 3], Vec::new());
        let flag = stop::Stop::default();
        flag.request();
        flag.during(|| {
            for made in [by_sort(&rows), by_radix(&rows, 4), by_bitmap(&rows, 1, &mut bitmap)] {
                assert!(matches!(made, Err(crate::Error::Interrupted)));
            }
        });
        assert_eq!(by_bitmap(&rows, 1, &mut bitmap).unwrap(), naive(&rows));
    }
}

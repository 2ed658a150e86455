//! Row ids to distinct rows and an inverse.
//!
//! Three ways with one result: a sort for a few ids; a bitmap with ranks where
//! the table is not much larger than the batch; a radix sort where it is.
#![forbid(unsafe_code)]

use std::cell::RefCell;

use crate::{Error, Result};

/// Distinct rows, ascending, and for each position its place among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dedup {
    /// Distinct rows, ascending.
    pub unique: Vec<i32>,
    /// Per position its index into `unique`, or -1 where the position is a miss.
    pub inverse: Vec<i32>,
    /// Positions that are not a miss.
    pub num_hits: u64,
}

/// Rows that one word of the bitmap stands for.
const WORD_ROWS: usize = 32;
/// The bitmap is scanned whole: worth it up to this many words per id.
const MAX_WORDS_PER_ID: usize = 4;
/// Up to here a comparison sort beats setting anything up.
const MAX_SORTED: usize = 256;
/// Bits of a row that one radix pass sorts by.
const RADIX_BITS: u32 = 11;

thread_local! {
    /// The bitmap, all zeros between calls: fresh memory would fault on every page of every call.
    static BITMAP: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// Distinct rows of `rows`, where -1 is a miss.
///
/// # Errors
/// [`Error::Argument`] naming the first position whose row is below -1 or not below `num_rows`.
pub fn dedup(rows: &[i32], num_rows: u64) -> Result<Dedup> {
    check_rows(rows, num_rows, -1)?;
    let words = (num_rows as usize).div_ceil(WORD_ROWS);
    Ok(if rows.len() <= MAX_SORTED {
        by_sort(rows)
    } else if words <= rows.len() * MAX_WORDS_PER_ID {
        BITMAP.with_borrow_mut(|bitmap| by_bitmap(rows, words, bitmap))
    } else {
        by_radix(rows, num_rows)
    })
}

fn by_sort(rows: &[i32]) -> Dedup {
    let mut pairs: Vec<u64> = pairs(rows).collect();
    pairs.sort_unstable();
    from_sorted(&pairs, rows.len())
}

/// The hits of `rows` as `row << 32 | position`.
fn pairs(rows: &[i32]) -> impl Iterator<Item = u64> {
    rows.iter().enumerate().filter(|&(_, &row)| row >= 0).map(|(position, &row)| (row as u64) << 32 | position as u64)
}

fn from_sorted(pairs: &[u64], positions: usize) -> Dedup {
    let mut inverse = vec![-1_i32; positions];
    let mut unique: Vec<i32> = Vec::new();
    let mut last = -1_i32;
    for &pair in pairs {
        let row = (pair >> 32) as i32;
        if row != last {
            unique.push(row);
            last = row;
        }
        inverse[pair as u32 as usize] = unique.len() as i32 - 1;
    }
    Dedup { unique, inverse, num_hits: pairs.len() as u64 }
}

/// Words hold 32 rows' bits below and the rank of their first row above.
fn by_bitmap(rows: &[i32], words: usize, bitmap: &mut Vec<u64>) -> Dedup {
    // One word past the end takes the misses, so that no branch depends on them.
    let place = |row: i32| if row < 0 { words } else { row as usize / WORD_ROWS };
    if bitmap.len() < words + 1 {
        bitmap.resize(words + 1, 0);
    }
    let bitmap = &mut bitmap[..=words];
    let mut misses = 0_u64;
    for &row in rows {
        misses += u64::from(row < 0);
        bitmap[place(row)] |= 1 << (row as u32 % WORD_ROWS as u32);
    }
    bitmap[words] = 0;
    let mut unique: Vec<i32> = Vec::with_capacity(rows.len().min(words * WORD_ROWS));
    for (place, word) in bitmap.iter_mut().enumerate() {
        let mut bits = *word as u32;
        *word |= (unique.len() as u64) << 32;
        while bits != 0 {
            unique.push((place * WORD_ROWS) as i32 + bits.trailing_zeros() as i32);
            bits &= bits - 1;
        }
    }
    let rank = |row: i32| {
        let word = bitmap[place(row)];
        let below = (1_u32 << (row as u32 % WORD_ROWS as u32)) - 1;
        let found = (word >> 32) as i32 + (word as u32 & below).count_ones() as i32;
        if row < 0 { -1 } else { found }
    };
    let inverse = rows.iter().map(|&row| rank(row)).collect();
    bitmap.fill(0);
    Dedup { unique, inverse, num_hits: rows.len() as u64 - misses }
}

/// Least significant digit first; positions stay ascending within a row.
fn by_radix(rows: &[i32], num_rows: u64) -> Dedup {
    const BUCKETS: usize = 1 << RADIX_BITS;
    let bits = u64::BITS - num_rows.saturating_sub(1).leading_zeros();
    let mut from: Vec<u64> = pairs(rows).collect();
    let mut to = vec![0_u64; from.len()];
    for pass in 0..bits.div_ceil(RADIX_BITS) {
        let shift = 32 + pass * RADIX_BITS;
        let digit = |pair: u64| (pair >> shift) as usize % BUCKETS;
        let mut starts = [0_u32; BUCKETS];
        for &pair in &from {
            starts[digit(pair)] += 1;
        }
        let mut sum = 0;
        for start in &mut starts {
            sum += std::mem::replace(start, sum);
        }
        for &pair in &from {
            let start = &mut starts[digit(pair)];
            to[*start as usize] = pair;
            *start += 1;
        }
        std::mem::swap(&mut from, &mut to);
    }
    from_sorted(&from, rows.len())
}

/// Refuses rows outside `lowest..num_rows`.
///
/// # Errors
/// [`Error::Argument`] naming the first such position.
pub(crate) fn check_rows(rows: &[i32], num_rows: u64, lowest: i32) -> Result<()> {
    let span = u32::try_from(num_rows as i64 - i64::from(lowest)).unwrap_or(u32::MAX);
    let inside = |row: i32| (row.wrapping_sub(lowest) as u32) < span;
    // No early exit: the loop over good rows, which is nearly always the case, then runs on vectors.
    if rows.iter().fold(true, |good, &row| good & inside(row)) {
        return Ok(());
    }
    let position = rows.iter().position(|&row| !inside(row)).unwrap_or(0);
    let row = rows[position];
    let miss = if lowest < 0 { " or -1 for a miss" } else { "" };
    Err(Error::argument(format!(
        "row {row} at position {position}: expected 0 <= row < {num_rows}{miss}; \
         the rows come from another bank's index"
    )))
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
            unique,
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
            prop_assert_eq!(&by_sort(&rows), &expected);
            prop_assert_eq!(&by_radix(&rows, num_rows as u64), &expected);
            prop_assert_eq!(&dedup(&rows, num_rows as u64).unwrap(), &expected);
            if num_rows < 10_000 {
                let words = (num_rows as usize).div_ceil(WORD_ROWS);
                let mut bitmap = vec![0; 3];
                for _ in 0..2 {
                    prop_assert_eq!(&by_bitmap(&rows, words, &mut bitmap), &expected);
                    prop_assert!(bitmap.iter().all(|&word| word == 0));
                }
            }
        }
    }

    #[test]
    fn rows_outside_are_named() {
        for (rows, lowest, at) in [
            (vec![0, 5, -2], -1, "row -2 at position 2"),
            (vec![0, 6, -1], -1, "row 6 at position 1"),
            (vec![0, -1], 0, "row -1 at position 1"),
            (vec![i32::MIN], -1, "position 0"),
            (vec![i32::MAX], 0, "position 0"),
        ] {
            let error = check_rows(&rows, 6, lowest).unwrap_err().to_string();
            assert!(error.contains(at), "{error}");
        }
        assert!(check_rows(&[0, 5, -1], 6, -1).is_ok());
        assert!(check_rows(&[i32::MAX - 1, -1], i32::MAX as u64, -1).is_ok());
        assert!(check_rows(&[0], 0, -1).is_err());
        assert!(check_rows(&[-1], 0, -1).is_ok());
    }
}

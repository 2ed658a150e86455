//! Sorted streams joined two by two, a batch of records at a time.
//!
//! Which of two heads comes first cannot be foretold, and a wrong guess costs a processor more than all the rest of a
//! record. So each step takes the head of the smaller key without a branch. Equal keys are few: those take one.

use std::cmp::Ordering;

use super::record::{BATCH, Item, less};
use super::spill::Reader;
use crate::Result;
use crate::ids::u64_of;

/// Records in order of key and tag, no two of them equal.
pub(super) struct Stream<'a, const W: usize> {
    items: [Item<W>; BATCH],
    used: usize,
    filled: usize,
    source: Source<'a, W>,
}

enum Source<'a, const W: usize> {
    Run(Reader<'a, W>),
    Pair(Box<[Stream<'a, W>; 2]>),
}

impl<'a, const W: usize> Stream<'a, W> {
    /// The records of all `readers`; `None` where there are none.
    pub(super) fn of(mut readers: Vec<Reader<'a, W>>) -> Option<Self> {
        let source = match readers.len() {
            0 => return None,
            1 => Source::Run(readers.pop()?),
            more => {
                let right = readers.split_off(more / 2);
                Source::Pair(Box::new([Self::of(readers)?, Self::of(right)?]))
            }
        };
        Some(Self { items: [([0; W], 0, 0); BATCH], used: 0, filled: 0, source })
    }

    /// The next records, none at the end; adds the number of those that were read for them to `read`.
    pub(super) fn next(&mut self, read: &mut u64) -> Result<&[Item<W>]> {
        self.refill(read)?;
        self.used = self.filled;
        Ok(&self.items[..self.filled])
    }

    fn rest(&self) -> &[Item<W>] {
        &self.items[self.used..self.filled]
    }

    fn refill(&mut self, read: &mut u64) -> Result<()> {
        (self.used, self.filled) = (0, 0);
        let pair = match &mut self.source {
            Source::Run(reader) => {
                self.filled = reader.fill(&mut self.items)?;
                *read += u64_of(self.filled);
                return Ok(());
            }
            Source::Pair(pair) => pair,
        };
        while self.filled < BATCH {
            for stream in pair.iter_mut() {
                if stream.rest().is_empty() {
                    stream.refill(read)?;
                }
            }
            let [left, right] = &mut **pair;
            let out = &mut self.items[self.filled..];
            let (from_left, from_right, number) = match (left.rest(), right.rest()) {
                ([], []) => break,
                (left, []) => (copy(left, out), 0, left.len().min(out.len())),
                ([], right) => (0, copy(right, out), right.len().min(out.len())),
                (left, right) => join(left, right, out),
            };
            left.used += from_left;
            right.used += from_right;
            self.filled += number;
        }
        Ok(())
    }
}

fn copy<const W: usize>(from: &[Item<W>], out: &mut [Item<W>]) -> usize {
    let number = from.len().min(out.len());
    out[..number].copy_from_slice(&from[..number]);
    number
}

/// Joins what fits into `out` and needs no look past the end of either side. Returns what it used of both, and made.
#[inline]
fn join<const W: usize>(left: &[Item<W>], right: &[Item<W>], out: &mut [Item<W>]) -> (usize, usize, usize) {
    let steps = left.len().min(right.len()).min(out.len());
    let (mut i, mut j) = (0, 0);
    for slot in &mut out[..steps] {
        let (a, b) = (&left[i], &right[j]);
        let later = less(&b.0, &a.0);
        // A mask, since a compiler makes a jump of what it is asked to choose.
        let mask = u64::from(later).wrapping_neg();
        let pick = |a: u64, b: u64| a ^ ((a ^ b) & mask);
        *slot = (std::array::from_fn(|word| pick(a.0[word], b.0[word])), pick(a.1, b.1), pick(a.2, b.2));
        i += usize::from(!later);
        j += usize::from(later);
        if a.0 == b.0 {
            // By key alone, that was `a`.
            let (from_left, from_right);
            (*slot, from_left, from_right) = by_tag(a, b);
            i = i - 1 + from_left;
            j += from_right;
        }
    }
    (i, j, steps)
}

/// The first of two records of one key, both where they are equal, and what that takes of each side.
#[cold]
fn by_tag<const W: usize>(a: &Item<W>, b: &Item<W>) -> (Item<W>, usize, usize) {
    match a.1.cmp(&b.1) {
        Ordering::Less => (*a, 1, 0),
        Ordering::Equal => ((a.0, a.1, a.2 + b.2), 1, 1),
        Ordering::Greater => (*b, 0, 1),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::mining::block::Record;

    proptest! {
        #[test]
        fn streams_come_out_sorted_and_equal_records_joined(
            runs in prop::collection::vec(prop::collection::btree_map((0u64..40, 0u32..3), 1u32..5, 0..200), 0..9),
        ) {
            let mut expected: BTreeMap<([u64; 2], u64), u64> = BTreeMap::new();
            let records: Vec<Vec<Record<2>>> = runs
                .iter()
                .map(|run| run.iter().map(|(&(key, tag), &count)| Record { key: [key % 7, key], tag, count }).collect())
                .collect();
            let mut records: Vec<Vec<Record<2>>> = records;
            for run in &mut records {
                run.sort_unstable_by_key(|record| (record.key, record.tag));
                for record in run {
                    *expected.entry((record.key, u64::from(record.tag))).or_default() += u64::from(record.count);
                }
            }
            let readers = records.iter().map(|run| Reader::Memory(run)).collect();
            let (mut found, mut read) = (Vec::new(), 0);
            if let Some(mut stream) = Stream::<2>::of(readers) {
                loop {
                    let items = stream.next(&mut read).unwrap();
                    if items.is_empty() {
                        break;
                    }
                    found.extend_from_slice(items);
                }
            }
            prop_assert_eq!(read, u64_of(records.iter().map(Vec::len).sum::<usize>()));
            prop_assert_eq!(found, expected.into_iter().map(|((key, tag), count)| (key, tag, count)).collect::<Vec<_>>());
        }
    }
}

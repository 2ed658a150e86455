//! A record of a sorted run: the longest n-gram of some occurrences, their tag and their number.

use super::window::{Key, MAX_WORDS};
use crate::Result;
use crate::wire::MAX_LEB128;

/// The most a record can take: head, key bytes, tag, count.
pub(super) const MAX_RECORD: usize = 1 + 8 * MAX_WORDS + 2 * MAX_LEB128;
/// A record and the bytes after it that a read or write of whole words touches.
pub(super) const ROOM: usize = MAX_RECORD + 8;
/// Records that are read, merged and written at a time.
pub(super) const BATCH: usize = 64;

/// A record as read: key, tag, count.
pub(super) type Item<const W: usize> = (Key<W>, u64, u64);

/// A key of at most two words as one number; keys compare as these do.
#[inline]
fn wide<const W: usize>(key: &Key<W>) -> u128 {
    (u128::from(key[0]) << 64) | u128::from(key.get(1).copied().unwrap_or(0))
}

/// Whether key `a` comes before key `b`; without a branch, since nothing foretells it.
#[inline]
pub(super) fn less<const W: usize>(a: &Key<W>, b: &Key<W>) -> bool {
    if W <= 2 {
        return wide(a) < wide(b);
    }
    a.iter().zip(b).rev().fold(false, |less, (a, b)| (a < b) | ((a == b) & less))
}

/// Whether `a` comes before `b`, by key and tag; without a branch.
#[inline]
pub(super) fn before<const W: usize>(a: &Item<W>, b: &Item<W>) -> bool {
    let tag = a.1 < b.1;
    if W <= 2 {
        let (a, b) = (wide(&a.0), wide(&b.0));
        return (a < b) | ((a == b) & tag);
    }
    a.0.iter().zip(&b.0).rev().fold(tag, |less, (a, b)| (a < b) | ((a == b) & less))
}

/// What can be written as a record.
pub(super) trait AsItem<const W: usize> {
    fn as_item(&self) -> Item<W>;
}

/// Visits `records` batch by batch.
pub(super) fn batches<const W: usize>(
    records: &[impl AsItem<W>],
    mut visit: impl FnMut(&[Item<W>]) -> Result<()>,
) -> Result<()> {
    let mut items = [([0; W], 0, 0); BATCH];
    for records in records.chunks(BATCH) {
        items.iter_mut().zip(records).for_each(|(item, record)| *item = record.as_item());
        visit(&items[..records.len()])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check<const W: usize>(records: &[([u64; MAX_WORDS], u64)]) {
        let items = records.iter().map(|(key, tag)| (std::array::from_fn(|word| key[word]), *tag, 1));
        let items: Vec<Item<W>> = items.collect();
        for (a, b) in items.iter().flat_map(|a| items.iter().map(move |b| (a, b))) {
            assert_eq!(before(a, b), (a.0, a.1) < (b.0, b.1));
            assert_eq!(less(&a.0, &b.0), a.0 < b.0);
        }
    }

    proptest! {
        #[test]
        fn comparisons_are_those_of_tuples(
            records in prop::collection::vec((prop::array::uniform6(prop::sample::select(vec![0, 1, 1 << 40, u64::MAX])), 0u64..3), 1..20),
        ) {
            check::<1>(&records);
            check::<2>(&records);
            check::<3>(&records);
            check::<6>(&records);
        }
    }
}

//! Choosing keys by what the longest match makes of them.
//!
//! A key **earns** the occurrences in which it is the longest match: its count less those of the kept keys that end in
//! it, each occurrence once. Keys that end in a key form a tree, whose parent is the longest key that is a proper
//! suffix. A key's earning is its count less the counts of its kept children; when a key goes, what it earned falls to
//! the nearest kept key above it, or to the fallback.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::KeySet;
use crate::ids::{saturating_u32, usize_of};
use crate::{Error, Result};

const NONE: u32 = u32::MAX;

impl KeySet {
    /// The subset of `budget` keys that is left after the key that earns least has gone, again and again; of equal ones the
    /// last row goes first. Rows in `pinned` (ascending) stay.
    ///
    /// # Errors
    /// [`Error::Argument`] for a pinned row past the end or more of them than the budget.
    pub fn select_by_gain(&self, budget: usize, pinned: &[u32]) -> Result<Self> {
        if pinned.len() > budget || pinned.last().is_some_and(|&row| usize_of(row) >= self.len()) {
            return Err(Error::argument(format!(
                "require: expected at most {budget} rows below {}, got {}",
                self.len(),
                pinned.len()
            )));
        }
        let mut parents = self.suffix_parents();
        let mut earned: Vec<i128> = self.counts().iter().map(|&count| i128::from(count)).collect();
        for (row, &parent) in parents.iter().enumerate() {
            if parent != NONE {
                earned[usize_of(parent)] -= i128::from(self.counts()[row]);
            }
        }
        let mut kept = vec![true; self.len()];
        let entry = |row: u32, earned: &[i128]| Reverse((earned[usize_of(row)], Reverse(row)));
        let mut heap: BinaryHeap<_> = (0..saturating_u32(self.len()))
            .filter(|row| pinned.binary_search(row).is_err())
            .map(|row| entry(row, &earned))
            .collect();
        let mut left = self.len();
        while left > budget {
            let Some(Reverse((value, Reverse(row)))) = heap.pop() else { break };
            if !kept[usize_of(row)] || value != earned[usize_of(row)] {
                continue; // gone, or worth more by now and entered again
            }
            kept[usize_of(row)] = false;
            left -= 1;
            let heir = kept_above(row, &mut parents, &kept);
            if heir != NONE && value != 0 {
                earned[usize_of(heir)] += value;
                if pinned.binary_search(&heir).is_err() {
                    heap.push(entry(heir, &earned));
                }
            }
        }
        let rows: Vec<u32> = (0..saturating_u32(self.len())).filter(|&row| kept[usize_of(row)]).collect();
        self.select(&rows)
    }

    /// For each row that of the longest key that is a proper suffix of it.
    fn suffix_parents(&self) -> Vec<u32> {
        let rows: HashMap<&[u32], u32> = self.iter().zip(0u32..).collect();
        self.iter().map(|key| (1..key.len()).find_map(|from| rows.get(&key[from..]).copied()).unwrap_or(NONE)).collect()
    }
}

/// The nearest kept key above `row`; ways that were found are shortened.
fn kept_above(row: u32, parents: &mut [u32], kept: &[bool]) -> u32 {
    let mut top = parents[usize_of(row)];
    while top != NONE && !kept[usize_of(top)] {
        top = parents[usize_of(top)];
    }
    let mut at = row;
    while at != NONE && at != top {
        at = std::mem::replace(&mut parents[usize_of(at)], top);
    }
    top
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::ids::u64_of;
    use crate::keyset::Arrays;

    /// What `row` earns by the definition: its occurrences in `text` that no longer kept key covers.
    fn earns(text: &[u32], key: &[u32], kept: &HashSet<Vec<u32>>) -> usize {
        let ends = (key.len()..=text.len()).filter(|&end| &text[end - key.len()..end] == key);
        ends.filter(|&end| !(key.len() + 1..=end).any(|len| kept.contains(&text[end - len..end]))).count()
    }

    proptest! {
        #[test]
        fn the_rest_is_what_brute_force_leaves(
            text in prop::collection::vec(0u32..3, 2..40),
            orders in prop::collection::hash_set(1usize..5, 1..4),
            budget in 0usize..12,
            pins in prop::collection::vec(any::<prop::sample::Index>(), 0..2),
        ) {
            let mut counts = std::collections::BTreeMap::<Vec<u32>, u64>::new();
            for &order in &orders {
                text.windows(order).for_each(|window| *counts.entry(window.to_vec()).or_default() += 1);
            }
            let tokens: Vec<u32> = counts.keys().flatten().copied().collect();
            let mut offsets = vec![0];
            counts.keys().for_each(|key| offsets.push(offsets[offsets.len() - 1] + u64_of(key.len())));
            let values: Vec<u64> = counts.values().copied().collect();
            let arrays = Arrays { tokens: &tokens, offsets: &offsets, counts: &values, documents: None };
            let keys = KeySet::from_arrays(arrays, 3, &[], String::new()).unwrap();
            let listed: Vec<Vec<u32>> = keys.iter().map(<[u32]>::to_vec).collect();
            let mut pinned: Vec<u32> = pins.iter().map(|pin| saturating_u32(pin.index(keys.len().max(1)))).collect();
            pinned.sort_unstable();
            pinned.dedup();
            pinned.retain(|&row| usize_of(row) < keys.len());
            prop_assume!(pinned.len() <= budget);
            let mut kept: HashSet<Vec<u32>> = listed.iter().cloned().collect();
            while kept.len() > budget {
                let free = (0..listed.len()).filter(|&row| kept.contains(&listed[row]) && !pinned.contains(&saturating_u32(row)));
                let worst = free.min_by_key(|&row| (earns(&text, &listed[row], &kept), Reverse(row))).unwrap();
                kept.remove(&listed[worst]);
            }
            let found = keys.select_by_gain(budget, &pinned).unwrap();
            prop_assert_eq!(found.iter().map(<[u32]>::to_vec).collect::<HashSet<_>>(), kept);
        }
    }
}

//! Runs to keys: ranges of first tokens are merged and counted apart.

use std::sync::{Mutex, PoisonError};

use super::control::{REPORT, Report, phase};
use super::group::Groups;
use super::merge::{self, Ranges};
use super::options::Means;
use super::select::{Candidate, Picker, Selection, Wanted};
use super::spill::Run;
use super::window::{Orders, Packing};
use crate::Result;
use crate::ids::MAX_ORDER;
use crate::keyset::{KeySet, RowBuilder};

/// What was counted, by order.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sums {
    pub(super) positions: Orders,
    pub(super) distinct: Orders,
    pub(super) frequent: Orders,
    pub(super) excluded: Orders,
}

/// Merges the runs, counts all orders and picks the keys, in row order.
pub(super) fn count<const W: usize>(
    packing: &Packing,
    runs: &[Run<W>],
    ranges: &Ranges<W>,
    num_long: usize,
    means: &Means,
    wanted: &Wanted<'_, W>,
    report: &mut Report<'_>,
) -> Result<(Sums, Vec<Candidate<W>>)> {
    let threads = means.threads.min(ranges.len());
    let capacity = merge::buffer_size(means.buffers(), runs.len());
    let total = ranges.weights.iter().sum();
    // The blocks that were sorted are gone, or are the runs: the other half of the memory is free.
    let selection = Mutex::new(Selection::<W>::new(wanted, means.memory / 2, means.memory));
    let parts = phase(report, "count", total, threads, |control| {
        let mut picker = Picker::new(&selection, wanted);
        let mut sums = Sums::default();
        while let Some(range) = control.take(ranges.len()) {
            let mut groups = Groups::new(packing, num_long, &mut picker);
            let mut seen = 0u64;
            ranges.merge(runs, range, capacity, |items, _| {
                seen = items.iter().fold(seen, |seen, item| seen.saturating_add(item.2));
                if seen >= REPORT {
                    control.advance(std::mem::take(&mut seen))?;
                }
                items.iter().try_for_each(|(key, tag, count)| groups.push(key, *tag, *count))
            })?;
            control.advance(seen)?;
            let (positions, distinct) = groups.finish()?;
            add(&mut sums.positions, &positions);
            add(&mut sums.distinct, &distinct);
        }
        picker.hand_over()?;
        (sums.frequent, sums.excluded) = (picker.frequent, picker.excluded);
        Ok(sums)
    })?;
    let mut sums = Sums::default();
    for part in parts {
        add(&mut sums.positions, &part.positions);
        add(&mut sums.distinct, &part.distinct);
        add(&mut sums.frequent, &part.frequent);
        add(&mut sums.excluded, &part.excluded);
    }
    let selection = selection.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok((sums, selection.into_rows(wanted)))
}

fn add(all: &mut Orders, one: &Orders) {
    (0..=MAX_ORDER).for_each(|order| all[order] += one[order]);
}

/// The key set of `rows`, which are in row order.
pub(super) fn key_set<const W: usize>(
    packing: &Packing,
    rows: &[Candidate<W>],
    vocab_size: u32,
    reserved: &[u32],
) -> Result<KeySet> {
    let mut builder = RowBuilder::new(rows.len(), vocab_size, reserved)?;
    for row in rows {
        builder.push(packing.tokens(&row.key), row.count, row.documents)?;
    }
    builder.finish(String::new())
}

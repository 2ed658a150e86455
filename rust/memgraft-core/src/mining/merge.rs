//! Merging sorted runs, range by range.

use std::ops::Range;

use super::control::{Report, phase};
use super::options::Means;
use super::record::Item;
use super::spill::{Reader, Run, SpillWriter};
use super::stream::Stream;
use super::stretch::{MAX_READ_BUFFER, MIN_READ_BUFFER, STREAM_BYTES};
use super::window::{Key, Packing};
use crate::Result;
use crate::ids::{u64_of, usize_of_u64};

/// The ranges of first tokens that are merged apart, as bounds on keys.
#[derive(Debug, Clone)]
pub(super) struct Ranges<const W: usize> {
    /// First keys of all ranges but the first.
    pub(super) bounds: Vec<Key<W>>,
    /// Occurrences of tokens that start in each range: the work it is.
    pub(super) weights: Vec<u64>,
}

impl<const W: usize> Ranges<W> {
    pub(super) fn new(packing: &Packing, token_weights: &[u64], parts: usize) -> Self {
        let cuts = super::plan::ranges(token_weights, parts);
        let inner = &cuts[1..cuts.len() - 1];
        let bounds = inner.iter().map(|&token| packing.first(token)).collect();
        let sum =
            |pair: &[u32]| token_weights[crate::ids::usize_of(pair[0])..crate::ids::usize_of(pair[1])].iter().sum();
        Self { bounds, weights: cuts.windows(2).map(sum).collect() }
    }

    /// One range of all keys.
    pub(super) fn whole() -> Self {
        Self { bounds: Vec::new(), weights: vec![0] }
    }

    /// Ranges of which the last holds the keys from `from` on.
    pub(super) fn starting(from: Key<W>) -> Self {
        Self { bounds: vec![from], weights: vec![0; 2] }
    }

    /// Adds a bound above all others.
    pub(super) fn bounded(mut self, to: Option<Key<W>>) -> Self {
        if let Some(to) = to {
            self.bounds.push(to);
            self.weights.push(0);
        }
        self
    }

    pub(super) fn len(&self) -> usize {
        self.weights.len()
    }

    fn read<'a>(&self, run: &'a Run<W>, range: usize, capacity: usize) -> Result<Reader<'a, W>> {
        let from = range.checked_sub(1).map(|before| self.bounds[before]);
        run.read(range, from, self.bounds.get(range).copied(), capacity)
    }

    /// Visits the records of one range of all `runs` in order of key and tag, equal ones joined, a batch at a time.
    /// Besides, `visit` gets the number of records that were read for it.
    pub(super) fn merge(
        &self,
        runs: &[Run<W>],
        range: usize,
        capacity: usize,
        mut visit: impl FnMut(&[Item<W>], u64) -> Result<()>,
    ) -> Result<()> {
        let readers = runs.iter().map(|run| self.read(run, range, capacity)).collect::<Result<Vec<_>>>()?;
        let Some(mut stream) = Stream::of(readers) else { return Ok(()) };
        loop {
            let mut read = 0;
            let items = stream.next(&mut read)?;
            if items.is_empty() {
                return Ok(());
            }
            visit(items, read)?;
        }
    }
}

/// Buffer per reader so that `num_runs` of them take `memory` bytes.
pub(super) fn buffer_size(memory: u64, num_runs: usize) -> usize {
    let share = usize_of_u64((memory / u64_of(num_runs.max(1))).min(u64_of(MAX_READ_BUFFER)));
    share.saturating_sub(STREAM_BYTES).max(MIN_READ_BUFFER)
}

/// Merges groups of runs into longer ones until few enough are left, those records that lie in the ranges `wanted`. Returns
/// them and the bytes written.
pub(super) fn reduce<const W: usize>(
    mut runs: Vec<Run<W>>,
    packing: &Packing,
    ranges: &Ranges<W>,
    wanted: Range<usize>,
    means: &Means,
    report: &mut Report<'_>,
) -> Result<(Vec<Run<W>>, u64)> {
    let (fan_in, memory) = (means.fan_in(), means.buffers());
    let mut written = 0;
    while runs.len() > fan_in {
        let groups: Vec<&[Run<W>]> = runs.chunks(fan_in).collect();
        let total = u64_of(groups.len() * wanted.len());
        let parts = phase(report, "merge", total, means.threads.min(groups.len()), |control| {
            let mut writer = SpillWriter::create(&means.temporary, packing)?;
            let mut merged = Vec::new();
            while let Some(index) = control.take(groups.len()) {
                let group = groups[index];
                let mut places = Vec::with_capacity(ranges.len());
                for range in 0..ranges.len() {
                    let mut open = writer.range();
                    if wanted.contains(&range) {
                        ranges
                            .merge(group, range, buffer_size(memory, group.len()), |items, _| open.push_all(items))?;
                        control.advance(1)?;
                    }
                    places.push(open.finish());
                }
                merged.push(writer.run(places)?);
            }
            Ok((merged, writer.len()))
        })?;
        runs = Vec::new();
        for (merged, bytes) in parts {
            runs.extend(merged);
            written += bytes;
        }
    }
    Ok((runs, written))
}

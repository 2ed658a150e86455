//! Merging sorted runs, range by range.

#![forbid(unsafe_code)]

use super::control::{Report, stage};
use super::options::Means;
use super::spill::{Item, Reader, Run, SpillWriter};
use super::stretch::MIN_READ_BUFFER;
use super::tournament::Tournament;
use super::window::{Key, Packing};
use crate::Result;
use crate::ids::{u64_of, usize_of_u64};

/// The tag of a head that stands for the end of a stream; no record has it.
const END_TAG: u64 = u64::MAX;

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

    /// Visits the records of one range of all `runs` in order of key and tag.
    pub(super) fn merge(
        &self,
        runs: &[Run<W>],
        range: usize,
        capacity: usize,
        mut visit: impl FnMut(&Item<W>) -> Result<()>,
    ) -> Result<()> {
        let mut readers = runs.iter().map(|run| self.read(run, range, capacity)).collect::<Result<Vec<_>>>()?;
        let mut heads = vec![([0; W], 0, 0); runs.len()];
        for (reader, head) in readers.iter_mut().zip(&mut heads) {
            if !reader.next(head)? {
                *head = ([u64::MAX; W], END_TAG, 0);
            }
        }
        if heads.is_empty() {
            return Ok(());
        }
        let less = |heads: &[Item<W>], a: usize, b: usize| {
            let ((key_a, tag_a, _), (key_b, tag_b, _)) = (&heads[a], &heads[b]);
            (key_a, tag_a, a) < (key_b, tag_b, b)
        };
        let mut tree = Tournament::new(heads.len(), |a, b| less(&heads, a, b));
        loop {
            let winner = tree.winner();
            if heads[winner].1 == END_TAG {
                return Ok(());
            }
            visit(&heads[winner])?;
            if !readers[winner].next(&mut heads[winner])? {
                heads[winner] = ([u64::MAX; W], END_TAG, 0);
            }
            tree.replay(|a, b| less(&heads, a, b));
        }
    }
}

/// Buffer per reader so that `num_runs` of them take `memory` bytes.
pub(super) fn buffer_size(memory: u64, num_runs: usize) -> usize {
    usize_of_u64((memory / u64_of(num_runs.max(1))).min(1 << 20)).max(MIN_READ_BUFFER)
}

/// Merges groups of runs into longer ones until few enough are left. Returns them and the bytes written.
pub(super) fn reduce<const W: usize>(
    mut runs: Vec<Run<W>>,
    packing: &Packing,
    ranges: &Ranges<W>,
    means: &Means,
    report: &mut Report<'_>,
) -> Result<(Vec<Run<W>>, u64)> {
    let (fan_in, memory) = (means.fan_in(), means.buffers());
    let mut written = 0;
    while runs.len() > fan_in {
        let groups: Vec<&[Run<W>]> = runs.chunks(fan_in).collect();
        let total = u64_of(groups.len() * ranges.len());
        let parts = stage(report, "merge", total, means.threads.min(groups.len()), |control| {
            let mut writer = SpillWriter::create(&means.temporary, packing)?;
            let mut merged = Vec::new();
            while let Some(index) = control.take(groups.len()) {
                let group = groups[index];
                let mut places = Vec::with_capacity(ranges.len());
                for range in 0..ranges.len() {
                    let mut open = writer.range();
                    let mut joined = Joiner::default();
                    ranges.merge(group, range, buffer_size(memory, group.len()), |item| {
                        joined.push(item, |(key, tag, count)| open.push(&key, tag, count))
                    })?;
                    joined.finish(|(key, tag, count)| open.push(&key, tag, count))?;
                    places.push(open.finish());
                    control.advance(1)?;
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

/// Adds up records of equal key and tag that follow one another.
#[derive(Default)]
pub(super) struct Joiner<const W: usize> {
    open: Option<Item<W>>,
}

impl<const W: usize> Joiner<W> {
    #[inline]
    pub(super) fn push(&mut self, item: &Item<W>, emit: impl FnOnce(Item<W>) -> Result<()>) -> Result<()> {
        match &mut self.open {
            Some((key, tag, count)) if *key == item.0 && *tag == item.1 => {
                *count += item.2;
                Ok(())
            }
            open => open.replace(*item).map_or(Ok(()), emit),
        }
    }

    pub(super) fn finish(self, emit: impl FnOnce(Item<W>) -> Result<()>) -> Result<()> {
        self.open.map_or(Ok(()), emit)
    }
}

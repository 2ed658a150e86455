//! Mining: the frequent n-grams of a corpus, with exact counts and document
//! frequencies of every order, within a memory budget.
//!
//! One sort serves all orders. A record for every position holds the longest
//! n-gram that starts there (cut at the document's end and at reserved
//! tokens), packed so that integers sort like tuples; see [`block`] for how
//! document frequency comes out of the same sort. Blocks of whole documents
//! are sorted by threads and kept, or spilled where the corpus is larger than
//! the memory; then ranges of first tokens are merged and counted apart. Every
//! number is a sum over documents, so that neither threads nor memory nor the
//! cut into blocks can change the result.

#![forbid(unsafe_code)]

mod block;
mod control;
mod group;
mod merge;
mod options;
mod plan;
mod scan;
mod select;
mod spill;
mod window;

use std::sync::{Mutex, PoisonError};

use block::bytes_per_position;
pub use control::Report;
use control::stage;
use group::Groups;
use merge::Ranges;
pub use options::{MIN_MEMORY, MineOptions, Mined};
use plan::Block;
use scan::Scan;
use select::{Picker, Selection};
use spill::{Run, SpillWriter};
use window::Packing;

use crate::corpus::Corpus;
use crate::ids::{MAX_ORDER, u64_of, usize_of};
use crate::{Error, Result};

/// Mines `corpus`; `report` hears of progress on the calling thread and may stop the work.
///
/// # Errors
/// [`Error::Argument`] for options that contradict themselves, [`Error::Token`] for a token outside the vocabulary,
/// [`Error::Limit`] where the selected keys outgrow the memory, [`Error::Io`] where spilling fails, [`Error::Corpus`]
/// where the files change meanwhile, and what `report` returns.
pub fn mine(corpus: &Corpus, options: &MineOptions, report: &mut Report<'_>) -> Result<Mined> {
    options.check()?;
    let packing = Packing::new(options.vocab_size, options.max_order());
    match packing.words() {
        1 => Task::<1>::new(corpus, options, packing).run(report),
        2 => Task::<2>::new(corpus, options, packing).run(report),
        3 => Task::<3>::new(corpus, options, packing).run(report),
        4 => Task::<4>::new(corpus, options, packing).run(report),
        5 => Task::<5>::new(corpus, options, packing).run(report),
        _ => Task::<6>::new(corpus, options, packing).run(report),
    }
}

struct Task<'a, const W: usize> {
    corpus: &'a Corpus,
    options: &'a MineOptions,
    packing: Packing,
    reserved: Vec<bool>,
}

impl<'a, const W: usize> Task<'a, W> {
    fn new(corpus: &'a Corpus, options: &'a MineOptions, packing: Packing) -> Self {
        let mut reserved = vec![false; usize_of(options.vocab_size)];
        for &token in &options.reserved {
            reserved[usize_of(token)] = true;
        }
        Self { corpus, options, packing, reserved }
    }

    fn run(&self, report: &mut Report<'_>) -> Result<Mined> {
        let Self { corpus, options, packing, .. } = self;
        let (threads, memory) = (options.threads, options.memory);
        let scan = scan::scan(corpus, &self.reserved, packing.max_order(), threads, report)?;
        let per_position = bytes_per_position(W);
        let in_memory = corpus.num_tokens().saturating_mul(per_position) <= memory / 2;
        let size =
            options.block_size.unwrap_or_else(|| plan::block_size(corpus.num_tokens(), per_position, memory, threads));
        let spills = !in_memory || options.block_size.is_some();
        let (blocks, num_long) = plan::blocks(corpus, size, packing.max_order());
        let ranges = Ranges::<W>::new(packing, &scan.weights, if threads == 1 { 1 } else { threads * 8 });
        let (runs, mut spilled) = self.sort(&blocks, &ranges, spills, report)?;
        let num_runs = runs.len();
        let buffers = memory / 8 / u64_of(threads);
        let fan_in = options.max_fan_in.unwrap_or_else(|| merge::max_fan_in(buffers));
        let (runs, again) = if spills {
            merge::reduce(runs, &ranges, fan_in, buffers, &options.temporary, threads, report)?
        } else {
            (runs, 0)
        };
        spilled += again;
        let mut mined = self.count(&runs, &ranges, num_long, buffers, &scan, report)?;
        mined.num_runs = u64_of(num_runs);
        mined.spilled_bytes = spilled;
        Ok(mined)
    }

    /// Sorts every block into a run. Returns the runs and the bytes spilled.
    fn sort(
        &self,
        blocks: &[Block],
        ranges: &Ranges<W>,
        spills: bool,
        report: &mut Report<'_>,
    ) -> Result<(Vec<Run<W>>, u64)> {
        let parts = stage(report, "sort", self.corpus.num_tokens(), self.options.threads, |control| {
            let mut writer = if spills { Some(SpillWriter::create(&self.options.temporary)?) } else { None };
            let mut runs = Vec::new();
            while let Some(index) = control.take(blocks.len()) {
                control.advance(0)?;
                let block = &blocks[index];
                let mut records = block::sorted(self.corpus, block, &self.reserved, &self.packing)?;
                runs.push(match &mut writer {
                    Some(writer) => writer.write_run(&records, &ranges.bounds)?,
                    None => {
                        records.shrink_to_fit();
                        Run::Memory(records)
                    }
                });
                control.advance(block.end - block.start)?;
            }
            Ok((runs, writer.map_or(0, |writer| writer.len())))
        })?;
        let spilled = parts.iter().map(|(_, bytes)| bytes).sum();
        Ok((parts.into_iter().flat_map(|(runs, _)| runs).collect(), spilled))
    }

    /// Merges the runs, counts all orders, checks the sums and picks the keys.
    fn count(
        &self,
        runs: &[Run<W>],
        ranges: &Ranges<W>,
        num_long: usize,
        buffers: u64,
        scan: &Scan,
        report: &mut Report<'_>,
    ) -> Result<Mined> {
        let options = self.options;
        let threads = options.threads.min(ranges.len());
        let capacity = merge::buffer_size(buffers, runs.len());
        let total = ranges.weights.iter().sum();
        // The blocks that were sorted are gone, or are the runs: the other half of the memory is free.
        let selection = Mutex::new(Selection::<W>::new(options.budgets(), options.memory / 2, options.memory));
        let parts = stage(report, "count", total, threads, |control| {
            let mut picker = Picker::new(&selection, options.budgets(), options.min_count);
            let mut sums = ([0; MAX_ORDER + 1], [0; MAX_ORDER + 1]);
            while let Some(range) = control.take(ranges.len()) {
                let mut groups = Groups::new(&self.packing, num_long, &mut picker);
                let mut seen = 0u64;
                ranges.merge(runs, range, capacity, |(key, tag, count)| {
                    seen += count;
                    if seen >= 1 << 20 {
                        control.advance(seen)?;
                        seen = 0;
                    }
                    groups.push(key, *tag, *count)
                })?;
                control.advance(seen)?;
                let (positions, distinct) = groups.finish()?;
                for order in 0..=MAX_ORDER {
                    sums.0[order] += positions[order];
                    sums.1[order] += distinct[order];
                }
            }
            picker.hand_over()?;
            Ok((picker.frequent, sums))
        })?;
        let mut selection = selection.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut mined = Mined::default();
        for (frequent, (positions, distinct)) in parts {
            for order in 0..=MAX_ORDER {
                mined.positions[order] += positions[order];
                mined.distinct[order] += distinct[order];
                mined.frequent[order] += frequent[order];
            }
        }
        for (order, &fits) in scan.fits.iter().enumerate().skip(1) {
            if mined.positions[order] != fits {
                return Err(self.not_conserved(order, fits, mined.positions[order]));
            }
        }
        mined.offsets.push(0);
        for order in 1..=MAX_ORDER {
            for candidate in selection.ranked(order) {
                mined.tokens.extend((0..order).filter_map(|slot| self.packing.token(&candidate.key, slot)));
                mined.offsets.push(u64_of(mined.tokens.len()));
                mined.counts.push(candidate.count);
                mined.documents.push(candidate.documents);
            }
        }
        Ok(mined)
    }

    fn not_conserved(&self, order: usize, fits: u64, counted: u64) -> Error {
        let path = self.corpus.paths().next().unwrap_or_else(|| std::path::Path::new("corpus"));
        Error::corpus(
            path,
            format!(
                "expected counts of order {order} to sum to the {fits} positions where such an n-gram fits, found {counted}: \
                 the files changed meanwhile, or memory is faulty; run again"
            ),
        )
    }
}

#[cfg(test)]
mod tests;

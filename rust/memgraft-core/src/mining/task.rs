//! Mining in one process.

use super::block::{self, bytes_per_position};
use super::choice::Excluded;
use super::control::{Report, phase};
use super::count::{self, Sums};
use super::merge::{self, Ranges};
use super::options::{MineOptions, Mined};
use super::plan::{self, CorpusBlock};
use super::scan::{self, Scan};
use super::select::Wanted;
use super::sketch::Sketch;
use super::spill::{Run, SpillWriter};
use super::window::{Key, Orders, Packing, with_words};
use super::{codec, options};
use crate::corpus::Corpus;
use crate::ids::{MAX_ORDER, u64_of, usize_of};
use crate::{Error, Result};

/// Mines `corpus`; `report` hears of progress on the calling thread and may stop the work.
///
/// # Errors
/// [`Error::Argument`] for options that contradict themselves, [`Error::Token`] for a token outside the vocabulary,
/// [`Error::Limit`] where the selected keys outgrow the memory, [`Error::Io`] where spilling fails, [`Error::Corpus`]
/// where the files change meanwhile, and what `report` returns.
pub fn mine(corpus: &Corpus, options: &MineOptions<'_>, report: &mut Report<'_>) -> Result<Mined> {
    options.check()?;
    let packing = Packing::new(options.vocab_size, options.choice.max_order());
    with_words!(packing, W => Task::<W>::new(corpus, options, packing).run(report))
}

/// What mining will take on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// Tokens that were sorted to learn it.
    pub sampled: u64,
    /// Bytes that their records take.
    pub sampled_bytes: u64,
    /// How often its records lie in the temporary folder at once: not at all where all fit the memory, twice where runs are
    /// merged into longer ones.
    pub copies: u64,
}

/// Sorts a sample of `corpus` and says what its records take; where mining does not spill, only if `always`.
///
/// With a sketch they are those of n-grams that occur twice in the sample alone: mining spills no fewer, since it knows
/// more of what recurs.
///
/// # Errors
/// As [`mine`].
pub fn estimate(corpus: &Corpus, options: &MineOptions<'_>, always: bool) -> Result<Estimate> {
    options.check()?;
    let packing = Packing::new(options.vocab_size, options.choice.max_order());
    with_words!(packing, W => Task::<W>::new(corpus, options, packing).estimate(always))
}

/// Positions of a sampled block, and the blocks that are sampled.
const SAMPLE: (u64, usize) = (1 << 18, 4);
/// Most bytes of a sketch of the sample: many slots for each of its n-grams.
const SAMPLE_SKETCH: u64 = 16 << 20;

struct Task<'a, const W: usize> {
    corpus: &'a Corpus,
    options: &'a MineOptions<'a>,
    packing: Packing,
    reserved: Vec<bool>,
}

impl<'a, const W: usize> Task<'a, W> {
    fn new(corpus: &'a Corpus, options: &'a MineOptions<'a>, packing: Packing) -> Self {
        let reserved = reserved_mask(options.vocab_size, &options.reserved);
        Self { corpus, options, packing, reserved }
    }

    fn in_memory(&self) -> bool {
        let records = self.corpus.num_tokens().saturating_mul(bytes_per_position(W));
        records <= self.options.means.memory / 2 && self.options.means.block_size.is_none()
    }

    fn block_size(&self) -> u64 {
        let means = &self.options.means;
        let tokens = self.corpus.num_tokens();
        means.block_size.unwrap_or_else(|| plan::block_size(tokens, bytes_per_position(W), means.memory, means.threads))
    }

    fn run(&self, report: &mut Report<'_>) -> Result<Mined> {
        let Self { corpus, options, packing, .. } = self;
        let means = &options.means;
        let excluded = excluded(options, packing, report)?;
        let wanted = Wanted::new(&options.choice, packing, excluded)?;
        let scan = scan::scan(corpus, &self.reserved, packing.max_order(), means.threads, report)?;
        let spills = !self.in_memory();
        let (blocks, num_long) = plan::blocks(corpus, self.block_size(), packing.max_order());
        let parts = if means.threads == 1 { 1 } else { means.threads * 8 };
        let ranges = Ranges::<W>::new(packing, &scan.weights, parts);
        let sketch = if means.sketch && spills && options.choice.min_count > 1 {
            Some(self.sketch(&blocks, means.memory / 4, report)?)
        } else {
            None
        };
        let (runs, mut spilled, dropped) = self.sort(&blocks, &ranges, spills, sketch.as_ref(), report)?;
        drop(sketch);
        let num_runs = runs.len();
        let (runs, again) =
            if spills { merge::reduce(runs, packing, &ranges, 0..ranges.len(), means, report)? } else { (runs, 0) };
        spilled += again;
        let (mut sums, rows) = count::count(packing, &runs, &ranges, num_long, means, &wanted, report)?;
        self.check_sums(&mut sums, &scan, &dropped)?;
        Ok(Mined {
            keys: count::key_set(packing, &rows, options.vocab_size, &options.reserved)?,
            positions: sums.positions,
            distinct: sums.distinct,
            frequent: sums.frequent,
            excluded: sums.excluded,
            num_runs: u64_of(num_runs),
            spilled_bytes: spilled,
        })
    }

    /// A first pass: which n-grams may occur twice in `blocks`.
    fn sketch(&self, blocks: &[CorpusBlock], bytes: u64, report: &mut Report<'_>) -> Result<Sketch> {
        let means = &self.options.means;
        let choice = &self.options.choice;
        let sketch = Sketch::new(bytes, choice.budgets.keys().copied());
        choice.required.iter().for_each(|key| sketch.keep(&self.packing.pack::<W>(key)));
        phase(report, "sketch", self.corpus.num_tokens(), means.threads, |control| {
            while let Some(index) = control.take(blocks.len()) {
                let block = &blocks[index];
                block::walk::<W>(self.corpus, block, &self.reserved, &self.packing, |_, key| {
                    sketch.add(&self.packing, &key);
                    Ok(())
                })?;
                control.advance(block.end - block.start)?;
            }
            Ok(())
        })?;
        Ok(sketch)
    }

    /// Sorts every block into a run. Returns the runs, the bytes spilled, and the n-grams that the sketch left out.
    fn sort(
        &self,
        blocks: &[CorpusBlock],
        ranges: &Ranges<W>,
        spills: bool,
        sketch: Option<&Sketch>,
        report: &mut Report<'_>,
    ) -> Result<(Vec<Run<W>>, u64, Orders)> {
        let means = &self.options.means;
        let parts = phase(report, "sort", self.corpus.num_tokens(), means.threads, |control| {
            let mut writer = if spills { Some(SpillWriter::create(&means.temporary, &self.packing)?) } else { None };
            let mut runs = Vec::new();
            let mut dropped = [0; MAX_ORDER + 1];
            while let Some(index) = control.take(blocks.len()) {
                control.advance(0)?;
                let block = &blocks[index];
                let (mut records, left_out) = block::sorted(self.corpus, block, &self.reserved, &self.packing, sketch)?;
                (0..=MAX_ORDER).for_each(|order| dropped[order] += left_out[order]);
                runs.push(match &mut writer {
                    Some(writer) => writer.write_run(&records, &ranges.bounds)?,
                    None => {
                        records.shrink_to_fit();
                        Run::Memory(records)
                    }
                });
                control.advance(block.end - block.start)?;
            }
            Ok((runs, writer.map_or(0, |writer| writer.len()), dropped))
        })?;
        let (mut all, mut spilled, mut dropped) = (Vec::new(), 0, [0; MAX_ORDER + 1]);
        for (runs, bytes, left_out) in parts {
            all.extend(runs);
            spilled += bytes;
            (0..=MAX_ORDER).for_each(|order| dropped[order] += left_out[order]);
        }
        Ok((all, spilled, dropped))
    }

    /// Every n-gram was counted, or left out by the sketch; those left out are distinct n-grams too.
    fn check_sums(&self, sums: &mut Sums, scan: &Scan, dropped: &Orders) -> Result<()> {
        let sketched = dropped.iter().any(|&count| count > 0);
        for (order, &dropped) in dropped.iter().enumerate().take(self.packing.max_order() + 1).skip(1) {
            if sketched && !self.options.choice.budgets.contains_key(&order) {
                continue;
            }
            sums.positions[order] += dropped;
            sums.distinct[order] += dropped;
            if sums.positions[order] != scan.fits[order] {
                let path = self.corpus.paths().next().unwrap_or_else(|| std::path::Path::new("corpus"));
                let cause = "the files changed meanwhile, or memory is faulty; run again";
                return Err(Error::corpus(path, not_conserved(order, scan.fits[order], sums.positions[order], cause)));
            }
        }
        Ok(())
    }

    fn estimate(&self, always: bool) -> Result<Estimate> {
        let means = &self.options.means;
        let runs = self.corpus.num_tokens().div_ceil(self.block_size().max(1));
        let copies = if self.in_memory() { 0 } else { 1 + u64::from(runs > u64_of(means.fan_in())) };
        let none = Estimate { sampled: 0, sampled_bytes: 0, copies };
        if copies == 0 && !always {
            return Ok(none);
        }
        match self.sample() {
            // A token outside the vocabulary: the first pass of the mining says where.
            Err(Error::Corpus { .. }) => Ok(none),
            found => found.map(|(sampled, sampled_bytes)| Estimate { sampled, sampled_bytes, ..none }),
        }
    }

    /// Positions of a sample, and bytes of their records.
    fn sample(&self) -> Result<(u64, u64)> {
        let MineOptions { means, choice, .. } = self.options;
        let (mut blocks, _) = plan::blocks(self.corpus, SAMPLE.0.min(self.block_size()), self.packing.max_order());
        let every = blocks.len().div_ceil(SAMPLE.1).max(1);
        blocks = blocks.into_iter().step_by(every).collect();
        let sketch = if means.sketch && choice.min_count > 1 {
            Some(self.sketch(&blocks, SAMPLE_SKETCH.min(means.memory / 4), &mut |_, _, _| Ok(()))?)
        } else {
            None
        };
        let (mut sampled, mut bytes) = (0, 0);
        for block in &blocks {
            let (records, _) = block::sorted::<W>(self.corpus, block, &self.reserved, &self.packing, sketch.as_ref())?;
            sampled += block.end - block.start;
            bytes += codec::encoded_len(&self.packing, &records);
        }
        Ok((sampled, bytes))
    }
}

pub(super) fn reserved_mask(vocab_size: u32, reserved: &[u32]) -> Vec<bool> {
    let mut mask = vec![false; usize_of(vocab_size)];
    for &token in reserved {
        mask[usize_of(token)] = true;
    }
    mask
}

pub(super) fn not_conserved(order: usize, fits: u64, counted: u64, cause: &str) -> String {
    format!(
        "expected counts of order {order} to sum to the {fits} positions where such an n-gram fits, found {counted}: {cause}"
    )
}

/// The n-grams of the evaluation text.
pub(super) fn excluded<const W: usize>(
    options: &MineOptions<'_>,
    packing: &Packing,
    report: &mut Report<'_>,
) -> Result<Excluded<W>> {
    let Some((corpus, from)) = &options.excluded else { return Ok(Excluded::default()) };
    let none = vec![false; usize_of(options.vocab_size)];
    let means: &options::Means = &options.means;
    scan::scan(corpus, &none, packing.max_order(), means.threads, report)?;
    let most = means.memory / 4 / u64_of(W * 8);
    if corpus.num_tokens() > most {
        return Err(Error::Limit {
            message: format!(
                "exclude: expected at most {most} tokens of evaluation text for this memory, got {}; give more memory",
                corpus.num_tokens()
            ),
        });
    }
    let mut keys: Vec<Key<W>> = Vec::new();
    let whole = CorpusBlock { start: 0, end: corpus.num_tokens(), document: 0, long: None };
    block::walk(corpus, &whole, &none, packing, |_, key| {
        keys.push(key);
        Ok(())
    })?;
    Ok(Excluded::new(keys, *from))
}

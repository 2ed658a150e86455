//! One part: the sorted run of some whole documents of a corpus, left in a file.
//!
//! Blocks are sorted one by one into a folder beside the file, so that a killed process loses the blocks it was at.
//! Blocks that are there are not sorted again, whatever memory and threads made them. Their merge is the part: the same
//! bytes whatever the blocks.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::block::{self, bytes_per_position};
use super::control::{REPORT, Report, phase, single};
use super::kin;
use super::left::{self, lock, partial, remove, remove_leftover};
use super::merge::{self, Ranges};
use super::options::{self, Means};
use super::plan::{self, CorpusBlock};
use super::record::batches;
use super::resolve::Resolver;
use super::runs::{Facts, RunSet, RunWriter, Shard, add_piece};
use super::scan;
use super::spill::Run;
use super::task::reserved_mask;
use super::window::{Packing, with_words};
use crate::corpus::Corpus;
use crate::ids::{MAX_ORDER, u64_of};
use crate::wire::push_leb128;
use crate::{Error, Result};

/// Run files that one merge reads at a time: each is an open file.
const MAX_FILES: usize = 256;

/// What a part is of.
#[derive(Debug, Clone)]
pub struct PartOptions {
    /// The longest order that can be selected from the part.
    pub max_order: usize,
    /// Every token is smaller than this.
    pub vocab_size: u32,
    /// Tokens that are in no key and end every n-gram.
    pub reserved: Vec<u32>,
    /// Which of the `world` shards this is, from 0.
    pub rank: u64,
    /// Into how many shards the corpus is cut.
    pub world: u64,
    /// The corpus given is the shard, a corpus of its own; else it is the whole, and its shard is cut out here.
    pub apart: bool,
    /// JSON that all parts must agree in.
    pub settings: Value,
    /// Memory, threads, disk.
    pub means: Means,
}

/// Leaves the part `options.rank` of `corpus` at `out`. A part that is there, of the same documents and settings, stays.
///
/// # Errors
/// [`Error::Argument`] for options that contradict themselves, [`Error::Fingerprint`] where `out` or what an unfinished
/// process left beside it is of something else, [`Error::Token`], [`Error::Io`], [`Error::Corpus`], and what `report`
/// returns.
pub fn mine_part(corpus: &Corpus, out: &Path, options: &PartOptions, report: &mut Report<'_>) -> Result<RunSet> {
    let PartOptions { max_order, vocab_size, rank, world, .. } = *options;
    options::check(vocab_size, &options.reserved, &options.means)?;
    if rank >= world || !(1..=MAX_ORDER).contains(&max_order) {
        return Err(Error::argument(format!(
            "expected a rank below the world and orders of 1 to {MAX_ORDER}, got rank {rank} of {world} and order {max_order}"
        )));
    }
    let packing = Packing::new(vocab_size, max_order);
    with_words!(packing, W => Part::<W>::new(corpus, out, options, packing, report)?.run(report))
}

struct Part<'a, const W: usize> {
    shard: Corpus,
    out: &'a Path,
    folder: PathBuf,
    means: &'a Means,
    packing: Packing,
    reserved: Vec<bool>,
    facts: Facts,
}

impl<'a, const W: usize> Part<'a, W> {
    fn new(
        corpus: &Corpus,
        out: &'a Path,
        options: &'a PartOptions,
        packing: Packing,
        report: &mut Report<'_>,
    ) -> Result<Self> {
        let threads = options.means.threads;
        let (shard, outline, leaves, shared_leaf) = if options.apart {
            (corpus.clone(), None, Vec::new(), None)
        } else {
            let (from, to) = (corpus.cut(options.rank, options.world), corpus.cut(options.rank + 1, options.world));
            let (start, end) = (corpus.document_start(from), corpus.document_start(to));
            let shared_leaf = if start < end { corpus.shared_leaf(start)? } else { None };
            (corpus.slice(from..to), Some(corpus.outline()?), corpus.leaves(start, end, threads)?, shared_leaf)
        };
        let reserved = reserved_mask(options.vocab_size, &options.reserved);
        let scan = scan::scan(&shard, &reserved, options.max_order, threads, report)?;
        let mut sorted = options.reserved.clone();
        sorted.sort_unstable();
        sorted.dedup();
        let empty = crate::fingerprint::Fingerprint([0; 32]);
        let facts = Facts {
            vocab_size: options.vocab_size,
            max_order: options.max_order,
            reserved: sorted,
            tokens: (0, options.vocab_size),
            num_records: 0,
            world: options.world,
            apart: options.apart,
            outline,
            settings: options.settings.clone(),
            shards: vec![Shard {
                rank: options.rank,
                fingerprint: shard.fingerprint(threads)?,
                num_tokens: shard.num_tokens(),
                num_documents: u64_of(shard.num_documents()),
                fits: scan.fits[1..].to_vec(),
                leaves,
                shared_leaf,
                lengths: (0, 0, empty),
            }],
            pieces: Vec::new(),
            longs: Vec::new(),
            block_of: None,
        };
        let folder = partial(out);
        Ok(Self { shard, out, folder, means: &options.means, packing, reserved, facts })
    }

    fn run(mut self, report: &mut Report<'_>) -> Result<RunSet> {
        if self.out.exists() {
            let found = RunSet::open(self.out)?;
            self.check_same(&found)?;
            remove_leftover(&self.folder)?;
            return Ok(found);
        }
        fs::create_dir_all(&self.folder)
            .map_err(|e| Error::io(&self.folder, "cannot be made; choose another place", e))?;
        let lock = lock(&self.folder)?;
        let mut blocks = self.known_blocks()?;
        blocks.extend(self.sort(&blocks, report)?);
        blocks.sort_by_key(|block| block.facts().pieces.first().copied());
        let fan_in = self.means.fan_in().min(MAX_FILES);
        while blocks.len() > fan_in {
            blocks = self.reduce(blocks, fan_in, report)?;
        }
        let set = self.merge(&blocks, report)?;
        drop(lock);
        remove(&self.folder)?;
        Ok(set)
    }

    /// The part at the final path is this part.
    fn check_same(&self, found: &RunSet) -> Result<()> {
        let (want, have) = (&self.facts, found.facts());
        let plain = |facts: &Facts| {
            let shards = facts.shards.iter().map(|shard| Shard { lengths: (0, 0, shard.fingerprint), ..shard.clone() });
            Facts { shards: shards.collect(), num_records: 0, settings: Value::Null, ..facts.clone() }
        };
        if plain(want) == plain(have) && kin::differing(&want.settings, &have.settings).is_none() {
            return Ok(());
        }
        let why = match (want.outline, have.outline) {
            (Some(_), None) => "a version before, which does not say of what corpus it is",
            _ => "another corpus, rank, world or settings",
        };
        Err(Error::Fingerprint {
            message: format!(
                "{}: expected the part that is to be mined, found one of {why}; remove it, or choose another out",
                found.path().display()
            ),
        })
    }

    /// Blocks that an earlier process has left.
    fn known_blocks(&self) -> Result<Vec<RunSet>> {
        left::blocks(&self.folder, |facts| {
            let mine = self.block_facts(facts.pieces.clone(), facts.longs.clone());
            let theirs = Facts { num_records: 0, settings: mine.settings.clone(), ..facts.clone() };
            theirs == mine && kin::differing(&facts.settings, &mine.settings).is_none()
        })
    }

    fn block_facts(&self, pieces: Vec<(u64, u64)>, longs: Vec<u64>) -> Facts {
        let block_of = Some(self.facts.shards[0].fingerprint);
        Facts { shards: Vec::new(), pieces, longs, block_of, ..self.facts.clone() }
    }

    /// Sorts what no block holds yet.
    fn sort(&self, known: &[RunSet], report: &mut Report<'_>) -> Result<Vec<RunSet>> {
        let Self { shard, means, packing, .. } = self;
        let mut done: Vec<(u64, u64)> = Vec::new();
        known.iter().flat_map(|set| &set.facts().pieces).for_each(|&piece| add_piece(&mut done, piece));
        let tokens = shard.num_tokens();
        let size = means
            .block_size
            .unwrap_or_else(|| plan::block_size(tokens, bytes_per_position(W), means.memory, means.threads));
        let blocks = plan::blocks_between(shard, &done, size, packing.max_order());
        let total = blocks.iter().map(|block| block.end - block.start).sum();
        let parts = phase(report, "sort", total, means.threads, |control| {
            let mut sets = Vec::new();
            while let Some(index) = control.take(blocks.len()) {
                control.advance(0)?;
                let block = &blocks[index];
                // Alone in its file, a long document has the first number there is.
                let numbered = CorpusBlock { long: block.long.map(|_| 0), ..block.clone() };
                let (records, _) = block::sorted::<W>(shard, &numbered, &self.reserved, packing, None)?;
                let longs = block.long.map(|_| u64_of(block.document)).into_iter().collect();
                let path = self.folder.join(format!("{}-{}.block", block.start, block.end));
                let mut writer = RunWriter::create(&path, packing)?;
                batches(&records, |items| writer.push_all(items))?;
                drop(records);
                sets.push(writer.finish(&self.block_facts(vec![(block.start, block.end)], longs))?);
                control.advance(block.end - block.start)?;
            }
            Ok(sets)
        })?;
        Ok(parts.into_iter().flatten().collect())
    }

    /// Merges groups of blocks into longer blocks.
    fn reduce(&self, blocks: Vec<RunSet>, fan_in: usize, report: &mut Report<'_>) -> Result<Vec<RunSet>> {
        let groups: Vec<&[RunSet]> = blocks.chunks(fan_in).collect();
        let merged = phase(report, "merge", u64_of(groups.len()), self.means.threads.min(groups.len()), |control| {
            let mut sets = Vec::new();
            while let Some(index) = control.take(groups.len()) {
                let group = groups[index];
                let (mut pieces, mut longs) = (Vec::new(), Vec::new());
                for set in group {
                    set.facts().pieces.iter().for_each(|&piece| add_piece(&mut pieces, piece));
                    longs.extend(&set.facts().longs);
                }
                let (from, to) = (pieces[0].0, left::end(&pieces));
                let path = self.folder.join(format!("{from}-{to}-{}.block", group.len()));
                let mut writer = RunWriter::create(&path, &self.packing)?;
                let mut at = 0;
                let runs: Vec<Run<W>> = group
                    .iter()
                    .map(|set| {
                        let run = Run::Named(Arc::new(RunSet::open(set.path())?), self.packing, at);
                        at += u64_of(set.facts().longs.len());
                        Ok(run)
                    })
                    .collect::<Result<_>>()?;
                let capacity = merge::buffer_size(self.means.buffers(), runs.len());
                Ranges::whole().merge(&runs, 0, capacity, |items, _| writer.push_all(items))?;
                let set = writer.finish(&self.block_facts(pieces, longs))?;
                for block in group.iter().filter(|block| block.path() != set.path()) {
                    fs::remove_file(block.path()).map_err(|e| Error::io(block.path(), "cannot be removed", e))?;
                }
                sets.push(set);
                control.advance(1)?;
            }
            Ok(sets)
        })?;
        let mut merged: Vec<RunSet> = merged.into_iter().flatten().collect();
        merged.sort_by_key(|block| block.facts().pieces.first().copied());
        Ok(merged)
    }

    /// Merges all blocks into the part.
    fn merge(&mut self, blocks: &[RunSet], report: &mut Report<'_>) -> Result<RunSet> {
        let mut numbers: Vec<u64> = blocks.iter().flat_map(|set| set.facts().longs.iter().copied()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let sets = blocks.iter().map(|set| RunSet::open(set.path()).map(Arc::new)).collect::<Result<Vec<_>>>()?;
        // Tags of a file count its own long documents; these are their numbers among all.
        let mut tables = Vec::new();
        let runs: Vec<Run<W>> = sets
            .into_iter()
            .map(|set| {
                let at = u64_of(tables.len());
                let places = set.facts().longs.iter().map(|long| numbers.partition_point(|other| other < long));
                tables.extend(places);
                Run::Named(set, self.packing, at)
            })
            .collect();
        let identity = self.facts.identity();
        let (mut writer, next) = RunWriter::resume(self.out, &self.folder, &identity, &self.packing)?;
        let ranges = next.map_or_else(Ranges::whole, |token| Ranges::starting(self.packing.first(token)));
        let range = ranges.len() - 1;
        let mut resolver = Resolver::new(&self.packing, numbers.len());
        let capacity = merge::buffer_size(self.means.buffers(), runs.len());
        let total = blocks.iter().map(|set| set.facts().num_records).sum();
        let first_long = u64_of(self.packing.max_order()) + 1;
        single(report, "merge", total, |control| {
            let (mut seen, mut resolved) = (0, Vec::new());
            ranges.merge(&runs, range, capacity, |items, read| {
                seen += read;
                if seen >= REPORT {
                    control.advance(std::mem::take(&mut seen))?;
                }
                for &(key, tag, count) in items {
                    let tag = match tag.checked_sub(first_long) {
                        Some(long) => first_long + u64_of(tables[crate::ids::usize_of_u64(long)]),
                        None => tag,
                    };
                    resolver.push(&(key, tag, count), |item| resolved.push(item));
                }
                writer.push_all(&resolved)?;
                resolved.clear();
                Ok(())
            })?;
            resolver.flush(|item| resolved.push(item));
            writer.push_all(&resolved)
        })?;
        let shard = &self.shard;
        let lengths = writer.lengths(|put| {
            let mut bytes = Vec::new();
            (0..shard.num_documents()).try_for_each(|document| {
                let (start, end) = shard.document(document);
                bytes.clear();
                push_leb128(&mut bytes, end - start);
                put(&bytes)
            })
        })?;
        self.facts.shards[0].lengths = lengths;
        writer.finish(&self.facts)
    }
}

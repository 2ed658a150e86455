//! What is done with parts: merging them into one, counting them into keys.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::control::{REPORT, Report, single};
use super::count;
use super::left::{lock, partial, remove, remove_leftover};
use super::merge::{self, Ranges};
use super::options::{self, MAX_FILES, Means, MineOptions, Mined};
use super::parts::{MergedFacts, Parts, check_kin};
use super::runs::{Facts, RunSet, RunWriter};
use super::select::Wanted;
use super::splice::{self, CAPACITY, MOST_RECORDS, Splice, with_chunks};
use super::task::{excluded, not_conserved};
use super::window::{Packing, with_words};
use crate::ids::u64_of;
use crate::{Error, Result};

/// Merges parts into one at `out`: all their first tokens, or those of range `range.0` of `range.1`, which the parts alone
/// decide. A merge that was killed goes on where it was; one that is there stays.
///
/// # Errors
/// [`Error::Fingerprint`] for parts that do not belong together, are doubled, or where `out` is something else,
/// [`Error::Format`] for a damaged part, [`Error::Argument`], [`Error::Io`], and what `report` returns.
pub fn merge_parts(
    paths: &[PathBuf],
    out: &Path,
    range: Option<(usize, usize)>,
    means: &Means,
    report: &mut Report<'_>,
) -> Result<RunSet> {
    let parts = Parts::open(paths)?;
    let mut facts = parts.facts.clone();
    options::check(facts.vocab_size, &facts.reserved, means)?;
    if let Some(range) = range {
        facts.tokens = parts.cut(range)?;
    }
    if out.exists() {
        let found = RunSet::open(out)?;
        let same = found.facts().shards.len() == facts.shards.len()
            && found.facts().shards.iter().zip(&facts.shards).all(|(a, b)| a.same(b))
            && found.facts().tokens == facts.tokens;
        check_kin(&parts.sets[0], &found)?;
        if same {
            remove_leftover(&partial(out))?;
            return Ok(found);
        }
        return Err(Error::Fingerprint {
            message: format!(
                "{}: expected the merge of the parts given, found one of others; remove it, or choose another out",
                out.display()
            ),
        });
    }
    let packing = Packing::new(facts.vocab_size, facts.max_order);
    with_words!(packing, W => write::<W>(&parts, facts, out, &packing, means, report))
}

/// Bytes of every part that go into the merge of a range, as for [`merge_parts`]: at least, at most.
///
/// # Errors
/// As [`merge_parts`].
pub fn range_bytes(paths: &[PathBuf], range: (usize, usize)) -> Result<Vec<(u64, u64)>> {
    let parts = Parts::open(paths)?;
    let (from, to) = parts.cut(range)?;
    let bytes = |set: &Arc<RunSet>| {
        let records: u64 = set.weights().map(|(_, bytes)| bytes).sum();
        let (least, most) = set.bytes_of(from, to);
        (least, set.num_bytes().saturating_sub(records).saturating_add(most))
    };
    Ok(parts.sets.iter().map(bytes).collect())
}

fn write<const W: usize>(
    parts: &Parts,
    mut facts: Facts,
    out: &Path,
    packing: &Packing,
    means: &Means,
    report: &mut Report<'_>,
) -> Result<RunSet> {
    let folder = partial(out);
    fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, "cannot be made; choose another place", e))?;
    let locked = lock(&folder)?;
    let (mut writer, next) = RunWriter::<W>::resume(out, &folder, &facts.identity(), packing)?;
    let (from, to) = facts.tokens;
    let from = next.unwrap_or(from);
    let merged = if from < to { records(parts, (from, to), packing, means, &mut writer, report) } else { Ok(()) };
    if let Err(error) = merged {
        if matches!(error, Error::Format { .. }) {
            // Of a part that is damaged, records may have been written before its checksum was seen: once it is mended, the
            // merge starts anew. Best effort, since the first error is the one to report.
            drop((writer, locked));
            remove(&folder).ok();
        }
        return Err(error);
    }
    for shard in &mut facts.shards {
        let Some((set, source)) = parts.source(shard.rank) else { continue };
        shard.lengths = writer.lengths(|put| set.read_lengths(source, |bytes| put(bytes)))?;
    }
    let set = writer.finish(&facts)?;
    drop(locked);
    remove(&folder)?;
    Ok(set)
}

/// Merges the records of first tokens `tokens`.
fn records<const W: usize>(
    parts: &Parts,
    tokens: (u32, u32),
    packing: &Packing,
    means: &Means,
    writer: &mut RunWriter<W>,
    report: &mut Report<'_>,
) -> Result<()> {
    let total = parts.sets.iter().map(|set| set.facts().num_records).fold(0, u64::saturating_add);
    if !splice::fits(packing, &parts.sets, means) {
        return joined(parts, tokens, packing, means, writer, total, report);
    }
    with_chunks!(packing, C => {
        spliced::<W, C>(&mut Splice::open(packing, &parts.sets, tokens, CAPACITY)?, writer, total, report)
    })
}

/// Copies the records of `splice`.
fn spliced<const W: usize, const C: usize>(
    splice: &mut Splice<'_, C>,
    writer: &mut RunWriter<W>,
    total: u64,
    report: &mut Report<'_>,
) -> Result<()> {
    single(report, "merge", total, |control| {
        let mut seen = 0;
        while let Some(token) = splice.token(&mut seen)? {
            if writer.start(token)? {
                splice.restart();
            }
            let written = splice.read(writer.room(MOST_RECORDS), &mut seen)?;
            writer.wrote(written.bytes, written.records)?;
            if seen >= REPORT {
                control.advance(std::mem::take(&mut seen))?;
            }
        }
        Ok(())
    })
}

/// Merges the records of first tokens `tokens` decoded.
fn joined<const W: usize>(
    parts: &Parts,
    tokens: (u32, u32),
    packing: &Packing,
    means: &Means,
    writer: &mut RunWriter<W>,
    total: u64,
    report: &mut Report<'_>,
) -> Result<()> {
    let bound = (tokens.1 < parts.facts.vocab_size).then(|| packing.first(tokens.1));
    let ranges = Ranges::starting(packing.first(tokens.0)).bounded(bound);
    let runs = parts.runs::<W>(packing);
    let (runs, _) = merge::reduce(runs, packing, &ranges, 1..2, &few_files(means), report)?;
    let capacity = merge::buffer_size(means.buffers(), runs.len());
    single(report, "merge", total, |control| {
        let mut seen = 0;
        ranges.merge(&runs, 1, capacity, |items, read| {
            seen += read;
            if seen >= REPORT {
                control.advance(std::mem::take(&mut seen))?;
            }
            writer.push_all(items)
        })
    })
}

/// The same means, with no more files open than a process may have.
fn few_files(means: &Means) -> Means {
    Means { max_fan_in: Some(means.fan_in().min(MAX_FILES / means.threads.max(1)).max(2)), ..means.clone() }
}

/// How many parts a merge, and how many a selection, reads as they are. Of more, groups are first merged in the temporary
/// folder; of parts of version 1.0 a merge reads as many as a selection.
pub fn most_parts(means: &Means) -> (usize, usize) {
    let decoded = few_files(means).fan_in();
    (splice::most(means).max(decoded), decoded)
}

/// Counts parts that make up a whole corpus and picks the keys: those that mining the corpus in one process picks.
///
/// Vocabulary and reserved tokens of `options` are those of the parts.
///
/// # Errors
/// As [`merge_parts`] and [`super::mine`].
pub fn select_parts(
    paths: &[PathBuf],
    options: &MineOptions<'_>,
    report: &mut Report<'_>,
) -> Result<(Mined, MergedFacts)> {
    let parts = Parts::open(paths)?;
    let merged = parts.whole()?;
    let options =
        MineOptions { vocab_size: parts.facts.vocab_size, reserved: parts.facts.reserved.clone(), ..options.clone() };
    options.check()?;
    let (wanted, has) = (options.choice.max_order(), parts.facts.max_order);
    if wanted > has {
        return Err(Error::argument(format!(
            "orders: expected at most {has}, the longest that the parts hold, got {wanted}; mine the parts with that order"
        )));
    }
    let packing = Packing::new(options.vocab_size, has);
    let mined = with_words!(packing, W => select::<W>(&parts, &options, &packing, report))?;
    Ok((mined, merged))
}

fn select<const W: usize>(
    parts: &Parts,
    options: &MineOptions<'_>,
    packing: &Packing,
    report: &mut Report<'_>,
) -> Result<Mined> {
    let means = &options.means;
    let excluded = excluded(options, packing, report)?;
    let wanted = Wanted::<W>::new(&options.choice, packing, excluded)?;
    let totals = parts.facts.totals().unwrap_or_default();
    let pieces = if means.threads == 1 { 1 } else { means.threads * 8 };
    let mut ranges = Ranges::<W>::new(packing, &parts.weights(), pieces);
    // Progress counts occurrences; how they are shared among ranges is not known.
    ranges.weights.fill(0);
    ranges.weights[0] = totals[1];
    let runs = parts.runs::<W>(packing);
    let (runs, spilled_bytes) = merge::reduce(runs, packing, &ranges, 0..ranges.len(), &few_files(means), report)?;
    let (sums, rows) = count::count(packing, &runs, &ranges, 0, means, &wanted, report)?;
    let counted = sums.positions.iter().zip(&totals).enumerate().skip(1);
    for (order, (&counted, &fits)) in counted.take(packing.max_order()) {
        if counted != fits {
            let cause = "a part was not written by this tool; mine the parts again";
            return Err(Error::format(parts.sets[0].path(), not_conserved(order, fits, counted, cause)));
        }
    }
    Ok(Mined {
        keys: count::key_set(packing, &rows, options.vocab_size, &options.reserved)?,
        positions: sums.positions,
        distinct: sums.distinct,
        frequent: sums.frequent,
        excluded: sums.excluded,
        num_runs: u64_of(parts.sets.len()),
        spilled_bytes,
    })
}

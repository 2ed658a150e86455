//! Parts that belong together: merged into one, or counted into keys.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::control::{REPORT, Report, single};
use super::count;
use super::merge::{self, Joiner, Ranges};
use super::options::{self, Means, MineOptions, Mined};
use super::part::lock;
use super::runs::{Facts, RunSet, RunWriter, Shard};
use super::select::Wanted;
use super::spill::Run;
use super::task::{excluded, not_conserved};
use super::window::Packing;
use super::{codec, plan};
use crate::corpus::content::Root;
use crate::fingerprint::Fingerprint;
use crate::ids::{u64_of, usize_of};
use crate::{Error, Result};

/// Run files open at a time.
const MAX_FILES: usize = 256;

/// What parts say about the corpus that all of them make up.
#[derive(Debug, Clone)]
pub struct MergedFacts {
    /// Fingerprint of the corpus; where shards are corpora of their own, of their fingerprints.
    pub fingerprint: Fingerprint,
    /// Its tokens.
    pub num_tokens: u64,
    /// Its documents.
    pub num_documents: u64,
    /// Shards that it was cut into.
    pub world: u64,
    /// JSON that the parts agree in.
    pub settings: Value,
}

/// First tokens from, to, and the file that has them.
type Span<'a> = (u32, u32, &'a RunSet);

/// Parts, checked: of one corpus and one setting, every stretch once.
struct Parts {
    sets: Vec<Arc<RunSet>>,
    /// What is common, with all shards and all first tokens.
    facts: Facts,
}

impl Parts {
    fn open(paths: &[PathBuf]) -> Result<Self> {
        let sets = paths.iter().map(|path| RunSet::open(path).map(Arc::new)).collect::<Result<Vec<_>>>()?;
        let first = sets.first().ok_or_else(|| Error::argument("parts: expected at least one run file, got none"))?;
        let mut shards: BTreeMap<u64, (Shard, Vec<Span<'_>>)> = BTreeMap::new();
        for set in &sets {
            check_kin(first, set)?;
            let (from, to) = set.facts().tokens;
            for shard in &set.facts().shards {
                let (known, ranges) = shards.entry(shard.rank).or_insert_with(|| (shard.clone(), Vec::new()));
                if !known.same(shard) {
                    return Err(Error::Fingerprint {
                        message: format!(
                            "{}: expected shard {} to be {}, as in the other parts, found {}; mine it again from the same \
                             corpus",
                            set.path().display(),
                            shard.rank,
                            known.fingerprint,
                            shard.fingerprint
                        ),
                    });
                }
                ranges.push((from, to, set));
            }
        }
        let mut tokens = None;
        for (rank, (_, ranges)) in &mut shards {
            ranges.sort_by_key(|&(from, to, _)| (from, to));
            for pair in ranges.windows(2) {
                if pair[1].0 < pair[0].1 || (pair[0].0, pair[0].1) == (pair[1].0, pair[1].1) && pair[0].0 < pair[0].1 {
                    let (a, b) = (pair[0].2.path().display(), pair[1].2.path().display());
                    return Err(Error::Fingerprint {
                        message: format!(
                            "parts: expected every shard once, found shard {rank} in {a} and in {b}; leave one out"
                        ),
                    });
                }
                if pair[1].0 > pair[0].1 {
                    return Err(missing(*rank, pair[0].1, pair[1].0));
                }
            }
            let span = (ranges[0].0, ranges[ranges.len() - 1].1);
            let (from, to) = *tokens.get_or_insert(span);
            if from != span.0 || to != span.1 {
                let at = if from < span.0 { (from, span.0) } else { (span.1.min(to), span.1.max(to)) };
                return Err(missing(*rank, at.0, at.1));
            }
        }
        let facts = Facts {
            tokens: tokens.unwrap_or_default(),
            shards: shards.into_values().map(|(shard, _)| shard).collect(),
            ..first.facts().clone()
        };
        if facts.totals().is_none() {
            return Err(Error::format(first.path(), "the parts hold more positions than any corpus; mine them again"));
        }
        Ok(Self { sets, facts })
    }

    fn source(&self, rank: u64) -> Option<(&RunSet, &Shard)> {
        self.sets.iter().find_map(|set| Some((&**set, set.facts().shards.iter().find(|shard| shard.rank == rank)?)))
    }

    fn runs<const W: usize>(&self, packing: &Packing) -> Vec<Run<W>> {
        self.sets.iter().map(|set| Run::Named(Arc::clone(set), *packing, 0)).collect()
    }

    /// Bytes by first token of all parts.
    fn weights(&self) -> Vec<u64> {
        let mut weights = vec![0u64; usize_of(self.facts.vocab_size)];
        for (token, bytes) in self.sets.iter().flat_map(|set| set.weights()) {
            weights[usize_of(token)] = weights[usize_of(token)].saturating_add(bytes);
        }
        weights
    }

    /// Says that the shards are all there are, and what they make up.
    fn whole(&self) -> Result<MergedFacts> {
        let facts = &self.facts;
        if let Some(rank) = (0..facts.world).find(|rank| facts.shards.binary_search_by_key(rank, |s| s.rank).is_err()) {
            let have = facts.shards.len();
            return Err(Error::Fingerprint {
                message: format!(
                    "parts: expected all {} shards of the corpus, found {have}; shard {rank} is missing: mine it with \
                     --rank {rank} --world {}",
                    facts.world, facts.world
                ),
            });
        }
        if facts.tokens != (0, facts.vocab_size) {
            let (from, to) = facts.tokens;
            let gap = if from > 0 { (0, from) } else { (to, facts.vocab_size) };
            return Err(missing(0, gap.0, gap.1));
        }
        let sum = |number: fn(&Shard) -> u64| facts.shards.iter().map(number).fold(0, u64::saturating_add);
        let (num_tokens, num_documents) = (sum(|shard| shard.num_tokens), sum(|shard| shard.num_documents));
        let fingerprint = match (facts.apart, facts.shards.as_slice()) {
            (true, [shard]) => shard.fingerprint,
            (true, shards) => {
                let mut hasher = blake3::Hasher::new();
                hasher.update(b"memgraft corpus parts v1");
                hasher.update(&facts.world.to_le_bytes());
                for shard in shards {
                    hasher.update(&shard.fingerprint.0);
                }
                Fingerprint(*hasher.finalize().as_bytes())
            }
            (false, shards) => {
                let mut root = Root::new(num_tokens, num_documents);
                shards.iter().flat_map(|shard| &shard.leaves).for_each(|leaf| root.add_leaf(leaf));
                let mut end = 0u64;
                for shard in shards {
                    self.visit_lengths(shard.rank, |length| {
                        end = end.saturating_add(length);
                        root.add_end(end);
                    })?;
                }
                root.finish()
            }
        };
        Ok(MergedFacts { fingerprint, num_tokens, num_documents, world: facts.world, settings: facts.settings.clone() })
    }

    fn visit_lengths(&self, rank: u64, mut visit: impl FnMut(u64)) -> Result<()> {
        let Some((set, shard)) = self.source(rank) else { return Ok(()) };
        let mut held: Vec<u8> = Vec::new();
        set.read_lengths(shard, |bytes| {
            for &byte in bytes {
                held.push(byte);
                if byte & 0x80 == 0 {
                    visit(codec::read_leb128(&held, &mut 0).unwrap_or(u64::MAX));
                    held.clear();
                }
                if held.len() > 10 {
                    return Err(Error::format(
                        set.path(),
                        "the lengths of its documents are damaged; mine the part again",
                    ));
                }
            }
            Ok(())
        })
    }
}

fn missing(rank: u64, from: u32, to: u32) -> Error {
    Error::Fingerprint {
        message: format!(
            "parts: expected every first token of every shard, found none of {from} to {to} of shard {rank}; give the run \
             file that has them too"
        ),
    }
}

/// Both parts are of one kind.
fn check_kin(first: &RunSet, set: &RunSet) -> Result<()> {
    let (a, b) = (first.facts(), set.facts());
    let differs = |what: &str, a: String, b: String| {
        Err(Error::Fingerprint {
            message: format!(
                "{}: expected the {what} of {}, {a}, found {b}; merge parts of one corpus, tokenizer and setting",
                set.path().display(),
                first.path().display()
            ),
        })
    };
    if let Some(hex) = b.block_of.or(a.block_of) {
        return differs("kind", "a part".into(), format!("a block of the unfinished part {hex}"));
    }
    if a.vocab_size != b.vocab_size {
        return differs("vocabulary size", a.vocab_size.to_string(), b.vocab_size.to_string());
    }
    if a.max_order != b.max_order {
        return differs("longest order", a.max_order.to_string(), b.max_order.to_string());
    }
    if a.reserved != b.reserved {
        return differs("reserved tokens", format!("{:?}", a.reserved), format!("{:?}", b.reserved));
    }
    if (a.world, a.apart) != (b.world, b.apart) {
        let show = |facts: &Facts| format!("{} {}", facts.world, if facts.apart { "corpora" } else { "shards" });
        return differs("world", show(a), show(b));
    }
    if a.settings != b.settings {
        let keys = |value: &Value| value.as_object().map(|map| map.keys().cloned().collect::<Vec<_>>());
        let mut names = keys(&a.settings).unwrap_or_default();
        names.extend(keys(&b.settings).unwrap_or_default());
        let name = names.into_iter().find(|name| a.settings.get(name) != b.settings.get(name)).unwrap_or_default();
        let show = |value: &Value| value.get(&name).map_or_else(|| "nothing".into(), Value::to_string);
        return differs(&name, show(&a.settings), show(&b.settings));
    }
    Ok(())
}

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
    if let Some((index, count)) = range {
        if index >= count {
            return Err(Error::argument(format!(
                "range: expected one of 0 to {}, got {index}",
                count.saturating_sub(1)
            )));
        }
        let (from, to) = facts.tokens;
        let cuts = plan::ranges(&parts.weights(), count);
        let cut = |index: usize| cuts.get(index).copied().unwrap_or(facts.vocab_size).clamp(from, to);
        let last = index + 1 >= count;
        facts.tokens = (if index == 0 { from } else { cut(index) }, if last { to } else { cut(index + 1) });
    }
    if out.exists() {
        let found = RunSet::open(out)?;
        let same = found.facts().shards.len() == facts.shards.len()
            && found.facts().shards.iter().zip(&facts.shards).all(|(a, b)| a.same(b))
            && found.facts().tokens == facts.tokens;
        check_kin(&parts.sets[0], &found)?;
        if same {
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
    match packing.words() {
        1 => write::<1>(&parts, facts, out, &packing, means, report),
        2 => write::<2>(&parts, facts, out, &packing, means, report),
        3 => write::<3>(&parts, facts, out, &packing, means, report),
        4 => write::<4>(&parts, facts, out, &packing, means, report),
        5 => write::<5>(&parts, facts, out, &packing, means, report),
        _ => write::<6>(&parts, facts, out, &packing, means, report),
    }
}

fn write<const W: usize>(
    parts: &Parts,
    mut facts: Facts,
    out: &Path,
    packing: &Packing,
    means: &Means,
    report: &mut Report<'_>,
) -> Result<RunSet> {
    let mut name = out.file_name().map(std::ffi::OsStr::to_os_string).unwrap_or_default();
    name.push(".partial");
    let folder = out.with_file_name(name);
    fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, "cannot be made; choose another place", e))?;
    let locked = lock(&folder)?;
    let (mut writer, next) = RunWriter::<W>::resume(out, &folder, &facts.identity(), packing)?;
    let (from, to) = facts.tokens;
    let from = next.unwrap_or(from);
    if from < to {
        let bound = (to < facts.vocab_size).then(|| packing.first(to));
        let ranges = Ranges::starting(packing.first(from)).bounded(bound);
        let runs = parts.runs::<W>(packing);
        let (runs, _) = merge::reduce(runs, &ranges, &few_files(means), report)?;
        let capacity = merge::buffer_size(means.buffers(), runs.len());
        let total = parts.sets.iter().map(|set| set.facts().num_records).fold(0, u64::saturating_add);
        let mut joiner = Joiner::default();
        single(report, "merge", total, |control| {
            let mut seen = 0u64;
            ranges.merge(&runs, 1, capacity, |item| {
                seen += 1;
                if seen.is_multiple_of(REPORT) {
                    control.advance(REPORT)?;
                }
                joiner.push(item, |(key, tag, count)| writer.push(&key, tag, count))
            })?;
            joiner.finish(|(key, tag, count)| writer.push(&key, tag, count))
        })?;
    }
    for shard in &mut facts.shards {
        let Some((set, source)) = parts.source(shard.rank) else { continue };
        shard.lengths = writer.lengths(|put| set.read_lengths(source, |bytes| put(bytes)))?;
    }
    let set = writer.finish(&facts)?;
    drop(locked);
    fs::remove_dir_all(&folder).map_err(|e| Error::io(&folder, "cannot be removed", e))?;
    Ok(set)
}

/// The same means, with no more files open than a process may have.
fn few_files(means: &Means) -> Means {
    Means { max_fan_in: Some(means.fan_in().min(MAX_FILES / means.threads.max(1)).max(2)), ..means.clone() }
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
    let mined = match packing.words() {
        1 => select::<1>(&parts, &options, &packing, report),
        2 => select::<2>(&parts, &options, &packing, report),
        3 => select::<3>(&parts, &options, &packing, report),
        4 => select::<4>(&parts, &options, &packing, report),
        5 => select::<5>(&parts, &options, &packing, report),
        _ => select::<6>(&parts, &options, &packing, report),
    }?;
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
    let (runs, spilled_bytes) = merge::reduce(runs, &ranges, &few_files(means), report)?;
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

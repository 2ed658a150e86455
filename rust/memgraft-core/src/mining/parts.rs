//! Parts that belong together: merged into one, or counted into keys.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;

use super::kin;
use super::plan;
use super::runs::{Facts, RunSet, Shard};
use super::spill::Run;
use super::window::Packing;
use crate::corpus::content::Root;
use crate::fingerprint::Fingerprint;
use crate::ids::usize_of;
use crate::wire::{MAX_LEB128, read_leb128};
use crate::{Error, Result};

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

/// Two shards of fewer tokens may hold the same documents by chance, as long as others hold other ones.
const SAME_BY_CHANCE: u64 = 1 << 16;

/// First tokens from, to, and the file that has them.
type Span<'a> = (u32, u32, &'a RunSet);

/// Parts, checked: of one corpus and one setting, every stretch once.
pub(super) struct Parts {
    pub(super) sets: Vec<Arc<RunSet>>,
    /// What is common, with all shards and all first tokens.
    pub(super) facts: Facts,
}

impl Parts {
    pub(super) fn open(paths: &[PathBuf]) -> Result<Self> {
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
        check_apart(first.facts().apart, SAME_BY_CHANCE, shards.values().map(|(shard, _)| shard))?;
        let facts = Facts {
            tokens: tokens.unwrap_or_default(),
            shards: shards.into_values().map(|(shard, _)| shard).collect(),
            settings: sets
                .iter()
                .fold(first.facts().settings.clone(), |settings, set| kin::common(&settings, &set.facts().settings)),
            ..first.facts().clone()
        };
        if facts.totals().is_none() {
            return Err(Error::format(first.path(), "the parts hold more positions than any corpus; mine them again"));
        }
        Ok(Self { sets, facts })
    }

    pub(super) fn source(&self, rank: u64) -> Option<(&RunSet, &Shard)> {
        self.sets.iter().find_map(|set| Some((&**set, set.facts().shards.iter().find(|shard| shard.rank == rank)?)))
    }

    pub(super) fn runs<const W: usize>(&self, packing: &Packing) -> Vec<Run<W>> {
        self.sets.iter().map(|set| Run::Named(Arc::clone(set), *packing, 0)).collect()
    }

    /// Bytes by first token of all parts.
    pub(super) fn weights(&self) -> Vec<u64> {
        let mut weights = vec![0u64; usize_of(self.facts.vocab_size)];
        for (token, bytes) in self.sets.iter().flat_map(|set| set.weights()) {
            weights[usize_of(token)] = weights[usize_of(token)].saturating_add(bytes);
        }
        weights
    }

    /// First tokens from, and up to, of range `index` of `count`: of about equal bytes, as far as first tokens allow.
    pub(super) fn cut(&self, (index, count): (usize, usize)) -> Result<(u32, u32)> {
        let last = count.saturating_sub(1);
        if index >= count {
            return Err(Error::argument(format!("range: expected one of 0 to {last}, got {index}")));
        }
        let (from, to) = self.facts.tokens;
        let cuts = plan::ranges(&self.weights(), count);
        let at = |index: usize| cuts.get(index).copied().unwrap_or(self.facts.vocab_size).clamp(from, to);
        Ok((if index == 0 { from } else { at(index) }, if index == last { to } else { at(index + 1) }))
    }

    /// Says that the shards are all there are, and what they make up.
    pub(super) fn whole(&self) -> Result<MergedFacts> {
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
        let mut filled = facts.shards.iter().filter(|shard| shard.num_tokens > 0).map(|shard| shard.fingerprint);
        // A reader that gives every rank the same.
        if filled.next().is_some_and(|first| filled.all(|other| other == first)) {
            check_apart(facts.apart, 1, facts.shards.iter())?;
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
                let leaves: Vec<&Fingerprint> = shards.iter().flat_map(|shard| &shard.leaves).collect();
                check_shared_leaves(shards, &leaves)?;
                let mut root = Root::new(num_tokens, num_documents);
                leaves.iter().for_each(|leaf| root.add_leaf(leaf));
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
                    visit(read_leb128(&held, &mut 0).unwrap_or(u64::MAX));
                    held.clear();
                }
                if held.len() > MAX_LEB128 {
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

/// Every shard has read the tokens that the shards before it share a leaf with: else the fingerprint would name others than
/// those that were counted.
fn check_shared_leaves(shards: &[Shard], leaves: &[&Fingerprint]) -> Result<()> {
    let mut start = 0u64;
    for shard in shards {
        if shard.shared_leaf.is_some_and(|leaf| Root::leaf_at(leaves, start) != Some(&leaf)) {
            let rank = shard.rank;
            return Err(Error::Fingerprint {
                message: format!(
                    "parts: expected shard {rank} to be of the corpus that the shards before it are of, found other tokens \
                     where they meet: the corpus has changed between the ranks; mine its parts again"
                ),
            });
        }
        start = start.saturating_add(shard.num_tokens);
    }
    Ok(())
}

/// Of corpora of their own with at least so many tokens each, no two are the same: their documents would count twice. Of a
/// few short documents two may hold the same by chance.
fn check_apart<'a>(apart: bool, least: u64, shards: impl Iterator<Item = &'a Shard>) -> Result<()> {
    let mut known = BTreeMap::new();
    for shard in shards.filter(|shard| apart && shard.num_tokens >= least) {
        if let Some(other) = known.insert(shard.fingerprint.0, shard.rank) {
            let rank = shard.rank;
            return Err(Error::Fingerprint {
                message: format!(
                    "parts: expected every document once, found the same documents in shards {other} and {rank}; give each \
                     rank its own files, or where documents are to count twice, put both copies into one shard"
                ),
            });
        }
    }
    Ok(())
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
pub(super) fn check_kin(first: &RunSet, set: &RunSet) -> Result<()> {
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
    if let Some(name) = kin::differing(&a.settings, &b.settings) {
        let show = |value: &Value| value.get(&name).map_or_else(|| "nothing".into(), Value::to_string);
        return differs(&name, show(&a.settings), show(&b.settings));
    }
    if a.outline != b.outline {
        let old = "one that is not recorded, as by a version before: mine that part again";
        let show = |facts: &Facts| facts.outline.map_or_else(|| old.into(), |outline| outline.to_string());
        return differs("corpus", show(a), show(b));
    }
    Ok(())
}

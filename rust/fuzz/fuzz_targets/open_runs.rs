//! Any bytes as a run file: an error, or counts that add up; never a crash, a hang or a read out of bounds.
//!
//! An input is `flags | length of the facts, u16 | facts | number of sections | (token u32, length u16) each | bytes`;
//! the target lays it out as a file and mends places, lengths and checksums, so that the fuzzer gets past them. Bit 0 of
//! the flags: the facts stay as they are. Bit 1: the numbers of positions are not mended. Bit 2: the bytes after the flags
//! are the file. Bit 3: a merge of two ranges in place of one merge. Bit 4: the file says that it is of version 1.0. Bit 5:
//! the same once more, as other shards, so that two parts are merged. The bytes of a key that the facts name are mended with
//! the version. `seed_runs.py` writes inputs from parts of small corpora.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use memgraft_core::Error;
use memgraft_core::mining::{Choice, HEAD_LEN, MAGIC, Means, MineOptions, Mined, RunSet, merge_parts, select_parts};
use serde_json::{Value, json};

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let folder = folder.join(format!("memgraft-fuzz-runs-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("the fuzz folder can be made");
    folder
});

/// The parts of an input.
struct Input<'a> {
    flags: u8,
    facts: &'a [u8],
    sections: Vec<(u32, u64)>,
    bytes: &'a [u8],
}

impl<'a> Input<'a> {
    fn read(data: &'a [u8]) -> Option<Self> {
        let (&[flags, low, high], rest) = data.split_first_chunk::<3>()?;
        let (facts, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes([low, high])))?;
        let (&count, rest) = rest.split_first()?;
        let (entries, bytes) = rest.split_at_checked(usize::from(count) * 6)?;
        let sections = entries
            .as_chunks::<6>()
            .0
            .iter()
            .map(|&[a, b, c, d, low, high]| {
                (u32::from_le_bytes([a, b, c, d]), u64::from(u16::from_le_bytes([low, high])))
            })
            .collect();
        Some(Self { flags, facts, sections, bytes })
    }

    /// Writes the files, with `fits` as the positions of their only shard where given.
    fn write(&self, fits: Option<&[u64]>) -> Vec<PathBuf> {
        let copies = if self.flags & 32 == 0 { 1 } else { 2 };
        (0..copies)
            .map(|copy| {
                let part = FOLDER.join(format!("part-{copy}.mgr"));
                std::fs::write(&part, self.file(fits, copy, copies)).expect("the fuzz file can be written");
                part
            })
            .collect()
    }

    /// One of so many files that differ in the ranks of their shards alone.
    fn file(&self, fits: Option<&[u64]>, copy: u64, copies: u64) -> Vec<u8> {
        let parsed = if self.flags & 1 == 0 { serde_json::from_slice::<Value>(self.facts).ok() } else { None };
        let mut facts = parsed.unwrap_or(Value::Null);
        let end = HEAD_LEN + self.bytes.len();
        let lengths: Vec<usize> = shards(&mut facts)
            .map(|shard| {
                usize::try_from(shard["lengths"]["bytes"].as_u64().unwrap_or(0)).unwrap_or(0).min(self.bytes.len())
            })
            .collect();
        let records = self.bytes.len().saturating_sub(lengths.iter().sum());
        let mut at = HEAD_LEN + records;
        for (shard, length) in shards(&mut facts).zip(lengths) {
            let piece = self.bytes.get(at - HEAD_LEN..at - HEAD_LEN + length).unwrap_or_default();
            let checksum = blake3::hash(piece).to_hex().to_string();
            shard["lengths"] = json!({"offset": at, "bytes": piece.len(), "blake3": checksum});
            at += piece.len();
        }
        if let Some(world) = facts.get("world").and_then(Value::as_u64).filter(|_| copies > 1) {
            facts["world"] = json!(world.saturating_mul(copies));
            shards(&mut facts).for_each(|shard| {
                let rank = shard.get("rank").and_then(Value::as_u64).unwrap_or(0);
                shard["rank"] = json!(rank.saturating_add(world.saturating_mul(copy)));
                // Two corpora of their own that are the same are refused.
                if copy > 0 {
                    let named = blake3::hash(shard["fingerprint"].to_string().as_bytes());
                    shard["fingerprint"] = json!(named.to_hex().to_string());
                }
            });
        }
        if let (Some(fits), Some(shard)) = (fits, shards(&mut facts).next()) {
            shard["fits"] = json!(fits);
        }
        if let Some(map) = facts.as_object_mut() {
            match (key_bytes(map), self.flags & 16) {
                (Some(bytes), 0) => map.insert("key_bytes".into(), json!(bytes)),
                (_, 0) => None,
                _ => map.remove("key_bytes"),
            };
        }
        let text = if facts.is_null() { self.facts.to_vec() } else { facts.to_string().into_bytes() };
        let mut tail = (text.len() as u64).to_le_bytes().to_vec();
        tail.extend_from_slice(&text);
        let mut start = 0;
        for (index, &(token, length)) in self.sections.iter().enumerate() {
            let last = index + 1 == self.sections.len();
            let stop = if last { records } else { (start + length as usize).min(records) };
            tail.extend_from_slice(&token.to_le_bytes());
            tail.extend_from_slice(&[0; 4]);
            tail.extend_from_slice(&((HEAD_LEN + start) as u64).to_le_bytes());
            tail.extend_from_slice(&((stop - start) as u64).to_le_bytes());
            tail.extend_from_slice(blake3::hash(&self.bytes[start..stop]).as_bytes());
            start = stop;
        }
        let mut file = MAGIC.to_vec();
        file.extend_from_slice(&0x0102_0304_u32.to_le_bytes());
        file.extend_from_slice(&[1, 0, u8::from(self.flags & 16 == 0), 0]);
        file.extend_from_slice(&(end as u64).to_le_bytes());
        file.extend_from_slice(&(tail.len() as u64).to_le_bytes());
        file.extend_from_slice(blake3::hash(&tail).as_bytes());
        file.extend_from_slice(self.bytes);
        file.extend_from_slice(&tail);
        file
    }
}

/// Bytes of a key of so many tokens below the vocabulary size, as FORMAT.md packs them.
fn key_bytes(facts: &serde_json::Map<String, Value>) -> Option<u64> {
    let (vocab_size, max_order) = (facts.get("vocab_size")?.as_u64()?, facts.get("max_order")?.as_u64()?);
    let bits = u64::from(u64::BITS - vocab_size.leading_zeros()).clamp(1, 64);
    let slots = 64 / bits;
    let words = max_order.div_ceil(slots).max(1);
    let last = max_order.checked_sub((words - 1) * slots)?;
    Some((words - 1) * 8 + (last * bits).div_ceil(8))
}

fn shards(facts: &mut Value) -> impl Iterator<Item = &mut Value> {
    let listed = facts.get_mut("shards").and_then(Value::as_array_mut).map(Vec::as_mut_slice);
    listed.unwrap_or_default().iter_mut().filter(|shard| shard.get("lengths").is_some_and(Value::is_object))
}

fn means() -> Means {
    let memory = 18 << 20;
    Means { memory, temporary: FOLDER.clone(), threads: 1, sketch: false, block_size: None, max_fan_in: None }
}

/// Every n-gram of `paths`.
fn all_keys(paths: &[PathBuf], max_order: usize) -> Result<Mined, Error> {
    let budgets = (1..=max_order).map(|order| (order, None)).collect();
    let choice = Choice { budgets, ..Choice::default() };
    let options = MineOptions { choice, vocab_size: 1, reserved: Vec::new(), excluded: None, means: means() };
    select_parts(paths, &options, &mut |_, _, _| Ok(())).map(|(mined, _)| mined)
}

/// The order and the number of positions that a selection has found, where it refused for their sake.
fn found(error: &Error) -> Option<(usize, u64)> {
    let text = error.to_string();
    let order = text.split("counts of order ").nth(1)?.split(' ').next()?.parse().ok()?;
    Some((order, text.split("fits, found ").nth(1)?.split(':').next()?.parse().ok()?))
}

/// Merges `parts`, which hold nothing but whole records if `is_whole`.
fn merged(parts: &[PathBuf], ranges: usize, is_whole: bool) -> Result<Vec<PathBuf>, Error> {
    (0..ranges)
        .map(|index| {
            let out = FOLDER.join(format!("merged-{index}.mgr"));
            let range = (ranges > 1).then_some((index, ranges));
            let set = merge_parts(parts, &out, range, &means(), &mut |_, _, _| Ok(()))?;
            // A merge does not look into keys: one that has a hole is found by who does.
            let found = set.verify();
            assert!(found.is_ok() || !is_whole, "expected the merge of what is whole to be whole, found {found:?}");
            Ok(out)
        })
        .collect()
}

fuzz_target!(|data: &[u8]| {
    let part = FOLDER.join("part.mgr");
    let Some(&flags) = data.first() else { return };
    if flags & 4 != 0 {
        std::fs::write(&part, &data[1..]).expect("the fuzz file can be written");
        if let Ok(set) = RunSet::open(&part) {
            let _ = set.verify();
        }
        return;
    }
    let Some(input) = Input::read(data) else { return };
    let parts = input.write(None);
    let Ok(sets) = parts.iter().map(|part| RunSet::open(part)).collect::<Result<Vec<_>, _>>() else { return };
    let max_order = sets[0].facts().max_order;
    let is_whole = sets.iter().all(|set| set.verify().is_ok());
    let mut fits = sets[0].facts().shards.first().map(|shard| shard.fits.clone()).unwrap_or_default();
    let mut mined = all_keys(&parts, max_order);
    for _ in 0..max_order {
        let Some((order, count)) = mined.as_ref().err().and_then(found).filter(|_| input.flags & 2 == 0) else { break };
        fits[order - 1] = count / sets.len() as u64;
        input.write(Some(&fits));
        mined = all_keys(&parts, max_order);
    }
    let ranges = if input.flags & 8 == 0 { 1 } else { 2 };
    let outs = merged(&parts, ranges, is_whole);
    if let (Ok(mined), Ok(outs)) = (&mined, &outs) {
        let mut sums = [0u64; 17];
        for (row, key) in mined.keys.iter().enumerate() {
            sums[key.len()] += mined.keys.counts()[row];
            assert!(key.iter().all(|&token| token < mined.keys.vocab_size()));
        }
        assert_eq!(sums[1..=max_order], mined.positions[1..=max_order]);
        let again = all_keys(outs, max_order).expect("a merge of what can be selected can be selected");
        assert_eq!(again.keys.fingerprint(), mined.keys.fingerprint());
    }
    std::fs::remove_dir_all(&*FOLDER).expect("the fuzz folder can be removed");
    std::fs::create_dir_all(&*FOLDER).expect("the fuzz folder can be made");
});

//! Copied records against decoded ones, and what is refused.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use super::ahead::MOST;
use super::pair::SPLICE_BYTES;
use super::*;
use crate::fingerprint::Fingerprint;
use crate::ids::{low_u32, u64_of};
use crate::mining::codec::{Encoder, KeyBytes};
use crate::mining::gathered::Gathered;
use crate::mining::merge::Ranges;
use crate::mining::options::{MAX_FILES, Means};
use crate::mining::record::Item;
use crate::mining::runs::{Facts, RunSet, RunWriter};
use crate::mining::spill::Run;
use crate::mining::window::{Packing, with_words};
use crate::{Error, Result};

/// Tags of so many long documents are allowed.
const LONGS: u64 = 300;

fn facts(vocab_size: u32, max_order: usize, longs: u64) -> Facts {
    Facts {
        vocab_size,
        max_order,
        reserved: Vec::new(),
        tokens: (0, vocab_size),
        num_records: 0,
        world: 1,
        apart: true,
        outline: None,
        settings: json!({}),
        shards: Vec::new(),
        pieces: Vec::new(),
        longs: (0..longs).collect(),
        block_of: Some(Fingerprint([0; 32])),
    }
}

/// A file of these records, which rise.
fn written<const W: usize>(
    path: &Path,
    packing: &Packing,
    facts: &Facts,
    write: impl FnOnce(&mut RunWriter<W>),
) -> Arc<RunSet> {
    let mut writer = RunWriter::<W>::create(path, packing).unwrap();
    write(&mut writer);
    Arc::new(writer.finish(facts).unwrap())
}

/// The records of `tokens` of all `sets`, copied into a file at `out`.
fn copied<const W: usize>(
    out: &Path,
    packing: &Packing,
    facts: &Facts,
    sets: &[Arc<RunSet>],
    tokens: (u32, u32),
    capacity: usize,
) -> Result<u64> {
    let mut writer = RunWriter::<W>::create(out, packing)?;
    let mut seen = 0;
    with_chunks!(packing, C => {
        let mut splice = Splice::<C>::open(packing, sets, tokens, capacity)?;
        while let Some(token) = splice.token(&mut seen)? {
            if writer.start(token)? {
                splice.restart();
            }
            let written = splice.read(writer.room(MOST_RECORDS), &mut seen)?;
            assert!(written.records > 0 && written.records <= u64_of(MOST_RECORDS));
            writer.wrote(written.bytes, written.records)?;
        }
    });
    writer.finish(facts)?;
    Ok(seen)
}

fn check<const W: usize>(
    (vocab_size, max_order): (u32, usize),
    runs: &[Vec<(Vec<u32>, u64, u64)>],
    tokens: (u32, u32),
    capacity: usize,
) {
    let packing = Packing::new(vocab_size, max_order);
    let folder = tempfile::tempdir().unwrap();
    let facts = facts(vocab_size, max_order, LONGS);
    let mut sets = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        let mut items: Vec<Item<W>> = run.iter().map(|(key, tag, count)| (packing.pack(key), *tag, *count)).collect();
        items.sort_unstable();
        items.dedup_by(|next, kept| (next.0, next.1) == (kept.0, kept.1));
        let path = folder.path().join(format!("{index}.mgr"));
        sets.push(written(&path, &packing, &facts, |writer| writer.push_all(&items).unwrap()));
    }
    let (decoded, out) = (folder.path().join("decoded.mgr"), folder.path().join("copied.mgr"));
    let runs: Vec<Run<W>> = sets.iter().map(|set| Run::Named(Arc::clone(set), packing, 0)).collect();
    let bound = (tokens.1 < vocab_size).then(|| packing.first(tokens.1));
    let ranges = Ranges::starting(packing.first(tokens.0)).bounded(bound);
    let mut found = 0;
    let facts = Facts { tokens, ..facts };
    written::<W>(&decoded, &packing, &facts, |writer| {
        let visit = |items: &[Item<W>], _| {
            found += items.len();
            writer.push_all(items)
        };
        ranges.merge(&runs, 1, 4096, visit).unwrap();
    });
    let seen = copied::<W>(&out, &packing, &facts, &sets, tokens, capacity).unwrap();
    assert!(seen >= u64_of(found));
    RunSet::open(&out).unwrap().verify().unwrap();
    assert_eq!(std::fs::read(&out).unwrap(), std::fs::read(&decoded).unwrap());
}

fn record(many: bool) -> impl Strategy<Value = (Vec<u32>, u64, u64)> {
    let tag = if many { prop::sample::select(vec![0, 1, 2, 3, 127, 128, LONGS]).boxed() } else { (0u64..3).boxed() };
    let count = prop::sample::select(vec![1u64, 1, 1, 2, 3, 64, 127, 128, 1 << 40]);
    (prop::collection::vec(any::<u32>(), 1..18), tag, count)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn copied_records_are_the_decoded_ones_byte_for_byte(
        vocab_size in prop::sample::select(vec![2u32, 255, 256, 3000, 32_768, 65_535, 70_000, 1 << 20]),
        max_order in 1usize..=16,
        runs in any::<bool>().prop_flat_map(|many| prop::collection::vec(prop::collection::vec(record(many), 0..400), 1..9)),
        // Few different tokens make long shared keys and equal records.
        kinds in prop::sample::select(vec![1u32, 2, 3, 40, u32::MAX]),
        low in any::<bool>(),
        cut in prop::option::of((any::<u32>(), any::<u32>())),
        capacity in prop::sample::select(vec![1usize, 100, 700, CAPACITY]),
    ) {
        let kinds = kinds.min(vocab_size);
        let token = |token: u32| if low { token % kinds } else { vocab_size - 1 - token % kinds };
        let runs: Vec<Vec<_>> = runs
            .into_iter()
            .map(|run| {
                let cut = |key: Vec<u32>| key.into_iter().take(max_order).map(token).collect();
                run.into_iter().map(|(key, tag, count)| (cut(key), tag, count)).collect()
            })
            .collect();
        let tokens = cut.map_or((0, vocab_size), |(a, b)| {
            let (a, b) = (token(a), token(b));
            (a.min(b), a.max(b) + 1)
        });
        let packing = Packing::new(vocab_size, max_order);
        with_words!(packing, W => check::<W>((vocab_size, max_order), &runs, tokens, capacity));
    }
}

/// Bytes that hold these records as a section does.
fn section<const W: usize>(packing: &Packing, items: &[Item<W>]) -> Vec<u8> {
    let mut gathered = Gathered::with_capacity(0);
    Encoder::<W>::new(KeyBytes::of(packing)).push_all(&mut gathered, items);
    gathered.as_slice().to_vec()
}

#[test]
fn what_no_writer_leaves_is_refused() {
    // First tokens of one to three bytes, of bits that fill them and that do not; records in 16, 32 and 64 bytes.
    for (vocab_size, max_order) in [(255, 3), (2000, 5), (60_000, 4), (100_000, 9), (1 << 20, 16)] {
        let packing = Packing::new(vocab_size, max_order);
        with_words!(packing, W => refused::<W>(vocab_size, max_order));
    }
}

fn refused<const W: usize>(vocab_size: u32, max_order: usize) {
    let packing = Packing::new(vocab_size, max_order);
    let folder = tempfile::tempdir().unwrap();
    let item = |key: &[u32], tag, count| -> Item<W> { (packing.pack(key), tag, count) };
    let order = u64_of(max_order);
    let merge_with = |longs: u64, bytes: &[u8]| {
        let facts = facts(vocab_size, max_order, longs);
        let write = |writer: &mut RunWriter<W>| {
            writer.start(4).unwrap();
            writer.room(bytes.len())[..bytes.len()].copy_from_slice(bytes);
            writer.wrote(bytes.len(), 1).unwrap();
        };
        let bad = written(&folder.path().join("bad.mgr"), &packing, &facts, write);
        let good = section(&packing, &[item(&[1], 0, 1)]);
        let good = written(&folder.path().join("good.mgr"), &packing, &facts, |writer: &mut RunWriter<W>| {
            writer.start(1).unwrap();
            writer.room(1)[..good.len()].copy_from_slice(&good);
            writer.wrote(good.len(), 1).unwrap();
        });
        let out = folder.path().join("out.mgr");
        // Their number is not what this is about.
        let read = bad.verify().or_else(|e| if e.to_string().contains("records, found") { Ok(()) } else { Err(e) });
        for sets in [vec![Arc::clone(&bad)], vec![Arc::clone(&good), Arc::clone(&bad)], vec![bad, good.clone(), good]] {
            let found = copied::<W>(&out, &packing, &facts, &sets, (0, vocab_size), 100);
            match (found, &read) {
                (Ok(_), Ok(())) => (),
                (Err(error), _) => {
                    assert!(matches!(&error, Error::Format { .. }), "{error}");
                    assert!(error.to_string().contains("first token 4) are damaged"), "{error}");
                    return false;
                }
                (Ok(_), Err(error)) => panic!("accepted what reading refuses: {error}"),
            }
        }
        true
    };
    let merge = |bytes: &[u8]| merge_with(LONGS, bytes);
    let (first, second) = (item(&[4, 5], 0, 1), item(&[4, 6], 1, 2));
    let good = section(&packing, &[first, second]);
    assert!(merge(&good));
    // Out of order, twice the same, tags that do not rise, another first token, none.
    assert!(!merge(&section(&packing, &[second, first])));
    assert!(!merge(&section(&packing, &[first, first])));
    assert!(!merge(&section(&packing, &[item(&[4, 5], 300, 1), item(&[4, 5], 2, 1)])));
    assert!(merge(&section(&packing, &[item(&[4, 5], 2, 1), item(&[4, 5], 300, 1)])));
    assert!(!merge(&section(&packing, &[item(&[3, 5], 0, 1)])));
    assert!(!merge(&section(&packing, &[item(&[], 0, 1)])));
    // Of a first record, and of one behind it, which others look at.
    for ahead in [&[][..], &[first]] {
        let behind = |key: &[u32], tag, count| section(&packing, &[ahead, &[item(key, tag, count)]].concat());
        for key in [&[4, 5][..], &[4, 6]] {
            // Tags of no document.
            for count in [1, 2] {
                assert!(merge_with(0, &behind(key, order, count)));
                assert!(!merge_with(0, &behind(key, order + 1, count)));
                assert!(merge_with(LONGS, &behind(key, order + LONGS, count)));
                assert!(!merge_with(LONGS, &behind(key, order + LONGS + 1, count)));
            }
            // No count, a count of one that is given, counts of more than any corpus.
            assert!(!merge(&behind(key, 1, 0)));
            let mut given = behind(key, 1, 2);
            assert!(merge(&given));
            *given.last_mut().unwrap() = 1;
            assert!(!merge(&given));
            assert!(!merge(&behind(key, 1, 1 << 62)));
            // Tags and counts in more bytes than they take.
            let mut long = behind(key, 1, 1);
            assert!(merge(&long));
            long.pop();
            long.extend([0x81, 0]);
            assert!(!merge(&long));
            let mut long = behind(key, 1, 2);
            long.pop();
            long.extend([0x82, 0]);
            assert!(!merge(&long));
        }
    }
    assert!(!merge(&section(&packing, &[item(&[4, 5], 0, (1 << 62) - 1), second])));
    // Cut short; more shared bytes than a key has; fewer than are shared.
    (1..good.len()).for_each(|len| assert!(merge(&good[..len]) == (len == section(&packing, &[first]).len())));
    let (num, second_at) = (KeyBytes::of(&packing).num, section(&packing, &[first]).len());
    for sharing in [num + 1, 0x7f] {
        let mut bytes = good.clone();
        bytes[second_at] = u8::try_from(sharing).unwrap();
        assert!(!merge(&bytes));
    }
    let mut again = good.clone();
    let (zeros, shared) = (usize::from(good[0] & 0x7f), usize::from(good[second_at]));
    again.splice(second_at..=second_at, [good[second_at] - 1, good[shared - zeros]]);
    assert!(!merge(&again));
}

/// Streams of one first token, of as many records as are looked at in one go, and one fewer and more.
#[test]
fn sides_that_end_where_a_look_ends() {
    let (vocab_size, max_order) = (40_000, 3);
    let lens = [0, 1, MOST - 1, MOST, MOST + 1, 2 * MOST, 2 * MOST + 1];
    let run = |len: usize, step: u32, tag: u64| -> Vec<(Vec<u32>, u64, u64)> {
        (0..len).map(|index| (vec![7, low_u32(u64_of(index)) * step, 9], tag, 1 + u64_of(index % 2))).collect()
    };
    for (a, b) in lens.iter().flat_map(|&a| lens.iter().map(move |&b| (a, b))) {
        for (step, tag) in [(1, 0), (2, 0), (1, 1)] {
            check::<1>((vocab_size, max_order), &[run(a, 1, 0), run(b, step, tag)], (0, vocab_size), CAPACITY);
        }
    }
}

#[test]
fn small_memory_and_old_files_are_left_to_who_decodes() {
    let (vocab_size, max_order) = (32_768, 5);
    let packing = Packing::new(vocab_size, max_order);
    let folder = tempfile::tempdir().unwrap();
    let facts = facts(vocab_size, max_order, LONGS);
    let sets: Vec<_> = (0..2)
        .map(|index| written::<2>(&folder.path().join(format!("{index}.mgr")), &packing, &facts, |_| ()))
        .collect();
    let means = |memory: u64| Means { memory, ..crate::mining::tests::means() };
    let fits = |sets: &[_], memory| fits(&packing, sets, &means(memory));
    let least = u64_of(4 * SPLICE_BYTES);
    assert!(fits(&sets, least) && !fits(&sets, least - 1));
    let many: Vec<_> = std::iter::repeat_n(Arc::clone(&sets[0]), MAX_FILES + 1).collect();
    assert!(fits(&many[..MAX_FILES], 1 << 40) && !fits(&many, 1 << 40));
    let mut old = RunSet::open(folder.path().join("0.mgr")).unwrap();
    old.key_bytes = KeyBytes::all(&packing);
    assert!(!fits(&[Arc::new(old)], 1 << 40));
}

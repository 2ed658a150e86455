use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::json;

use super::tests::{EOS, corpus, documents_strategy, means, options, quiet, rows, zipf};
use super::*;
use crate::corpus::Corpus;
use crate::ids::usize_of_u64;
use crate::{Error, Result};

pub(super) fn part_options(rank: u64, world: u64, max_order: usize, vocab_size: u32) -> PartOptions {
    PartOptions {
        max_order,
        vocab_size,
        reserved: vec![EOS],
        rank,
        world,
        apart: false,
        settings: json!({"tokenizer": "t"}),
        means: means(),
    }
}

pub(super) fn mine_all(
    corpus: &Corpus,
    folder: &Path,
    world: u64,
    change: impl Fn(u64, &mut PartOptions),
) -> Vec<PathBuf> {
    (0..world)
        .map(|rank| {
            let mut options = part_options(rank, world, 4, 3001);
            change(rank, &mut options);
            let out = folder.join(format!("part-{rank}.mgr"));
            mine_part(corpus, &out, &options, &mut quiet).unwrap().verify().unwrap();
            out
        })
        .collect()
}

pub(super) fn message<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("expected an error"),
        Err(error @ (Error::Format { .. } | Error::Fingerprint { .. })) => error.to_string(),
        Err(error) => panic!("{error}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn parts_are_one_process_whatever_the_split(
        vocab_size in prop::sample::select(vec![4u32, 300, 70_000, 1 << 20]),
        documents in documents_strategy(1 << 20),
        max_order in 2usize..=16,
        world in 1u64..6,
        blocks in prop::collection::vec(prop::option::of(1u64..60), 6),
        fan_in in 2usize..5,
        ranges in 1usize..4,
        threads in 1usize..3,
        reverse in any::<bool>(),
        tight in any::<bool>(),
    ) {
        let documents: Vec<Vec<u32>> =
            documents.into_iter().map(|d| d.into_iter().map(|token| (token - 1) % (vocab_size - 1) + 1).collect()).collect();
        let folder = tempfile::tempdir().unwrap();
        let corpus = corpus(&folder, &documents);
        let mut parts = Vec::new();
        for rank in 0..world {
            let mut options = part_options(rank, world, max_order, vocab_size);
            options.means.block_size = blocks[usize::try_from(rank).unwrap()];
            (options.means.max_fan_in, options.means.threads) = (Some(fan_in), threads);
            let out = folder.path().join(format!("{rank}.mgr"));
            mine_part(&corpus, &out, &options, &mut quiet).unwrap().verify().unwrap();
            parts.push(out);
        }
        if reverse {
            parts.reverse();
        }
        let mut mining = options(&[(1, None), (max_order, Some(9))], vocab_size);
        mining.means.threads = threads;
        let want = mine(&corpus, &mining, &mut quiet).unwrap();
        let check = |paths: &[PathBuf]| {
            let (found, facts) = select_parts(paths, &mining, &mut quiet).unwrap();
            assert_eq!(rows(&found.keys), rows(&want.keys));
            assert_eq!((found.positions, found.distinct, found.frequent), (want.positions, want.distinct, want.frequent));
            assert_eq!(facts.fingerprint, corpus.fingerprint(1).unwrap());
            assert_eq!((facts.num_tokens, usize::try_from(facts.num_documents).unwrap()), (corpus.num_tokens(), corpus.num_documents()));
        };
        check(&parts);
        // With the least memory merges of small vocabularies are decoded, two files at a time.
        let merging = if tight {
            Means { memory: MIN_MEMORY + u64::from(vocab_size) * 16, max_fan_in: Some(2), ..means() }
        } else {
            means()
        };
        // Part by part, then by ranges of first tokens, the bytes of the merge are those of one part of everything.
        let first = folder.path().join("first.mgr");
        let half = parts.len().div_ceil(2);
        merge_parts(&parts[..half], &first, None, &merging, &mut quiet).unwrap();
        let mut steps = vec![first];
        steps.extend_from_slice(&parts[half..]);
        check(&steps);
        let pieces: Vec<PathBuf> = (0..ranges)
            .map(|index| {
                let out = folder.path().join(format!("range-{index}.mgr"));
                merge_parts(&steps, &out, Some((index, ranges)), &merging, &mut quiet).unwrap();
                out
            })
            .collect();
        check(&pieces);
        let (whole, again) = (folder.path().join("whole.mgr"), folder.path().join("again.mgr"));
        merge_parts(&parts, &whole, None, &merging, &mut quiet).unwrap().verify().unwrap();
        merge_parts(&pieces, &again, None, &merging, &mut quiet).unwrap();
        prop_assert_eq!(std::fs::read(&whole).unwrap(), std::fs::read(&again).unwrap());
        if world == 1 {
            prop_assert_eq!(std::fs::read(&whole).unwrap(), std::fs::read(&parts[0]).unwrap());
        }
    }
}

/// Documents of all sizes, among them one larger than every block.
fn mixed(folder: &tempfile::TempDir) -> Corpus {
    let mut documents: Vec<Vec<u32>> = zipf(30_000, 3000).chunks(300).map(<[u32]>::to_vec).collect();
    documents.insert(40, zipf(20_000, 50));
    documents.extend([vec![], vec![7]]);
    corpus(folder, &documents)
}

#[test]
fn a_killed_part_goes_on_with_other_blocks_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = mixed(&folder);
    let want = mine_all(&corpus, folder.path(), 1, |_, _| ());
    let want = std::fs::read(&want[0]).unwrap();
    let out = folder.path().join("killed.mgr");
    // Stopped again and again, in every phase, each time with another size of block.
    let mut total = 0;
    for (round, size) in [900u64, 2500, 700, 4000, 1500, 333].into_iter().cycle().enumerate().take(200) {
        let mut options = part_options(0, 1, 4, 3001);
        options.means.block_size = Some(size);
        options.means.max_fan_in = Some(3);
        let mut calls = 0;
        let result = mine_part(&corpus, &out, &options, &mut |phase, done, _| {
            calls += usize::from(phase != "scan" && done > 0);
            if calls > round / 2 { Err(Error::Interrupted) } else { Ok(()) }
        });
        total += 1;
        match result {
            Ok(set) => {
                set.verify().unwrap();
                break;
            }
            Err(Error::Interrupted) => (),
            Err(error) => panic!("{error}"),
        }
    }
    assert!(total > 2, "it was stopped at least twice");
    assert_eq!(std::fs::read(&out).unwrap(), want);
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
    // Again: nothing to do.
    let mut phases = Vec::new();
    mine_part(&corpus, &out, &part_options(0, 1, 4, 3001), &mut |phase, _, _| {
        phases.push(phase);
        Ok(())
    })
    .unwrap();
    assert!(!phases.contains(&"sort"));
    let refused = message(mine_part(&corpus, &out, &part_options(0, 2, 4, 3001), &mut quiet));
    assert!(refused.contains("remove it, or choose another out"), "{refused}");
}

#[test]
fn a_torn_merge_goes_on_after_its_last_durable_section() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = mixed(&folder);
    let parts = mine_all(&corpus, folder.path(), 3, |_, _| ());
    let want = folder.path().join("want.mgr");
    merge_parts(&parts, &want, None, &means(), &mut quiet).unwrap();
    let want = std::fs::read(&want).unwrap();
    let out = folder.path().join("out.mgr");
    let partial = folder.path().join("out.mgr.partial");
    // What a kill leaves: a journal up to some byte, records up to some later byte.
    let identity = |cut: usize, records: usize| {
        std::fs::create_dir_all(&partial).unwrap();
        let (journal, whole) = runs_of(&parts, &partial);
        std::fs::write(partial.join("merged.journal"), &journal[..journal.len().min(cut)]).unwrap();
        std::fs::write(partial.join("merged.records"), &whole[..whole.len().min(records)]).unwrap();
    };
    for (cut, records) in [(0, 0), (31, 100), (32, 5000), (500, 700), (1000, 1 << 30), (4321, 1 << 30), (1 << 30, 9000)]
    {
        identity(cut, records);
        std::fs::remove_file(&out).ok();
        let set = merge_parts(&parts, &out, None, &means(), &mut quiet).unwrap();
        set.verify().unwrap();
        assert_eq!(std::fs::read(&out).unwrap(), want, "{cut} {records}");
    }
}

#[test]
fn what_a_killed_merge_has_made_durable_is_not_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = mixed(&folder);
    let parts = mine_all(&corpus, folder.path(), 3, |_, _| ());
    let (want, out) = (folder.path().join("want.mgr"), folder.path().join("out.mgr"));
    merge_parts(&parts, &want, None, &means(), &mut quiet).unwrap();
    let partial = folder.path().join("out.mgr.partial");
    std::fs::create_dir_all(&partial).unwrap();
    let (journal, records) = runs_of(&parts, &partial);
    // The records that lie first in a part are in sections that are durable: who read them would see the damage.
    let good = std::fs::read(&parts[0]).unwrap();
    let mut bad = good.clone();
    bad[HEAD_LEN + 1] ^= 1;
    std::fs::write(&parts[0], bad).unwrap();
    merge_parts(&parts, &out, None, &means(), &mut quiet).unwrap();
    assert_eq!(std::fs::read(&out).unwrap(), std::fs::read(&want).unwrap());
    std::fs::remove_file(&out).unwrap();
    // Half of the journal: what lies first is durable still, what lies last is merged once more.
    std::fs::create_dir_all(&partial).unwrap();
    std::fs::write(partial.join("merged.journal"), &journal[..journal.len() / 2]).unwrap();
    std::fs::write(partial.join("merged.records"), &records).unwrap();
    merge_parts(&parts, &out, None, &means(), &mut quiet).unwrap();
    assert_eq!(std::fs::read(&out).unwrap(), std::fs::read(&want).unwrap());
    std::fs::remove_file(&out).unwrap();
    // Nothing durable: all is read.
    let found = message(merge_parts(&parts, &out, None, &means(), &mut quiet));
    assert!(found.contains("are damaged"), "{found}");
}

#[test]
fn a_part_that_was_damaged_and_mended_leaves_nothing_in_the_merge() {
    let folder = tempfile::tempdir().unwrap();
    let documents: Vec<Vec<u32>> = zipf(600, 3000).chunks(60).map(<[u32]>::to_vec).collect();
    let corpus = corpus(&folder, &documents);
    let parts = mine_all(&corpus, folder.path(), 2, |_, _| ());
    let out = folder.path().join("out.mgr");
    merge_parts(&parts, &out, None, &means(), &mut quiet).unwrap();
    let want = std::fs::read(&out).unwrap();
    let good = std::fs::read(&parts[1]).unwrap();
    let records = RunSet::open(&parts[1]).unwrap().facts().shards[0].lengths.0;
    for at in (HEAD_LEN..usize_of_u64(records)).step_by(usize_of_u64(records) / 40) {
        std::fs::remove_file(&out).unwrap();
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 7);
        std::fs::write(&parts[1], bad).unwrap();
        let found = message(merge_parts(&parts, &out, None, &means(), &mut quiet));
        assert!(found.contains("are damaged"), "{found}");
        std::fs::write(&parts[1], &good).unwrap();
        merge_parts(&parts, &out, None, &means(), &mut quiet).unwrap();
        assert!(std::fs::read(&out).unwrap() == want, "byte {at}");
    }
}

#[test]
fn what_a_kill_left_beside_a_finished_file_goes_with_the_next_call() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = mixed(&folder);
    let parts = mine_all(&corpus, folder.path(), 2, |_, _| ());
    let out = folder.path().join("out.mgr");
    merge_parts(&parts, &out, None, &means(), &mut quiet).unwrap();
    let leave = |out: &Path| {
        let left = out.with_extension("mgr.partial");
        std::fs::create_dir_all(&left).unwrap();
        std::fs::write(left.join("merged.journal"), b"torn").unwrap();
        left
    };
    let left = leave(&out);
    merge_parts(&parts, &out, None, &means(), &mut quiet).unwrap();
    assert!(!left.exists());
    // Another process is at work there: it removes the folder itself.
    let left = leave(&out);
    let locked = left::lock(&left).unwrap();
    merge_parts(&parts, &out, None, &means(), &mut quiet).unwrap();
    assert!(left.exists());
    drop(locked);
    // Any other failure to lock is one of the file system, and is told.
    std::fs::remove_file(left.join("lock")).unwrap();
    std::fs::create_dir(left.join("lock")).unwrap();
    let refused = merge_parts(&parts, &out, None, &means(), &mut quiet).unwrap_err();
    assert!(matches!(&refused, Error::Io { path, .. } if *path == left.join("lock")), "{refused}");
    std::fs::remove_dir(left.join("lock")).unwrap();
    let left = leave(&parts[0]);
    mine_all(&corpus, folder.path(), 2, |_, _| ());
    assert!(!left.exists());
}

#[test]
fn a_range_takes_the_bytes_that_are_said_and_intermediate_merges_hold_it_alone() {
    let folder = tempfile::tempdir().unwrap();
    let paths = mine_all(&mixed(&folder), folder.path(), 5, |_, _| ());
    let whole: u64 = paths.iter().map(|path| path.metadata().unwrap().len()).sum();
    let merged = folder.path().join("merged.mgr");
    let merged_len = merge_parts(&paths, &merged, None, &means(), &mut quiet).unwrap().num_bytes();
    let (mut said, mut found) = ((0, 0), 0);
    for index in 0..3 {
        let bytes = range_bytes(&paths, (index, 3)).unwrap();
        let (least, most) =
            (bytes.iter().map(|part| part.0).max().unwrap(), bytes.iter().map(|part| part.1).sum::<u64>());
        let out = folder.path().join(format!("range-{index}.mgr"));
        let num_bytes = merge_parts(&paths, &out, Some((index, 3)), &means(), &mut quiet).unwrap().num_bytes();
        assert!(least / 2 < num_bytes && num_bytes <= most, "{bytes:?} {num_bytes}");
        said = (said.0 + bytes.iter().map(|part| part.0).sum::<u64>(), said.1 + most);
        found += num_bytes;
    }
    assert!(whole / 2 < said.0 && said.0 < whole && whole <= said.1 && said.1 < 2 * whole, "{said:?} {whole}");
    assert!((merged_len..whole).contains(&found), "{found} {merged_len} {whole}");
    let parts = parts::Parts::open(&paths).unwrap();
    assert!(matches!(range_bytes(&paths, (3, 3)), Err(Error::Argument { .. })));

    let packing = parts.sets[0].packing();
    let ranges = merge::Ranges::<1>::new(&packing, &parts.weights(), 3);
    let means = Means { max_fan_in: Some(2), ..means() };
    let reduced = |wanted| {
        let (runs, written) =
            merge::reduce(parts.runs(&packing), &packing, &ranges, wanted, &means, &mut quiet).unwrap();
        let records = |range| {
            let mut items = Vec::new();
            ranges
                .merge(&runs, range, 1 << 16, |batch, _| {
                    items.extend_from_slice(batch);
                    Ok(())
                })
                .unwrap();
            items
        };
        ([0, 1, 2].map(records), written)
    };
    let (all, all_written) = reduced(0..3);
    let mut written = 0;
    for range in 0..3 {
        let (alone, bytes) = reduced(range..range + 1);
        written += bytes;
        assert!((0..3).all(|index| alone[index] == if index == range { all[index].clone() } else { Vec::new() }));
    }
    assert!(all.iter().all(|items| !items.is_empty()) && written == all_written);
}

/// Journal and records of a merge that was stopped at its end.
fn runs_of(parts: &[PathBuf], partial: &Path) -> (Vec<u8>, Vec<u8>) {
    let out = partial.with_extension("");
    std::fs::remove_file(&out).ok();
    let stopped = merge_parts(parts, &out, None, &means(), &mut |phase, done, total| {
        if phase == "merge" && done == total { Err(Error::Interrupted) } else { Ok(()) }
    });
    assert!(matches!(stopped, Err(Error::Interrupted)));
    let read = |name: &str| std::fs::read(partial.join(name)).unwrap();
    (read("merged.journal"), read("merged.records"))
}

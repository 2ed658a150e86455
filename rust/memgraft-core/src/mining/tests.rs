use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::corpus::{OpenOptions, TokenType};

const EOS: u32 = 0;

fn corpus(folder: &tempfile::TempDir, documents: &[Vec<u32>]) -> Corpus {
    let path = folder.path().join("corpus.bin");
    let bytes: Vec<u8> = documents
        .iter()
        .flat_map(|document| document.iter().chain(&[EOS]))
        .flat_map(|token| token.to_le_bytes())
        .collect();
    std::fs::write(&path, bytes).unwrap();
    let options = OpenOptions { dtype: Some(TokenType::U32), eos_id: Some(EOS), ..OpenOptions::default() };
    Corpus::open(&[path], &options).unwrap()
}

fn options(orders: &[(usize, Option<u64>)], vocab_size: u32) -> MineOptions {
    MineOptions {
        budgets: orders.iter().copied().collect(),
        min_count: 1,
        vocab_size,
        reserved: vec![EOS],
        memory: 256 << 20,
        temporary: std::env::temp_dir(),
        threads: 1,
        block_size: None,
        max_fan_in: None,
    }
}

type Counted = BTreeMap<Vec<u32>, (u64, u64)>;

/// Counts and document frequencies by the definition.
fn brute(documents: &[Vec<u32>], reserved: &[u32], orders: &[usize]) -> Counted {
    let mut counts: HashMap<Vec<u32>, u64> = HashMap::new();
    let mut frequency: HashMap<Vec<u32>, u64> = HashMap::new();
    for document in documents {
        let mut seen = HashSet::new();
        for &order in orders {
            for window in document.windows(order).filter(|window| !window.iter().any(|token| reserved.contains(token)))
            {
                *counts.entry(window.to_vec()).or_default() += 1;
                if seen.insert(window.to_vec()) {
                    *frequency.entry(window.to_vec()).or_default() += 1;
                }
            }
        }
    }
    counts.into_iter().map(|(key, count)| (key.clone(), (count, frequency[&key]))).collect()
}

fn keys(mined: &Mined) -> Vec<(Vec<u32>, u64, u64)> {
    mined
        .offsets
        .windows(2)
        .zip(mined.counts.iter().zip(&mined.documents))
        .map(|(ends, (&count, &documents))| {
            let (start, end) = (crate::ids::usize_of_u64(ends[0]), crate::ids::usize_of_u64(ends[1]));
            (mined.tokens[start..end].to_vec(), count, documents)
        })
        .collect()
}

fn quiet(_: &'static str, _: u64, _: u64) -> Result<()> {
    Ok(())
}

fn documents_strategy(vocab_size: u32) -> impl Strategy<Value = Vec<Vec<u32>>> {
    // Documents of a few repeated phrases, so that long n-grams recur within and across documents.
    let phrase = prop::collection::vec(1..vocab_size, 1..7);
    let phrases = prop::collection::vec(phrase, 1..5);
    (phrases, prop::collection::vec(prop::collection::vec(0usize..5, 0..12), 1..12)).prop_map(|(phrases, documents)| {
        let make = |picks: Vec<usize>| picks.iter().flat_map(|pick| phrases[pick % phrases.len()].clone()).collect();
        documents.into_iter().map(make).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn mining_equals_the_definition(
        vocab_size in prop::sample::select(vec![4u32, 300, 70_000, 1 << 20]),
        documents in documents_strategy(1 << 20),
        max_order in 1usize..=16,
        reserved_token in 1u32..4,
        threads in 1usize..4,
        block_size in prop::option::of(1u64..200),
        fan_in in 2usize..5,
    ) {
        let documents: Vec<Vec<u32>> =
            documents.into_iter().map(|d| d.into_iter().map(|token| (token - 1) % (vocab_size - 1) + 1).collect()).collect();
        let folder = tempfile::tempdir().unwrap();
        let corpus = corpus(&folder, &documents);
        let orders: Vec<usize> = (1..=max_order).filter(|order| order % 2 == max_order % 2).collect();
        let wanted: Vec<_> = orders.iter().map(|&order| (order, None)).collect();
        let options = MineOptions {
            reserved: vec![EOS, reserved_token],
            temporary: folder.path().to_path_buf(),
            threads,
            block_size,
            max_fan_in: Some(fan_in),
            ..options(&wanted, vocab_size)
        };
        let mined = mine(&corpus, &options, &mut quiet).unwrap();
        let found: Counted = keys(&mined).into_iter().map(|(key, count, docs)| (key, (count, docs))).collect();
        prop_assert_eq!(found.len(), mined.counts.len());
        prop_assert_eq!(&found, &brute(&documents, &[EOS, reserved_token], &orders));
        prop_assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "temporary files are gone");
    }

    #[test]
    fn budgets_keep_the_most_frequent(
        documents in documents_strategy(6),
        budget in 0u64..12,
        min_count in 1u64..4,
        threads in 1usize..4,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let corpus = corpus(&folder, &documents);
        let options = MineOptions { min_count, threads, ..options(&[(2, Some(budget)), (3, None)], 6) };
        let mined = mine(&corpus, &options, &mut quiet).unwrap();
        let mut want: Vec<(Vec<u32>, u64, u64)> = Vec::new();
        for (order, keep) in [(2, usize::try_from(budget).unwrap()), (3, usize::MAX)] {
            let mut all: Vec<_> = brute(&documents, &[EOS], &[order])
                .into_iter()
                .filter(|(_, (count, _))| *count >= min_count)
                .map(|(key, (count, docs))| (key, count, docs))
                .collect();
            prop_assert_eq!(mined.frequent[order], u64_of(all.len()));
            all.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
            all.truncate(keep);
            want.extend(all);
        }
        prop_assert_eq!(keys(&mined), want);
    }
}

/// Three of four tokens are among the first hundredth of the ids, as in text.
fn zipf(len: usize, vocab_size: u32) -> Vec<u32> {
    let mut state = 1u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        crate::ids::low_u32(state >> 40)
    };
    (0..len).map(|_| next() % if next() % 4 == 0 { vocab_size - 1 } else { vocab_size.div_ceil(100) } + 1).collect()
}

#[test]
fn threads_memory_and_blocks_do_not_change_the_result() {
    let folder = tempfile::tempdir().unwrap();
    let mut documents: Vec<Vec<u32>> = zipf(200_000, 3000).chunks(700).map(<[u32]>::to_vec).collect();
    documents.push(zipf(100_000, 50));
    let corpus = corpus(&folder, &documents);
    let base = MineOptions {
        min_count: 2,
        temporary: folder.path().to_path_buf(),
        ..options(&[(1, None), (2, Some(500)), (4, Some(3000)), (5, Some(4000))], 3001)
    };
    let whole = mine(&corpus, &base, &mut quiet).unwrap();
    assert!(whole.spilled_bytes == 0 && whole.num_runs == 1, "{} runs", whole.num_runs);
    assert!(whole.counts.len() > 5000);
    for (threads, memory, block_size, max_fan_in) in [
        (2, 256 << 20, None, None),
        (3, 4 << 20, None, None),
        (2, 2 << 20, None, None),
        (2, 256 << 20, Some(3000), Some(4)),
    ] {
        let options = MineOptions { threads, memory, block_size, max_fan_in, ..base.clone() };
        let mut mined = mine(&corpus, &options, &mut quiet).unwrap();
        assert_eq!(mined.spilled_bytes > 0, memory < 256 << 20 || block_size.is_some());
        (mined.spilled_bytes, mined.num_runs) = (whole.spilled_bytes, whole.num_runs);
        assert!(mined == whole, "{threads} threads, {memory} bytes, blocks {block_size:?}");
    }
}

#[test]
fn refusals_name_what_to_change() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = corpus(&folder, &[vec![1, 2, 3, 9]]);
    let base = options(&[(2, None)], 10);
    let message = |options: MineOptions| mine(&corpus, &options, &mut quiet).unwrap_err().to_string();
    for (options, want) in [
        (options(&[(2, None)], 9), "expected tokens below vocab_size 9, found 9 at position 3 (document 0)"),
        (options(&[(17, None)], 10), "orders: expected some of 1 to 16, got [17]"),
        (options(&[], 10), "orders: expected"),
        (MineOptions { reserved: vec![10], ..base.clone() }, "reserved: expected tokens below vocab_size 10, got 10"),
        (MineOptions { memory: 1000, ..base.clone() }, "memory: expected at least"),
        (MineOptions { min_count: 0, ..base.clone() }, "expected min_count and threads of 1 and more"),
        (
            MineOptions { temporary: PathBuf::from("/nowhere"), block_size: Some(2), ..base.clone() },
            "creating a temporary file for mining; give another temporary=",
        ),
    ] {
        let found = message(options);
        assert!(found.contains(want), "{found}");
    }
}

#[test]
fn too_many_keys_for_the_memory_is_a_limit() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = corpus(&folder, &[zipf(60_000, 4000)]);
    let options = MineOptions { memory: (1 << 20) + 70_000, ..options(&[(2, None), (3, None)], 4000) };
    let error = mine(&corpus, &options, &mut quiet)
        .err()
        .map(|error| (matches!(error, Error::Limit { .. }), error.to_string()));
    assert!(error.as_ref().is_some_and(|(limit, text)| *limit && text.contains("smaller budget")), "{error:?}");
}

#[test]
fn the_report_can_stop_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = corpus(&folder, &[zipf(50_000, 400)]);
    for stop_at in ["scan", "sort", "count"] {
        let mut stages = Vec::new();
        let result = mine(&corpus, &options(&[(2, None)], 400), &mut |stage, done, total| {
            assert!(done <= total);
            stages.push(stage);
            if stage == stop_at { Err(Error::Interrupted) } else { Ok(()) }
        });
        assert!(matches!(result, Err(Error::Interrupted)), "{stop_at}");
        assert_eq!(stages.last(), Some(&stop_at));
    }
}

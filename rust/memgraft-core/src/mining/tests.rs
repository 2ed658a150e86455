use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::corpus::{Corpus, OpenOptions, TokenType};
use crate::ids::u64_of;
use crate::{Error, Result};

pub(super) const EOS: u32 = 0;

pub(super) fn corpus(folder: &tempfile::TempDir, documents: &[Vec<u32>]) -> Corpus {
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

pub(super) fn means() -> Means {
    Means {
        memory: 256 << 20,
        temporary: std::env::temp_dir(),
        threads: 1,
        sketch: false,
        block_size: None,
        max_fan_in: None,
    }
}

pub(super) fn options(orders: &[(usize, Option<u64>)], vocab_size: u32) -> MineOptions<'static> {
    MineOptions {
        choice: Choice { budgets: orders.iter().copied().collect(), ..Choice::default() },
        vocab_size,
        reserved: vec![EOS],
        excluded: None,
        means: means(),
    }
}

pub(super) type Counted = BTreeMap<Vec<u32>, (u64, u64)>;

/// Counts and document frequencies by the definition.
pub(super) fn brute(documents: &[Vec<u32>], reserved: &[u32], orders: &[usize]) -> Counted {
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

pub(super) fn rows(keys: &crate::keyset::KeySet) -> Vec<(Vec<u32>, u64, u64)> {
    let counted = keys.counts().iter().zip(keys.documents());
    keys.iter().zip(counted).map(|(key, (&count, &documents))| (key.to_vec(), count, documents)).collect()
}

pub(super) fn quiet(_: &'static str, _: u64, _: u64) -> Result<()> {
    Ok(())
}

pub(super) fn documents_strategy(vocab_size: u32) -> impl Strategy<Value = Vec<Vec<u32>>> {
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
            means: Means {
                temporary: folder.path().to_path_buf(), threads, block_size, max_fan_in: Some(fan_in), ..means()
            },
            ..options(&wanted, vocab_size)
        };
        let mined = mine(&corpus, &options, &mut quiet).unwrap();
        let found: Counted = rows(&mined.keys).into_iter().map(|(key, count, docs)| (key, (count, docs))).collect();
        prop_assert_eq!(found.len(), mined.keys.len());
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
        let mut options = options(&[(2, Some(budget)), (3, None)], 6);
        (options.choice.min_count, options.means.threads) = (min_count, threads);
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
        want.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        prop_assert_eq!(rows(&mined.keys), want);
        mined.keys.verify(1).unwrap();
    }
}

/// Three of four tokens are among the first hundredth of the ids, as in text.
pub(super) fn zipf(len: usize, vocab_size: u32) -> Vec<u32> {
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
    let mut base = options(&[(1, None), (2, Some(500)), (4, Some(3000)), (5, Some(4000))], 3001);
    base.choice.min_count = 2;
    base.means.temporary = folder.path().to_path_buf();
    let whole = mine(&corpus, &base, &mut quiet).unwrap();
    assert!(whole.spilled_bytes == 0 && whole.num_runs == 1, "{} runs", whole.num_runs);
    assert!(whole.keys.len() > 5000);
    for (threads, memory, block_size, max_fan_in, sketch) in [
        (2, 256 << 20, None, None, true),
        (3, 4 << 20, None, None, false),
        (2, 2 << 20, None, None, false),
        (2, 256 << 20, Some(3000), Some(4), false),
        (2, 4 << 20, None, None, true),
        (1, 256 << 20, Some(3000), None, true),
    ] {
        let means = Means { threads, memory, block_size, max_fan_in, sketch, ..base.means.clone() };
        let mined = mine(&corpus, &MineOptions { means, ..base.clone() }, &mut quiet).unwrap();
        assert_eq!(mined.spilled_bytes > 0, memory < 256 << 20 || block_size.is_some());
        let facts = |mined: &Mined| {
            let orders =
                [1, 2, 4, 5].map(|order| (mined.positions[order], mined.distinct[order], mined.frequent[order]));
            (mined.keys.fingerprint(), orders)
        };
        assert_eq!(facts(&mined), facts(&whole), "{threads} threads, {memory} bytes, {block_size:?}, sketch {sketch}");
    }
}

#[test]
fn a_sketch_saves_most_of_the_spill() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = corpus(&folder, &zipf(200_000, 3000).chunks(700).map(<[u32]>::to_vec).collect::<Vec<_>>());
    let mut options = options(&[(2, None), (3, None), (5, None)], 3001);
    options.choice.min_count = 2;
    options.means.block_size = Some(20_000);
    let plain = mine(&corpus, &options, &mut quiet).unwrap();
    options.means.sketch = true;
    let sketched = mine(&corpus, &options, &mut quiet).unwrap();
    assert_eq!(plain.keys.fingerprint(), sketched.keys.fingerprint());
    assert!(sketched.spilled_bytes * 4 < plain.spilled_bytes * 3, "{} {}", sketched.spilled_bytes, plain.spilled_bytes);
    let guess = |options: &MineOptions<'_>, always| {
        let estimate = estimate(&corpus, options, always).unwrap();
        (estimate.copies, estimate.sampled_bytes * corpus.num_tokens() / estimate.sampled.max(1))
    };
    let (copies, least) = guess(&options, false);
    assert!(copies == 1 && 0 < least && least < sketched.spilled_bytes * 11 / 10, "{least}");
    options.means.sketch = false;
    let (_, bytes) = guess(&options, false);
    assert!(bytes.abs_diff(plain.spilled_bytes) * 10 < plain.spilled_bytes, "{bytes}");
    // Two runs at a time: the others are merged into longer ones first.
    options.means.max_fan_in = Some(2);
    assert_eq!(guess(&options, false), (2, bytes));
    options.means.max_fan_in = None;
    options.means.block_size = None;
    assert_eq!(guess(&options, false), (0, 0));
    let (copies, whole) = guess(&options, true);
    assert!(copies == 0 && 0 < whole && whole <= bytes, "{whole}");
}

#[test]
fn refusals_name_what_to_change() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = corpus(&folder, &[vec![1, 2, 3, 9]]);
    let base = options(&[(2, None)], 10);
    let message = |options: MineOptions| mine(&corpus, &options, &mut quiet).unwrap_err().to_string();
    let with = |change: &dyn Fn(&mut MineOptions<'_>)| {
        let mut changed = base.clone();
        change(&mut changed);
        changed
    };
    for (options, want) in [
        (options(&[(2, None)], 9), "expected tokens below vocab_size 9, found 9 at position 3 (document 0)"),
        (options(&[(17, None)], 10), "orders: expected some of 1 to 16, got [17]"),
        (options(&[], 10), "orders: expected"),
        (with(&|o| o.reserved = vec![10]), "reserved: expected tokens below vocab_size 10, got 10"),
        (with(&|o| o.means.memory = 1000), "memory: expected at least"),
        (with(&|o| o.choice.min_count = 0), "expected min_count of 1 and more"),
        (with(&|o| o.means.threads = 0), "expected threads of 1 and more"),
        (
            with(&|o| o.choice.required = vec![vec![1, 2, 3]]),
            "required: expected keys of the orders mined, got [1, 2, 3]",
        ),
        (with(&|o| o.choice.required = vec![vec![1, 0]]), "required: key [1, 0] holds 0, which is reserved"),
        (
            with(&|o| (o.means.temporary, o.means.block_size) = (PathBuf::from("/nowhere"), Some(2))),
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
    let mut options = options(&[(2, None), (3, None)], 4000);
    options.means.memory = (1 << 20) + 70_000;
    let error = mine(&corpus, &options, &mut quiet)
        .err()
        .map(|error| (matches!(error, Error::Limit { .. }), error.to_string()));
    assert!(error.as_ref().is_some_and(|(limit, text)| *limit && text.contains("smaller budget")), "{error:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn the_choice_is_what_a_plain_list_gives(
        documents in documents_strategy(6),
        evaluation in prop::collection::vec(prop::collection::vec(1u32..6, 1..6), 0..3),
        required in prop::collection::vec(prop::collection::vec(1u32..6, 2..4), 0..4),
        total in prop::option::of(1u64..14),
        by_documents in any::<bool>(),
        min_documents in 0u64..3,
        threads in 1usize..3,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let corpus_in = corpus;
        let corpus = corpus(&folder, &documents);
        let by = if by_documents { Rank::Documents } else { Rank::Count };
        let odd = |batch: &Batch| Ok(batch.offsets.windows(2).map(|at| batch.tokens[at[0] as usize] % 2 == 1).collect());
        let mut options = options(&[(2, Some(7)), (3, Some(5))], 6);
        options.means.threads = threads;
        let held: BTreeMap<Vec<u32>, (u64, u64)> = brute(&evaluation, &[], &[3]);
        options.excluded = (!evaluation.is_empty()).then(|| (corpus_in(&elsewhere, &evaluation), 3));
        let required: Vec<_> = required.into_iter().filter(|key| !held.contains_key(key)).collect();
        let choice = Choice { total, rank: by, min_documents, required: required.clone(), filter: Some(&odd), ..options.choice.clone() };
        let mined = mine(&corpus, &MineOptions { choice, ..options }, &mut quiet).unwrap();
        let all = brute(&documents, &[EOS], &[2, 3]);
        let unique: HashSet<Vec<u32>> = required.into_iter().collect();
        let mut want: Vec<(Vec<u32>, u64, u64)> = unique
            .iter()
            .map(|key| (key.clone(), all.get(key).map_or(0, |found| found.0), all.get(key).map_or(0, |found| found.1)))
            .collect();
        let mut rest: Vec<_> = all
            .iter()
            .filter(|(key, found)| !unique.contains(*key) && found.1 >= min_documents && !held.contains_key(*key) && key[0] % 2 == 1)
            .map(|(key, found)| (key.clone(), found.0, found.1))
            .collect();
        rest.sort_by(|a, b| {
            let documents = if by_documents { b.2.cmp(&a.2) } else { std::cmp::Ordering::Equal };
            documents.then(b.1.cmp(&a.1)).then(a.0.cmp(&b.0))
        });
        let mut left: [u64; 4] = [0, 0, 7, 5];
        let pool = |key: &Vec<u32>| if total.is_some() { 0 } else { key.len() };
        left[0] = total.unwrap_or(0);
        for key in &unique {
            left[pool(key)] = left[pool(key)].saturating_sub(1);
        }
        for row in rest {
            if left[pool(&row.0)] > 0 {
                left[pool(&row.0)] -= 1;
                want.push(row);
            }
        }
        want.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        prop_assert_eq!(rows(&mined.keys), want);
        let excluded = all.iter().filter(|(key, found)| found.1 >= min_documents && held.contains_key(*key)).count();
        prop_assert_eq!(mined.excluded.iter().sum::<u64>(), u64_of(excluded));
    }
}

#[test]
fn the_report_can_stop_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = corpus(&folder, &[zipf(50_000, 400)]);
    for stop_at in ["scan", "sort", "count"] {
        let mut phases = Vec::new();
        let result = mine(&corpus, &options(&[(2, None)], 400), &mut |phase, done, total| {
            assert!(done <= total);
            phases.push(phase);
            if phase == stop_at { Err(Error::Interrupted) } else { Ok(()) }
        });
        assert!(matches!(result, Err(Error::Interrupted)), "{stop_at}");
        assert_eq!(phases.last(), Some(&stop_at));
    }
}

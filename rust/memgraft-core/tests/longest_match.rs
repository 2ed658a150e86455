//! Every path of the index against brute force.
#![allow(clippy::as_conversions, reason = "tests compute expected values in any type")]
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::HashSet;

use common::key_set;
use common::oracle::Oracle;
use memgraft_core::batch::{Bounds, Instructions, Options, Unknown};
use memgraft_core::format::Load;
use memgraft_core::ids::{RowId, StateId};
use memgraft_core::index::{Form, Index};
use memgraft_core::stop::Stop;
use proptest::prelude::*;

/// Keys of every shape: holes, missing unigrams, repeats of one token, long chains, wide fans.
fn key_sets() -> impl Strategy<Value = (u32, Vec<(Vec<u32>, u64)>)> {
    let vocabulary = prop_oneof![Just(2u32), Just(3), Just(7), Just(300), Just(1 << 20)];
    vocabulary.prop_flat_map(|vocab_size| {
        let low = 0..vocab_size.min(4);
        let token = prop_oneof![3 => low.clone(), 1 => 0..vocab_size, 1 => Just(vocab_size - 1)];
        let key = prop_oneof![
            4 => prop::collection::vec(token, 1..5),
            1 => prop::collection::vec(low.clone(), 5..=16),
            1 => (low, 1usize..=16).prop_map(|(token, n)| vec![token; n]),
        ];
        let fan = (0..vocab_size.min(60))
            .prop_map(move |n| (0..n).map(|i| vec![1, i * (vocab_size / 60).max(1)]).collect::<Vec<_>>());
        (prop::collection::vec(key, 0..60), fan, prop::collection::vec(1u64..6, 120)).prop_map(
            move |(keys, fan, counts)| {
                let mut seen = HashSet::new();
                let keys = keys.into_iter().chain(fan).filter(|key| key.iter().all(|&t| t < vocab_size));
                let keys = keys.filter(|key| seen.insert(key.clone())).zip(counts);
                (vocab_size, keys.collect())
            },
        )
    })
}

/// What brute force says of each stretch between paddings by itself.
fn between_paddings(oracle: &Oracle, tokens: &[u32], bounds: &Bounds<'_>) -> Vec<(i32, u8)> {
    let ids = bounds.ids.unwrap_or_default();
    let starts = starts_of(bounds, tokens);
    let mut want = vec![(-1, 0); tokens.len()];
    for (at, want) in want.iter_mut().enumerate().filter(|&(at, _)| ids[at] >= 0) {
        let begin = (1..=at).rev().find(|from| starts.contains(from)).unwrap_or(0);
        *want = oracle.lookup(&tokens[begin..=at], &HashSet::new())[at - begin];
    }
    want
}

/// A text that is mostly made of the keys themselves.
fn texts() -> impl Strategy<Value = Vec<(bool, u32)>> {
    prop::collection::vec((any::<bool>(), any::<u32>()), 0..400)
}

fn text(seed: &[(bool, u32)], keys: &[(Vec<u32>, u64)], vocab_size: u32) -> Vec<u32> {
    let mut out = Vec::new();
    for &(from_key, number) in seed {
        match keys.get(number as usize % keys.len().max(1)) {
            Some((key, _)) if from_key => {
                let cut = (number >> 16) as usize % (key.len() + 1);
                out.extend_from_slice(&key[..cut]);
            }
            _ => out.push(number % vocab_size.min(5)),
        }
    }
    out
}

fn lookup(index: &Index, tokens: &[u32], bounds: &Bounds<'_>, options: Options) -> Vec<(i32, u8)> {
    let mut rows = vec![i32::MIN; tokens.len()];
    let mut orders = vec![255; tokens.len()];
    index.lookup(tokens, bounds, Unknown::Error, &mut rows, &mut orders, options).unwrap();
    rows.into_iter().zip(orders).collect()
}

fn starts_of(bounds: &Bounds<'_>, tokens: &[u32]) -> HashSet<usize> {
    (1..tokens.len())
        .filter(|&at| {
            bounds.width.is_some_and(|width| at % width == 0)
                || bounds.ids.is_some_and(|ids| ids[at] != ids[at - 1])
                || bounds.eos.is_some_and(|eos| tokens[at - 1] == eos)
                || bounds.cu_seqlens.is_some_and(|ends| ends.contains(&(at as u64)))
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn every_path_equals_brute_force((vocab_size, keys) in key_sets(), seed in texts(), cuts in prop::collection::vec(0usize..400, 0..8)) {
        let index = Index::build(&key_set(&keys, vocab_size).unwrap()).unwrap();
        let oracle = Oracle::new(&keys);
        let tokens = text(&seed, &keys, vocab_size);
        let mut ends: Vec<u64> = cuts.iter().map(|&cut| (cut % (tokens.len() + 1)) as u64).collect();
        ends.extend([0, tokens.len() as u64]);
        ends.sort_unstable();
        let ids: Vec<i64> = (0..tokens.len()).map(|at| ends.iter().filter(|&&end| end <= at as u64).count() as i64 % 2).collect();
        let width = (1..=tokens.len()).filter(|&w| tokens.len().is_multiple_of(w)).nth(seed.len() % 3);
        for bounds in [
            Bounds::default(),
            Bounds { width, ..Bounds::default() },
            Bounds { ids: Some(&ids), ..Bounds::default() },
            Bounds { eos: Some(1), ..Bounds::default() },
            Bounds { cu_seqlens: Some(&ends), ..Bounds::default() },
            Bounds { width, ids: Some(&ids), eos: Some(0), cu_seqlens: Some(&ends) },
        ] {
            let want = oracle.lookup(&tokens, &starts_of(&bounds, &tokens));
            for lanes in [1, 8, 16, 32] {
                let (best, portable) = (Instructions::Best, Instructions::Portable);
                for (prefetch, instructions) in [(false, best), (true, best), (true, portable)] {
                    let found = lookup(&index, &tokens, &bounds, Options { threads: 3, lanes, prefetch, instructions });
                    prop_assert_eq!(&found, &want, "{} lanes, {:?}", lanes, bounds);
                }
            }
        }
    }

    /// Negative segments miss whatever their tokens are, and nothing matches across them.
    #[test]
    fn padding_misses_and_separates(
        (vocab_size, keys) in key_sets(),
        seed in texts(),
        runs in prop::collection::vec((-2i64..2, 1usize..40), 1..30),
        wild in any::<bool>(),
        wide in any::<bool>(),
    ) {
        let index = Index::build(&key_set(&keys, vocab_size).unwrap()).unwrap();
        let mut tokens = text(&seed, &keys, vocab_size);
        let ids: Vec<i64> = runs.iter().cycle().flat_map(|&(id, n)| vec![id; n]).take(tokens.len()).collect();
        if wild {
            tokens.iter_mut().zip(&ids).filter(|(_, id)| **id < 0).for_each(|(token, _)| *token = u32::MAX);
        }
        let width = Some(tokens.len()).filter(|&n| wide && n > 0 && n % 2 == 0).map(|n| n / 2);
        let bounds = Bounds { ids: Some(&ids), eos: Some(1), width, ..Bounds::default() };
        let want = between_paddings(&Oracle::new(&keys), &tokens, &bounds);
        for (lanes, prefetch, threads) in [(1, true, 1), (16, false, 1), (32, true, 1), (32, true, 3)] {
            let options = Options { threads, lanes, prefetch, ..Options::default() };
            prop_assert_eq!(&lookup(&index, &tokens, &bounds, options), &want, "{:?}", options);
        }
        // Outside padding a wild token is still an error.
        if let Some(at) = ids.iter().position(|&id| id >= 0) {
            tokens[at] = vocab_size;
            let (mut rows, mut orders) = (vec![0; tokens.len()], vec![0; tokens.len()]);
            let found = index.lookup(&tokens, &bounds, Unknown::Error, &mut rows, &mut orders, Options::default());
            prop_assert!(found.unwrap_err().to_string().contains("lies outside the vocabulary"));
        }
    }

    #[test]
    fn advance_equals_lookup_and_rolls_back((vocab_size, keys) in key_sets(), seed in texts()) {
        let index = Index::build(&key_set(&keys, vocab_size).unwrap()).unwrap();
        let tokens = text(&seed, &keys, vocab_size);
        let want = lookup(&index, &tokens, &Bounds::default(), Options::default());
        let mut states = [StateId::START];
        for (&token, &want) in tokens.iter().zip(&want) {
            let (mut rows, mut orders) = ([0], [0]);
            let before = states;
            index.advance(&mut states, &[vocab_size - 1], Unknown::Error, &mut rows, &mut orders).unwrap();
            states = before; // a rejected draft token leaves no trace
            index.advance(&mut states, &[token], Unknown::Error, &mut rows, &mut orders).unwrap();
            prop_assert_eq!((rows[0], orders[0]), want);
        }
    }

    #[test]
    fn saved_opened_and_explained((vocab_size, keys) in key_sets(), seed in texts()) {
        let set = key_set(&keys, vocab_size).unwrap();
        let index = Index::build(&set).unwrap();
        let oracle = Oracle::new(&keys);
        let tokens = text(&seed, &keys, vocab_size);
        let want = oracle.lookup(&tokens, &HashSet::new());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index.mgi");
        for (form, load) in [(Form::Fast, Load::Map), (Form::Fast, Load::Ram), (Form::Archive, Load::Map)] {
            index.save(&path, form).unwrap();
            let opened = Index::open(&path, load).unwrap();
            opened.verify(2).unwrap();
            prop_assert_eq!(opened.fingerprint(), index.fingerprint());
            prop_assert_eq!(opened.is_archive(), form == Form::Archive);
            prop_assert_eq!(opened.key_set().unwrap().fingerprint(), set.fingerprint());
            prop_assert_eq!(opened.keyset_fingerprint(), set.fingerprint());
            prop_assert_eq!(&lookup(&opened, &tokens, &Bounds::default(), Options::default()), &want);
            for (key, count) in &keys {
                let row = opened.find(key).unwrap().unwrap();
                prop_assert_eq!(Some(row.0 as i32), oracle.row(key));
                prop_assert_eq!(&opened.key(row).unwrap(), key);
                prop_assert_eq!(opened.count(row).unwrap(), *count);
                prop_assert_eq!(opened.documents(row).unwrap(), count.div_ceil(2));
                let mut longer = key.clone();
                longer.push(0);
                prop_assert_eq!(opened.find(&longer).unwrap().map(|row| row.0 as i32), oracle.row(&longer));
            }
        }
        prop_assert!(index.key(RowId(keys.len() as u32)).is_err());
    }
}

#[test]
fn large_fans_and_unknown_tokens() {
    let vocab_size = 5000;
    let mut keys: Vec<(Vec<u32>, u64)> = (0..4000).map(|i| (vec![7, i], 1 + u64::from(i % 13))).collect();
    keys.extend((0..900).map(|i| (vec![8, 7, i * 5], 3)));
    keys.push((vec![4999], 5));
    let index = Index::build(&key_set(&keys, vocab_size).unwrap()).unwrap();
    let oracle = Oracle::new(&keys);
    let tokens: Vec<u32> =
        (0..60_000u32).map(|i| [8, 7, i.wrapping_mul(2_654_435_761) % vocab_size, 7][i as usize % 4]).collect();
    let want = oracle.lookup(&tokens, &HashSet::new());
    for threads in [1, 2, 3] {
        let options = Options { threads, ..Options::default() };
        assert_eq!(lookup(&index, &tokens, &Bounds::default(), options), want);
        // A caller that has gone gets no answers, on no thread.
        let (mut rows, mut orders) = (vec![7; tokens.len()], vec![7; tokens.len()]);
        let stop = Stop::default();
        stop.request();
        let found =
            stop.during(|| index.lookup(&tokens, &Bounds::default(), Unknown::Error, &mut rows, &mut orders, options));
        assert!(matches!(found, Err(memgraft_core::Error::Interrupted)));
        assert_eq!((rows, orders), (vec![7; tokens.len()], vec![7; tokens.len()]));
    }
    let mut wild = tokens[..1000].to_vec();
    wild[500] = vocab_size;
    wild[700] = u32::MAX;
    let (mut rows, mut orders) = (vec![0; 1000], vec![0; 1000]);
    let error = index.lookup(&wild, &Bounds::default(), Unknown::Error, &mut rows, &mut orders, Options::default());
    assert!(error.unwrap_err().to_string().contains("tokens[500]: 5000 lies outside the vocabulary of 5000"));
    index.lookup(&wild, &Bounds::default(), Unknown::Miss, &mut rows, &mut orders, Options::default()).unwrap();
    let found: Vec<(i32, u8)> = rows.into_iter().zip(orders).collect();
    assert_eq!(found, oracle.lookup(&wild, &HashSet::new()));
}

use proptest::prelude::*;

use super::sketch::Sketch;
use super::tests::{brute, corpus, documents_strategy, means, options, quiet, rows};
use super::window::Packing;
use super::{Means, MineOptions, mine};
use crate::ids::{MAX_ORDER, u64_of};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]
    #[test]
    fn a_sketch_changes_no_key_no_count_and_no_total(
        documents in documents_strategy(9),
        orders in prop::collection::btree_set(1usize..=6, 1..4),
        budget in prop::option::of(1u64..20),
        min_count in 1u64..4,
        min_documents in 0u64..3,
        block_size in 1u64..60,
        threads in 1usize..3,
        picks in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let corpus = corpus(&folder, &documents);
        let wanted: Vec<_> = orders.iter().map(|&order| (order, budget)).collect();
        let mut plain = options(&wanted, 9);
        (plain.choice.min_count, plain.choice.min_documents) = (min_count, min_documents);
        // Keys that are required although they may occur once, or never.
        let all: Vec<Vec<u32>> = brute(&documents, &[0], &orders.iter().copied().collect::<Vec<_>>()).into_keys().collect();
        plain.choice.required = picks.iter().filter(|_| !all.is_empty()).map(|pick| pick.get(&all).clone()).collect();
        plain.choice.required.extend(orders.first().map(|&order| vec![8; order]));
        plain.means.block_size = Some(block_size);
        let means = Means { sketch: true, threads, ..plain.means.clone() };
        let sketched = mine(&corpus, &MineOptions { means, ..plain.clone() }, &mut quiet).unwrap();
        let plain = mine(&corpus, &plain, &mut quiet).unwrap();
        prop_assert_eq!(rows(&sketched.keys), rows(&plain.keys));
        for &order in &orders {
            let of = |mined: &super::Mined| (mined.positions[order], mined.distinct[order], mined.frequent[order]);
            prop_assert_eq!(of(&sketched), of(&plain));
        }
    }

    #[test]
    fn only_what_occurs_once_is_left_out_however_few_the_slots(
        keys in prop::collection::vec(prop::collection::vec(0u32..7, 1..6), 1..60),
        words in 1u64..9,
        orders in prop::collection::btree_set(1usize..=5, 1..4),
    ) {
        let packing = Packing::new(7, 5);
        let sketch = Sketch::new(words * 8, orders.iter().copied());
        let packed: Vec<[u64; 1]> = keys.iter().map(|key| packing.pack(key)).collect();
        packed.iter().for_each(|key| sketch.add(&packing, key));
        let times = |prefix: &[u32]| keys.iter().filter(|key| key.starts_with(prefix)).count();
        let (mut dropped, mut expected) = ([0; MAX_ORDER + 1], [0; MAX_ORDER + 1]);
        for (key, packed) in keys.iter().zip(&packed) {
            let kept = packing.len(&sketch.shorten(&packing, packed, &mut dropped));
            prop_assert!(kept >= 1 && kept <= key.len());
            for &order in orders.iter().filter(|&&order| order > 1 && order <= key.len() && order > kept) {
                prop_assert_eq!(times(&key[..order]), 1, "{:?} at {}", key, order);
                expected[order] += 1;
            }
        }
        prop_assert_eq!(dropped, expected);
        prop_assert!(u64_of(keys.len()) >= dropped.iter().copied().max().unwrap_or(0));
    }
}

#[test]
fn a_required_key_that_occurs_once_keeps_its_count() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = corpus(&folder, &[vec![1, 2, 3, 1, 2], vec![4, 5, 6]]);
    let mut options = options(&[(3, Some(9))], 9);
    (options.choice.min_count, options.choice.required) = (2, vec![vec![4, 5, 6]]);
    options.means = Means { sketch: true, block_size: Some(4), ..means() };
    let mined = mine(&corpus, &options, &mut quiet).unwrap();
    assert_eq!(rows(&mined.keys), [(vec![4, 5, 6], 1, 1)]);
}

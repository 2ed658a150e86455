//! Any key set, any text, any segments: every path equals brute force.
#![no_main]

#[path = "../../memgraft-core/tests/common/oracle.rs"]
mod oracle;

use std::collections::HashSet;

use libfuzzer_sys::fuzz_target;
use memgraft_core::batch::{Bounds, Instructions, Options, Unknown};
use memgraft_core::ids::StateId;
use memgraft_core::index::Index;
use memgraft_core::keyset::{Arrays, KeySet};
use oracle::Oracle;

fuzz_target!(|data: &[u8]| {
    let [vocabulary, num_keys, rest @ ..] = data else { return };
    let vocab_size = [2, 3, 9, 64, 4096, 1 << 20][usize::from(*vocabulary) % 6];
    let token = |byte: u8| (u32::from(byte) * [1, 16_411][usize::from(byte >> 7)]) % vocab_size;
    let mut bytes = rest.iter().copied();
    let mut seen = HashSet::new();
    let mut keys: Vec<(Vec<u32>, u64)> = Vec::new();
    for _ in 0..*num_keys {
        let Some(head) = bytes.next() else { break };
        let key: Vec<u32> = bytes.by_ref().take(usize::from(head % 16) + 1).map(token).collect();
        if !key.is_empty() && seen.insert(key.clone()) {
            keys.push((key, u64::from(head / 16)));
        }
    }
    let text: Vec<u8> = bytes.collect();
    let tokens: Vec<u32> = text.iter().copied().map(token).collect();
    let ids: Vec<i64> = text
        .iter()
        .scan(0, |id, &byte| {
            *id += i64::from(byte == 255);
            // Padding now and then.
            Some(if *id % 4 == 3 { -1 } else { *id })
        })
        .collect();
    let flat: Vec<u32> = keys.iter().flat_map(|(key, _)| key.iter().copied()).collect();
    let mut offsets = vec![0u64];
    offsets.extend(keys.iter().scan(0, |at, (key, _)| {
        *at += key.len() as u64;
        Some(*at)
    }));
    let counts: Vec<u64> = keys.iter().map(|&(_, count)| count).collect();
    let arrays = Arrays { tokens: &flat, offsets: &offsets, counts: &counts, documents: None };
    let set = KeySet::from_arrays(arrays, vocab_size, &[], String::new()).expect("distinct keys in range");
    let index = Index::build(&set).expect("a small set fits");
    let starts: HashSet<usize> = (1..ids.len()).filter(|&at| ids[at] != ids[at - 1]).collect();
    let mut want = Oracle::new(&keys).lookup(&tokens, &starts);
    ids.iter().zip(&mut want).filter(|(id, _)| **id < 0).for_each(|(_, want)| *want = (-1, 0));
    let bounds = Bounds { ids: Some(&ids), ..Bounds::default() };
    let (best, portable) = (Instructions::Best, Instructions::Portable);
    for (lanes, instructions) in [(1, portable), (8, best), (16, portable), (32, portable), (32, best)] {
        let (mut rows, mut orders) = (vec![0; tokens.len()], vec![0; tokens.len()]);
        let options = Options { lanes, instructions, ..Options::default() };
        index.lookup(&tokens, &bounds, Unknown::Error, &mut rows, &mut orders, options).expect("tokens are in range");
        assert!(rows.into_iter().zip(orders).eq(want.iter().copied()), "{lanes} lanes");
    }
    let mut states = [StateId::START];
    for (at, &token) in tokens.iter().enumerate().filter(|&(at, _)| ids[at] >= 0) {
        if starts.contains(&at) {
            states = [StateId::START];
        }
        let (mut rows, mut orders) = ([0], [0]);
        index.advance(&mut states, &[token], Unknown::Error, &mut rows, &mut orders).expect("the index is sound");
        assert_eq!((rows[0], orders[0]), want[at]);
    }
    for (key, count) in &keys {
        let row = index.find(key).expect("the index is sound").expect("a key is found");
        assert_eq!((&index.key(row).expect("a row"), index.count(row).expect("a row")), (key, *count));
    }
    assert_eq!(index.key_set().expect("the index is sound").fingerprint(), set.fingerprint());
});

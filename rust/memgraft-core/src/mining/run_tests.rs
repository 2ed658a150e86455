//! What a run file may hold and what it may not: damage at any byte, counts of any size.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::part_tests::{message, part_options};
use super::runs::RunWriter;
use super::tests::{corpus, means, options, quiet, rows, zipf};
use super::window::Packing;
use super::*;
use crate::fingerprint::Fingerprint;

#[test]
fn damage_anywhere_is_a_format_error() {
    let folder = tempfile::tempdir().unwrap();
    let documents: Vec<Vec<u32>> = zipf(400, 200).chunks(50).map(<[u32]>::to_vec).collect();
    let corpus = corpus(&folder, &documents);
    let out = folder.path().join("part.mgr");
    let mut mining = part_options(0, 1, 3, 201);
    mining.means.block_size = None;
    mine_part(&corpus, &out, &mining, &mut quiet).unwrap();
    let whole = std::fs::read(&out).unwrap();
    let bad = folder.path().join("bad.mgr");
    let try_it = |bytes: &[u8]| {
        std::fs::write(&bad, bytes).unwrap();
        let paths = std::slice::from_ref(&bad);
        message(select_parts(paths, &options(&[(2, None)], 201), &mut quiet))
    };
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        try_it(&bytes);
    }
    for len in (0..whole.len()).step_by(13) {
        try_it(&whole[..len]);
    }
    assert!(try_it(&[whole.clone(), vec![0]].concat()).contains("truncated or overgrown"));
    let mut future = whole.clone();
    future[12] = 2;
    assert!(try_it(&future).contains("version 1.0 to 1.1, found 2.1"));
    let mut older = whole.clone();
    older[14] = 0;
    assert!(try_it(&older).contains("bytes of a key"));
    assert!(try_it(b"MEMGRAFT").contains("at least 64 bytes"));
    assert!(try_it(&[b'x'; 100]).contains("starts with MEMGRUNS"));
}

/// A part of one shard, a corpus of its own, with these records of (tokens, documents tag, count).
fn written(path: &Path, rank: u64, world: u64, records: &[(Vec<u32>, u64, u64)]) -> PathBuf {
    let (vocab_size, max_order) = (1 << 20, 3);
    let packing = Packing::new(vocab_size, max_order);
    let mut writer = RunWriter::<1>::create(path, &packing).unwrap();
    let mut fits = vec![0; max_order];
    for (tokens, tag, count) in records {
        writer.push_all(&[(packing.pack(tokens), *tag, *count)]).unwrap();
        (0..tokens.len()).for_each(|order| fits[order] += count);
    }
    let lengths = writer.lengths(|put| put(&[1])).unwrap();
    let num_tokens = fits[0];
    let fingerprint = Fingerprint(*blake3::hash(&[u8::try_from(rank).unwrap()]).as_bytes());
    let shard =
        Shard { rank, fingerprint, num_tokens, num_documents: 1, fits, leaves: Vec::new(), shared_leaf: None, lengths };
    let facts = Facts {
        vocab_size,
        max_order,
        reserved: Vec::new(),
        tokens: (0, vocab_size),
        num_records: 0,
        world,
        apart: true,
        outline: None,
        settings: json!({}),
        shards: vec![shard],
        pieces: Vec::new(),
        longs: Vec::new(),
        block_of: None,
    };
    writer.finish(&facts).unwrap().verify().unwrap();
    path.to_path_buf()
}

#[test]
fn counts_beyond_32_bits_and_the_last_id_add_up_in_every_merge() {
    let folder = tempfile::tempdir().unwrap();
    let (large, last) = (3 << 32, (1 << 20) - 1);
    // Tag n: a document that had shown the first n tokens of the key already.
    let of = |extra: u64| vec![(vec![1, 2, 3], 0, 1), (vec![1, 2, 3], 3, large + extra), (vec![last; 3], 0, 7)];
    let parts: Vec<PathBuf> =
        (0..3).map(|rank| written(&folder.path().join(format!("{rank}.mgr")), rank, 3, &of(rank))).collect();
    let choose = options(&[(1, None), (2, None), (3, None)], 1 << 20);
    let check = |paths: &[PathBuf]| {
        let (mined, facts) = select_parts(paths, &choose, &mut quiet).unwrap();
        assert_eq!(facts.num_tokens, 3 * large + 3 + 3 + 3 * 7);
        let found = rows(&mined.keys);
        assert_eq!(found.len(), 6);
        for order in 1..=3 {
            let (count, documents) = (3 * large + 6, 3);
            assert!(found.contains(&(vec![1, 2, 3][..order].to_vec(), count, documents)), "{found:?}");
            assert!(found.contains(&(vec![last; order], 21, 21)), "{found:?}");
            assert_eq!(mined.positions[order], count + 21);
        }
    };
    check(&parts);
    let first = folder.path().join("first.mgr");
    merge_parts(&parts[1..], &first, None, &means(), &mut quiet).unwrap().verify().unwrap();
    check(&[first.clone(), parts[0].clone()]);
    let ranges: Vec<PathBuf> = (0..2)
        .map(|index| {
            let out = folder.path().join(format!("range-{index}.mgr"));
            merge_parts(&[first.clone(), parts[0].clone()], &out, Some((index, 2)), &means(), &mut quiet).unwrap();
            out
        })
        .collect();
    check(&ranges);
}

#[test]
fn shards_that_hold_more_than_any_corpus_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let parts: Vec<PathBuf> = (0..3)
        .map(|rank| written(&folder.path().join(format!("{rank}.mgr")), rank, 3, &[(vec![5], 0, 1 << 61)]))
        .collect();
    let choose = options(&[(1, None)], 1 << 20);
    assert!(message(select_parts(&parts, &choose, &mut quiet)).contains("more positions than any corpus"));
}

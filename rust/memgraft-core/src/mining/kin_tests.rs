//! Which parts belong together.

use std::path::PathBuf;

use serde_json::json;

use super::part_tests::{message, mine_all, part_options};
use super::tests::{EOS, corpus, corpus as elsewhere_corpus, means, options, quiet, zipf};
use super::*;

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let documents: Vec<Vec<u32>> = zipf(3000, 3000).chunks(50).map(<[u32]>::to_vec).collect();
    let corpus = corpus(&folder, &documents);
    let parts = mine_all(&corpus, folder.path(), 3, |_, _| ());
    let choose = options(&[(2, None)], 3001);
    let select = |paths: &[PathBuf]| message(select_parts(paths, &choose, &mut quiet));
    assert!(select(&parts[..2]).contains("all 3 shards of the corpus, found 2; shard 2 is missing"));
    let doubled = select(&[&parts[..], &parts[1..2]].concat());
    assert!(doubled.contains("expected every shard once, found shard 1 in"), "{doubled}");
    let range = folder.path().join("range.mgr");
    merge_parts(&parts, &range, Some((0, 2)), &means(), &mut quiet).unwrap();
    assert!(select(std::slice::from_ref(&range)).contains("found none of"));
    assert!(select(&[range, parts[0].clone()]).contains("parts: expected"));
    let other = tempfile::tempdir().unwrap();
    for (want, change) in [
        ("vocabulary size", Box::new(|o: &mut PartOptions| o.vocab_size = 3002) as Box<dyn Fn(&mut PartOptions)>),
        ("longest order", Box::new(|o| o.max_order = 3)),
        ("reserved tokens", Box::new(|o| o.reserved = vec![EOS, 5])),
        ("tokenizer", Box::new(|o| o.settings = json!({"tokenizer": "u"}))),
        ("world", Box::new(|o| o.apart = true)),
    ] {
        let out = other.path().join(format!("{want}.mgr"));
        let mut options = part_options(1, 3, 4, 3001);
        change(&mut options);
        mine_part(&corpus, &out, &options, &mut quiet).unwrap();
        let found = select(&[parts[0].clone(), out, parts[2].clone()]);
        assert!(found.contains(&format!("expected the {want} of")), "{want}: {found}");
    }
    let merged = folder.path().join("merged.mgr");
    merge_parts(&parts, &merged, None, &means(), &mut quiet).unwrap();
    let found = message(merge_parts(&parts[..2], &merged, None, &means(), &mut quiet));
    assert!(found.contains("remove it, or choose another out"), "{found}");
}

#[test]
fn parts_of_two_corpora_are_refused_though_all_else_is_the_same() {
    let documents: Vec<Vec<u32>> = zipf(3000, 3000).chunks(50).map(<[u32]>::to_vec).collect();
    let folder = tempfile::tempdir().unwrap();
    let parts = mine_all(&corpus(&folder, &documents), folder.path(), 2, |_, _| ());
    let mut edited = documents.clone();
    edited[50][25] ^= 1;
    let reversed = documents.iter().rev().cloned().collect();
    let grown = [&documents[..], &[vec![7]]].concat();
    for others in [edited, reversed, grown] {
        let other = tempfile::tempdir().unwrap();
        let others = mine_all(&elsewhere_corpus(&other, &others), other.path(), 2, |_, _| ());
        for mixed in [[&parts[0], &others[1]], [&others[0], &parts[1]]] {
            let mixed = mixed.map(Clone::clone);
            let out = other.path().join("out.mgr");
            let merged = message(merge_parts(&mixed, &out, None, &means(), &mut quiet));
            assert!(merged.contains("expected the corpus of"), "{merged}");
            let selected = message(select_parts(&mixed, &options(&[(2, None)], 3001), &mut quiet));
            assert!(selected.contains("expected the corpus of"), "{selected}");
        }
    }
}

#[test]
fn a_corpus_that_changed_between_the_ranks_is_refused() {
    // Beyond what an outline sees: between two of its stretches.
    let documents: Vec<Vec<u32>> = zipf(120_000, 3000).chunks(400).map(<[u32]>::to_vec).collect();
    let folder = tempfile::tempdir().unwrap();
    let whole = corpus(&folder, &documents);
    let parts = mine_all(&whole, folder.path(), 3, |_, _| ());
    let want = whole.fingerprint(1).unwrap();
    let choose = options(&[(2, Some(9))], 3001);
    assert_eq!(select_parts(&parts, &choose, &mut quiet).unwrap().1.fingerprint, want);
    let mut unseen = 0;
    for document in [10, 150, 290] {
        let mut edited = (0..30).map(|shift| {
            let mut edited = documents.clone();
            edited[document][200 + shift] ^= 1;
            edited
        });
        let other = tempfile::tempdir().unwrap();
        let changed = edited.find_map(|edited| {
            let changed = elsewhere_corpus(&other, &edited);
            (changed.outline().unwrap() == whole.outline().unwrap()).then_some(changed)
        });
        let Some(changed) = changed else { continue };
        unseen += 1;
        let changed = mine_all(&changed, other.path(), 3, |_, _| ());
        for mask in 1..7usize {
            let of = |rank: usize| if mask >> rank & 1 == 0 { parts[rank].clone() } else { changed[rank].clone() };
            let found = message(select_parts(&[of(0), of(1), of(2)], &choose, &mut quiet));
            assert!(found.contains("found other tokens where they meet"), "{found}");
        }
    }
    assert!(unseen > 0, "expected a token that the outline does not see");
}

#[test]
fn corpora_of_their_own_hold_every_document_once() {
    let documents: Vec<Vec<u32>> = zipf(3000, 3000).chunks(50).map(<[u32]>::to_vec).collect();
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let apart = |_, options: &mut PartOptions| options.apart = true;
    let parts = mine_all(&corpus(&folder, &documents), folder.path(), 2, apart);
    let select = |paths: &[PathBuf]| select_parts(paths, &options(&[(2, None)], 3001), &mut quiet);
    let same = "found the same documents in shards 0 and 1";
    let found = message(select(&parts));
    assert!(found.contains(same), "{found}");
    // Of some shards, those of few documents may be the same by chance; those of many are not.
    for (num_tokens, is_refused) in [(65_000, false), (65_536, true)] {
        let folder = tempfile::tempdir().unwrap();
        let many: Vec<Vec<u32>> = zipf(num_tokens, 3000).chunks(500).map(<[u32]>::to_vec).collect();
        let mut parts = mine_all(&corpus(&folder, &many), folder.path(), 3, apart);
        let last = elsewhere_corpus(&folder, &documents);
        let mut options = part_options(2, 3, 4, 3001);
        options.apart = true;
        parts[2] = folder.path().join("last.mgr");
        mine_part(&last, &parts[2], &options, &mut quiet).unwrap();
        let out = folder.path().join("out.mgr");
        if is_refused {
            let found = [message(select(&parts)), message(merge_parts(&parts[..2], &out, None, &means(), &mut quiet))];
            assert!(found.iter().all(|found| found.contains(same)), "{found:?}");
        } else {
            select(&parts).unwrap();
            merge_parts(&parts[..2], &out, None, &means(), &mut quiet).unwrap();
        }
    }
    let others = mine_all(&elsewhere_corpus(&other, &documents[1..]), other.path(), 2, apart);
    select(&[parts[0].clone(), others[1].clone()]).unwrap();
    // One shard, of which two ranges are of different corpora.
    let range = folder.path().join("range.mgr");
    merge_parts(&parts[1..], &range, Some((0, 2)), &means(), &mut quiet).unwrap();
    let found = message(select(&[range, others[1].clone()]));
    assert!(found.contains("expected shard 1 to be"), "{found}");
}

#[test]
fn a_tokenizer_is_what_it_does_where_that_is_recorded() {
    let settings = |file: &str, mapping: &str, size: u32, added: &str| {
        let mapping = json!({"fingerprint": mapping, "vocab_size": size, "added_fingerprint": added});
        json!({"tokenizer": file, "tokenizer_mapping": mapping, "eos_id": 1})
    };
    let first = settings("f", "m", 300, "none");
    let cases = [
        (settings("g", "m", 300, "none"), None),
        (settings("g", "m", 301, "one"), None),
        (settings("g", "m", 300, "one"), Some("tokenizer")),
        (settings("g", "n", 300, "none"), Some("tokenizer")),
        (json!({"tokenizer": "f", "eos_id": 1}), None),
        (json!({"tokenizer": "g", "eos_id": 1}), Some("tokenizer")),
        (json!({"tokenizer": null, "eos_id": 1}), Some("tokenizer")),
        (json!({"tokenizer": "f", "eos_id": 2}), Some("eos_id")),
    ];
    for (other, differs) in cases {
        for (a, b) in [(&first, &other), (&other, &first)] {
            let found = kin::differing(a, b);
            assert_eq!(found.as_deref().map(|name| name.trim_end_matches("_mapping")), differs, "{a} {b}");
            if differs.is_none() {
                assert_eq!(kin::common(a, b), kin::common(b, a));
                assert_eq!(kin::common(a, b)["tokenizer_mapping"], first["tokenizer_mapping"]);
                assert_eq!(kin::common(a, b)["tokenizer"].is_null(), a["tokenizer"] != b["tokenizer"]);
            }
        }
    }
}

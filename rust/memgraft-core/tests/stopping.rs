//! Long calls end where the caller has asked them to, and leave what they were given usable.

#![allow(clippy::as_conversions, reason = "tests compute expected values in any type")]
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::key_set;
use memgraft_core::batch::Unknown;
use memgraft_core::ids::StateId;
use memgraft_core::index::Index;
use memgraft_core::stop::Stop;
use memgraft_core::values::ValueTable;
use memgraft_core::values::verify::content_fingerprint;
use memgraft_core::{Error, Result};

/// What `work` returns that was asked to end before it began.
fn asked<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let stop = Stop::default();
    stop.request();
    stop.during(work)
}

fn interrupted<T>(found: &Result<T>) -> bool {
    matches!(found, Err(Error::Interrupted))
}

/// A shard of `rows` fp32 rows of 16 channels.
fn shard(folder: &std::path::Path, rows: usize) -> std::path::PathBuf {
    let bytes = rows * 64;
    let header = format!(r#"{{"values":{{"dtype":"F32","shape":[{rows},1,16],"data_offsets":[0,{bytes}]}}}}"#);
    let mut file = 4088_u64.to_le_bytes().to_vec();
    file.extend_from_slice(format!("{header:4088}").as_bytes());
    file.extend((0..bytes).map(|at| (at * 31 % 251) as u8));
    let path = folder.join("values");
    std::fs::write(&path, file).unwrap();
    path
}

#[test]
fn values_are_neither_copied_nor_hashed_to_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = shard(folder.path(), 140_000);
    let table = ValueTable::open(&[&path]).unwrap();
    let rows: Vec<i32> = (0..4000).rev().collect();
    let mut out = vec![0; rows.len() * 64];
    assert!(interrupted(&asked(|| table.gather(&rows, &mut out, 2))));
    assert!(interrupted(&asked(|| table.stage(&rows, &mut out, 2))));
    assert!(interrupted(&asked(|| table.warm(140_000, 2))));
    assert!(interrupted(&asked(|| ValueTable::open(&[&path]).unwrap().make_resident(140_000, 2))));
    assert!(interrupted(&asked(|| content_fingerprint(&path, 4096, 2))));
    // The same table answers the next call.
    let staged = table.stage(&rows, &mut out, 2).unwrap();
    assert!(staged.gathered.is_some());
    assert_eq!(out, std::fs::read(&path).unwrap()[4096..][..out.len()]);
}

#[test]
fn a_step_of_many_sequences_ends_and_moves_no_state() {
    let keys = key_set(&[(vec![1, 2], 1)], 5).unwrap();
    let index = Index::build(&keys).unwrap();
    let many = 200_000;
    let start = vec![StateId::START; many];
    let (mut states, tokens): (Vec<StateId>, _) = (start.clone(), vec![1; many]);
    let (mut rows, mut orders) = (vec![-1; many], vec![0; many]);
    let found = asked(|| index.advance(&mut states, &tokens, Unknown::Error, &mut rows, &mut orders));
    assert!(interrupted(&found));
    assert_eq!(states, start);
}

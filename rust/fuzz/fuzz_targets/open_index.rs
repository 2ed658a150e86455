//! Any bytes as an index file or key set: an error or possible answers, never a crash, a hang or a read out of bounds.
//!
//! The header's checksum is mended first, so that the fuzzer gets past it.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use memgraft_core::batch::{Bounds, Instructions, Options, Unknown};
use memgraft_core::format::{CHECKSUM_OFFSET, HEADER_LEN, Load};
use memgraft_core::ids::{RowId, StateId};
use memgraft_core::index::Index;
use memgraft_core::keyset::KeySet;

static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    folder.join(format!("memgraft-fuzz-{}", std::process::id()))
});

fuzz_target!(|data: &[u8]| {
    let mut bytes = data.to_vec();
    if bytes.len() >= HEADER_LEN {
        let length = (bytes.len() as u64).to_le_bytes();
        bytes[32..40].copy_from_slice(&length);
        let checksum = blake3::hash(&bytes[..CHECKSUM_OFFSET]);
        bytes[CHECKSUM_OFFSET..HEADER_LEN].copy_from_slice(checksum.as_bytes());
    }
    std::fs::write(&*FILE, &bytes).expect("the fuzz file can be written");
    if let Ok(keys) = KeySet::open(&*FILE) {
        let _ = keys.verify(1);
        for row in 0..(keys.len() as u32).min(70) {
            let _ = keys.key(RowId(row));
        }
        assert!(keys.iter().all(|key| key.len() <= 255));
    }
    let Ok(index) = Index::open(&*FILE, Load::Map) else { return };
    let _ = index.verify(1);
    let vocab_size = index.vocab_size();
    let tokens: Vec<u32> = (0..300u32).map(|i| i.wrapping_mul(i) % vocab_size.min(64)).collect();
    for instructions in [Instructions::Best, Instructions::Portable] {
        let (mut rows, mut orders) = (vec![0; tokens.len()], vec![0; tokens.len()]);
        let options = Options { instructions, ..Options::default() };
        if index.lookup(&tokens, &Bounds::default(), Unknown::Error, &mut rows, &mut orders, options).is_ok() {
            assert!(rows.iter().all(|&row| row >= -1 && i64::from(row) < index.num_keys() as i64));
            assert!(orders.iter().all(|&order| usize::from(order) <= index.max_order()));
        }
    }
    let mut states = [StateId::START];
    for &token in &tokens[..50] {
        let (mut row, mut order) = ([0], [0]);
        if index.advance(&mut states, &[token], Unknown::Miss, &mut row, &mut order).is_ok() {
            assert!(row[0] >= -1 && i64::from(row[0]) < index.num_keys() as i64);
            assert!(usize::from(order[0]) <= index.max_order());
        }
    }
    for row in 0..(index.num_keys() as u32).min(40) {
        let _ = (index.key(RowId(row)), index.count(RowId(row)), index.documents(RowId(row)));
    }
    if let Ok(Some(row)) = index.find(&tokens[..3]) {
        assert!((row.0 as usize) < index.num_keys());
    }
    let _ = index.key_set();
});

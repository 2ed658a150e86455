//! Shared by the integration tests.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

pub mod oracle;

use memgraft_core::keyset::{Arrays, KeySet};

/// A key set from plain vectors.
pub fn key_set(keys: &[(Vec<u32>, u64)], vocab_size: u32) -> memgraft_core::Result<KeySet> {
    let tokens: Vec<u32> = keys.iter().flat_map(|(key, _)| key.iter().copied()).collect();
    let mut offsets = vec![0u64];
    for (key, _) in keys {
        offsets.push(offsets.last().unwrap() + key.len() as u64);
    }
    let counts: Vec<u64> = keys.iter().map(|&(_, count)| count).collect();
    let documents: Vec<u64> = counts.iter().map(|&count| count.div_ceil(2)).collect();
    let arrays = Arrays { tokens: &tokens, offsets: &offsets, counts: &counts, documents: Some(&documents) };
    KeySet::from_arrays(arrays, vocab_size, &[], String::from("{}"))
}

//! `build`: key set to index file; keys per second, bytes per key, peak memory. A process of its own, for the peak.

use std::time::Instant;

use memgraft_core::index::Index;
use memgraft_core::keyset::KeySet;
use serde_json::{Value, json};

use crate::Fallible;
use crate::arguments::Arguments;
use crate::memory::{peak_resident_bytes, resident_bytes};

/// Builds the index of `--keys` and writes it to `--index`.
///
/// # Errors
/// Those of the core.
pub fn run(arguments: &mut Arguments) -> Fallible<Value> {
    let (keys_path, index_path) = (arguments.path("keys")?, arguments.path("index")?);
    let keys = KeySet::open(&keys_path)?;
    let before = resident_bytes();
    let began = Instant::now();
    let index = Index::build(&keys)?;
    let build_seconds = began.elapsed().as_secs_f64();
    let peak_bytes = peak_resident_bytes();
    let began = Instant::now();
    index.save(&index_path)?;
    let save_seconds = began.elapsed().as_secs_f64();
    let (file_bytes, num_keys) = (std::fs::metadata(&index_path)?.len(), keys.len());
    let per_key = |bytes: u64| bytes as f64 / num_keys.max(1) as f64;
    Ok(json!({
        "num_keys": num_keys,
        "keys_by_order": &keys.keys_by_order()[..keys.max_order()],
        "build_seconds": build_seconds,
        "save_seconds": save_seconds,
        "keys_per_second": num_keys as f64 / build_seconds,
        "file_bytes": file_bytes,
        "file_bytes_per_key": per_key(file_bytes),
        "table_bytes_per_key": per_key(index.stats().table_bytes),
        "resident_before": before,
        "peak_resident": peak_bytes,
        "peak_over_file": peak_bytes as f64 / file_bytes as f64,
        "fingerprint": index.fingerprint().to_string(),
    }))
}

//! `build`: key set to index file; keys per second, bytes per key, peak memory.
//! A process of its own, so that nothing else counts in the peak; the keys are mapped.

use std::path::Path;
use std::time::Instant;

use memgraft_core::format::Load;
use memgraft_core::index::{Form, Index};
use memgraft_core::keyset::KeySet;
use serde_json::{Value, json};

use crate::Fallible;
use crate::arguments::Arguments;
use crate::memory::peak_private_bytes;

/// Builds the index of `--keys` and writes it to `--index`; unless `--archive false`, its archive form beside it, which
/// is expanded again.
///
/// # Errors
/// Those of the core.
pub fn run(arguments: &mut Arguments) -> Fallible<Value> {
    let (keys_path, index_path) = (arguments.path("keys")?, arguments.path("index")?);
    let keys = KeySet::open(&keys_path)?;
    let began = Instant::now();
    let (index, peak_bytes) = peak_private_bytes(|| Index::build(&keys));
    let index = index?;
    let build_seconds = began.elapsed().as_secs_f64();
    let began = Instant::now();
    index.save(&index_path, Form::Fast)?;
    let save_seconds = began.elapsed().as_secs_f64();
    let num_keys = keys.len();
    let per_key = |bytes: u64| bytes as f64 / num_keys.max(1) as f64;
    let stats = index.stats();
    let fingerprint = index.fingerprint();
    let archive = if arguments.take("archive", true)? { Some(archive(index, &index_path)?) } else { None };
    let file_bytes = std::fs::metadata(&index_path)?.len();
    Ok(json!({
        "num_keys": num_keys,
        "keys_by_order": &keys.keys_by_order()[..keys.max_order()],
        "build_seconds": build_seconds,
        "save_seconds": save_seconds,
        "keys_per_second": num_keys as f64 / build_seconds,
        "file_bytes": file_bytes,
        "file_bytes_per_key": per_key(file_bytes),
        "table_bytes_per_key": per_key(stats.table_bytes),
        "archive_bytes_per_key": archive.map(|(bytes, _)| per_key(bytes)),
        "expand_seconds": archive.map(|(_, seconds)| seconds),
        "peak_private_bytes": peak_bytes,
        "peak_over_file": peak_bytes as f64 / file_bytes as f64,
        "fingerprint": fingerprint.to_string(),
    }))
}

/// Writes the archive form of `index` beside it and expands it: bytes of the file, seconds.
fn archive(index: Index, index_path: &Path) -> Fallible<(u64, f64)> {
    let path = index_path.with_extension("archive.mgi");
    index.save(&path, Form::Archive)?;
    let (stats, fingerprint) = (index.stats(), index.fingerprint());
    drop(index);
    let began = Instant::now();
    let expanded = Index::open(&path, Load::Map)?;
    let seconds = began.elapsed().as_secs_f64();
    if (expanded.fingerprint(), expanded.stats().table_bytes) != (fingerprint, stats.table_bytes) {
        return Err("the expanded archive is another index: nothing is reported".into());
    }
    Ok((std::fs::metadata(&path)?.len(), seconds))
}

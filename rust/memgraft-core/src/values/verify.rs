//! The content fingerprint of a shard: what `verify` recomputes.
//!
//! BLAKE3 of the data region: everything after the header, which is left out
//! because it carries the result. Read with `pread`, subtree by subtree, so that
//! threads share one file and a damaged disk gives an error, not a signal.
#![forbid(unsafe_code)]

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use blake3::hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};

use crate::values::shard::read_exact;
use crate::{Error, Result};

/// Bytes that are hashed as one; a power of two, so that each is a subtree.
const CHUNK: u64 = 4 << 20;

/// Fingerprint of the bytes of `path` from `start` to its end.
///
/// # Errors
/// [`Error::Io`] naming file and offset; [`Error::Argument`] for a start past the end.
pub fn content_fingerprint(path: &Path, start: u64, threads: usize) -> Result<[u8; 32]> {
    let file = File::open(path).map_err(|source| Error::io(path, "opening the file to verify it", source))?;
    let length = file.metadata().map_err(|source| Error::io(path, "reading the file's length", source))?.len();
    let Some(region) = length.checked_sub(start) else {
        return Err(Error::argument(format!("{}: starts at byte {start} of {length}", path.display())));
    };
    let num_chunks = region.div_ceil(CHUNK);
    let read = |buffer: &mut Vec<u8>, chunk: u64| -> Result<()> {
        let offset = chunk * CHUNK;
        buffer.resize((region - offset).min(CHUNK) as usize, 0);
        read_exact(path, &file, start + offset, buffer)
    };
    if num_chunks < 2 {
        let mut buffer = Vec::new();
        if region > 0 {
            read(&mut buffer, 0)?;
        }
        return Ok(*blake3::hash(&buffer).as_bytes());
    }
    let next = AtomicU64::new(0);
    let work = || -> Result<Vec<(u64, ChainingValue)>> {
        let (mut buffer, mut values) = (Vec::new(), Vec::new());
        loop {
            let chunk = next.fetch_add(1, Ordering::Relaxed);
            if chunk >= num_chunks {
                return Ok(values);
            }
            read(&mut buffer, chunk)?;
            let mut hasher = blake3::Hasher::new();
            hasher.set_input_offset(chunk * CHUNK).update(&buffer);
            values.push((chunk, hasher.finalize_non_root()));
        }
    };
    let threads = threads.clamp(1, usize::try_from(num_chunks).unwrap_or(usize::MAX));
    let parts = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let join = |worker: thread::ScopedJoinHandle<'_, _>| {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        workers.into_iter().map(join).collect::<Result<Vec<_>>>()
    })?;
    let mut chunks: Vec<_> = parts.into_iter().flatten().collect();
    chunks.sort_unstable_by_key(|&(chunk, _)| chunk);
    let values: Vec<ChainingValue> = chunks.into_iter().map(|(_, value)| value).collect();
    let left = left_subtree_len(region);
    let (a, b) = values.split_at((left / CHUNK) as usize);
    Ok(*merge_subtrees_root(&merge(a, left), &merge(b, region - left), Mode::Hash).as_bytes())
}

/// BLAKE3 of `data`.
pub fn fingerprint_bytes(data: &[u8]) -> [u8; 32] {
    *blake3::hash(data).as_bytes()
}

/// The chaining value of the left-balanced subtree of `length` bytes over `chunks`.
fn merge(chunks: &[ChainingValue], length: u64) -> ChainingValue {
    if let [chunk] = chunks {
        return *chunk;
    }
    let left = left_subtree_len(length);
    let (a, b) = chunks.split_at((left / CHUNK) as usize);
    merge_subtrees_non_root(&merge(a, left), &merge(b, length - left), Mode::Hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_plain_blake3_of_the_region() {
        let bytes: Vec<u8> = (0..3 * CHUNK + 777).map(|i| (i * 31 % 251) as u8).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shard");
        for region in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 777] {
            for start in [0, 13] {
                let mut file = vec![7_u8; start as usize];
                file.extend_from_slice(&bytes[..region as usize]);
                std::fs::write(&path, &file).unwrap();
                let expected = *blake3::hash(&bytes[..region as usize]).as_bytes();
                for threads in [1, 3] {
                    assert_eq!(content_fingerprint(&path, start, threads).unwrap(), expected, "{region} bytes");
                }
            }
        }
    }
}

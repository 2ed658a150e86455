//! BLAKE3 content hashes: the plain hash of the bytes, computed on several
//! threads for large inputs without a pool, so that it survives `fork`.

#![forbid(unsafe_code)]

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};

use blake3::hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};

use crate::ids::{u64_of, usize_of_u64};
use crate::{Error, Result};

/// Leaf of the parallel hash; a power of two, so that leaves are subtrees.
const LEAF: usize = 4 << 20;

/// A 32-byte BLAKE3 hash that ties artifacts together; shown as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl FromStr for Fingerprint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::argument(format!("fingerprint: expected 64 hex digits, got {text:?}"));
        blake3::Hash::from_hex(text).map(|hash| Self(*hash.as_bytes())).map_err(|_| bad())
    }
}

/// The BLAKE3 hash of `data`, on up to `threads` threads.
#[must_use]
pub fn digest(data: &[u8], threads: usize) -> Fingerprint {
    let num_leaves = data.len().div_ceil(LEAF);
    let threads = threads.clamp(1, num_leaves.max(1));
    if num_leaves < 2 || threads == 1 {
        return Fingerprint(*blake3::hash(data).as_bytes());
    }
    let next = AtomicUsize::new(0);
    let hash_leaves = || {
        let mut done: Vec<(usize, ChainingValue)> = Vec::new();
        loop {
            let leaf = next.fetch_add(1, Ordering::Relaxed);
            if leaf >= num_leaves {
                return done;
            }
            let start = leaf * LEAF;
            let bytes = &data[start..data.len().min(start + LEAF)];
            let mut hasher = blake3::Hasher::new();
            hasher.set_input_offset(u64_of(start)).update(bytes);
            done.push((leaf, hasher.finalize_non_root()));
        }
    };
    let mut leaves = vec![ChainingValue::default(); num_leaves];
    std::thread::scope(|scope| {
        let workers: Vec<_> = (1..threads).map(|_| scope.spawn(hash_leaves)).collect();
        let mut parts = vec![hash_leaves()];
        // A worker cannot fail: it hashes bytes it borrows. Were it to panic, the panic is passed on.
        parts.extend(workers.into_iter().map(|worker| worker.join().unwrap_or_else(|e| std::panic::resume_unwind(e))));
        for (leaf, value) in parts.into_iter().flatten() {
            leaves[leaf] = value;
        }
    });
    let left = usize_of_u64(left_subtree_len(u64_of(data.len())));
    let (a, b) = leaves.split_at(left / LEAF);
    let hash = merge_subtrees_root(&merge(a, left), &merge(b, data.len() - left), Mode::Hash);
    Fingerprint(*hash.as_bytes())
}

/// The chaining value of the left-balanced subtree of `len` bytes over `leaves`.
fn merge(leaves: &[ChainingValue], len: usize) -> ChainingValue {
    if leaves.len() == 1 {
        return leaves[0];
    }
    let left = usize_of_u64(left_subtree_len(u64_of(len)));
    let (a, b) = leaves.split_at(left / LEAF);
    merge_subtrees_non_root(&merge(a, left), &merge(b, len - left), Mode::Hash)
}

/// The BLAKE3 hash of the file at `path` (equal to `b3sum`), on up to `threads` threads.
///
/// # Errors
/// [`Error::Io`] where the file cannot be read.
pub fn fingerprint_file(path: impl AsRef<Path>, threads: usize) -> Result<Fingerprint> {
    let map = crate::format::map_file(path.as_ref())?;
    Ok(digest(map.bytes(), threads))
}

/// The number of threads to use where the caller did not say: what the system offers, at most 16.
#[must_use]
pub fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parallel_hash_is_plain_blake3() {
        let data: Vec<u8> = (0..3 * LEAF + 12345).map(|i| (i * 31 % 251).to_le_bytes()[0]).collect();
        for len in [0, 1, 1024, LEAF - 1, LEAF, LEAF + 1, 2 * LEAF, 2 * LEAF + 1, 3 * LEAF, data.len()] {
            let want = *blake3::hash(&data[..len]).as_bytes();
            for threads in [1, 2, 3, 8] {
                assert_eq!(digest(&data[..len], threads).0, want, "{len} bytes, {threads} threads");
            }
        }
    }

    #[test]
    fn hex_round_trip() {
        let fingerprint = digest(b"memgraft", 1);
        assert_eq!(fingerprint.to_string().parse::<Fingerprint>().unwrap(), fingerprint);
        assert!("abc".parse::<Fingerprint>().is_err());
    }
}

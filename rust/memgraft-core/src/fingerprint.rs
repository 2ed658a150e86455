//! BLAKE3 content hashes: the plain hash of the bytes, computed on several
//! threads for large inputs without a pool, so that it survives `fork`.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};

use blake3::hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};

use crate::ids::{u64_of, usize_of_u64};
use crate::memory::map_file;
use crate::{Error, Result, stop, threads};

/// Leaf of the parallel hash; a power of two, so that leaves are subtrees.
const LEAF: u64 = 4 << 20;

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
///
/// # Errors
/// [`Error::Interrupted`] where the caller has asked the work to end.
pub fn digest(data: &[u8], threads: usize) -> Result<Fingerprint> {
    tree(u64_of(data.len()), threads, |leaf, _, hasher| {
        hasher.update(&data[usize_of_u64(leaf.start)..usize_of_u64(leaf.end)]);
        Ok(())
    })
}

/// The BLAKE3 hash of `len` bytes, on up to `threads` threads. `update(range, buffer, hasher)` adds the bytes of a range;
/// `buffer` is one a thread, for what it likes.
///
/// # Errors
/// Those of `update`; [`Error::Interrupted`] where the caller has asked the work to end.
pub(crate) fn tree(
    len: u64,
    threads: usize,
    update: impl Fn(Range<u64>, &mut Vec<u8>, &mut blake3::Hasher) -> Result<()> + Sync,
) -> Result<Fingerprint> {
    let num_leaves = usize_of_u64(len.div_ceil(LEAF));
    if num_leaves < 2 {
        let mut hasher = blake3::Hasher::new();
        update(0..len, &mut Vec::new(), &mut hasher)?;
        return Ok(Fingerprint(*hasher.finalize().as_bytes()));
    }
    let next = AtomicUsize::new(0);
    let hash_leaves = |_| -> Result<Vec<(usize, ChainingValue)>> {
        let (mut done, mut buffer) = (Vec::new(), Vec::new());
        loop {
            stop::check()?;
            let leaf = next.fetch_add(1, Ordering::Relaxed);
            if leaf >= num_leaves {
                return Ok(done);
            }
            let start = u64_of(leaf) * LEAF;
            let mut hasher = blake3::Hasher::new();
            hasher.set_input_offset(start);
            update(start..len.min(start + LEAF), &mut buffer, &mut hasher)?;
            done.push((leaf, hasher.finalize_non_root()));
        }
    };
    let mut leaves = vec![ChainingValue::default(); num_leaves];
    for part in threads::run(threads.min(num_leaves), hash_leaves) {
        for (leaf, value) in part? {
            leaves[leaf] = value;
        }
    }
    let left = left_subtree_len(len);
    let (a, b) = leaves.split_at(usize_of_u64(left / LEAF));
    let hash = merge_subtrees_root(&merge(a, left), &merge(b, len - left), Mode::Hash);
    Ok(Fingerprint(*hash.as_bytes()))
}

/// The chaining value of the left-balanced subtree of `len` bytes over `leaves`.
fn merge(leaves: &[ChainingValue], len: u64) -> ChainingValue {
    if let [leaf] = leaves {
        return *leaf;
    }
    let left = left_subtree_len(len);
    let (a, b) = leaves.split_at(usize_of_u64(left / LEAF));
    merge_subtrees_non_root(&merge(a, left), &merge(b, len - left), Mode::Hash)
}

/// The BLAKE3 hash of the file at `path` (equal to `b3sum`), on up to `threads` threads.
///
/// # Errors
/// [`Error::Io`] where the file cannot be read.
pub fn fingerprint_file(path: impl AsRef<Path>, threads: usize) -> Result<Fingerprint> {
    let map = map_file(path.as_ref())?;
    digest(map.bytes(), threads)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parallel_hash_is_plain_blake3() {
        const LEAF: usize = usize_of_u64(super::LEAF);
        let data: Vec<u8> = (0..3 * LEAF + 12345).map(|i| (i * 31 % 251).to_le_bytes()[0]).collect();
        for len in [0, 1, 1024, LEAF - 1, LEAF, LEAF + 1, 2 * LEAF, 2 * LEAF + 1, 3 * LEAF, data.len()] {
            let want = *blake3::hash(&data[..len]).as_bytes();
            for threads in [1, 2, 3, 8] {
                assert_eq!(digest(&data[..len], threads).unwrap().0, want, "{len} bytes, {threads} threads");
            }
        }
    }

    #[test]
    fn hex_round_trip() {
        let fingerprint = digest(b"memgraft", 1).unwrap();
        assert_eq!(fingerprint.to_string().parse::<Fingerprint>().unwrap(), fingerprint);
        assert!("abc".parse::<Fingerprint>().is_err());
    }
}

//! The content fingerprint of a shard: what `verify` recomputes.
//!
//! BLAKE3 of the data region: everything after the header, which is left out
//! because it carries the result. Read with `pread`, so that threads share one
//! file and a damaged disk gives an error, not a signal.
use std::path::Path;

use super::file::ValueFile;
use crate::fingerprint::{Fingerprint, tree};
use crate::ids::usize_of_u64;
use crate::{Error, Result};

/// Fingerprint of the bytes of `path` from `start` to its end.
///
/// # Errors
/// [`Error::Io`] naming file and offset; [`Error::Argument`] for a start past the end.
pub fn content_fingerprint(path: &Path, start: u64, threads: usize) -> Result<Fingerprint> {
    let file = ValueFile::open(path, "opening the file to verify it")?;
    let length = file.num_bytes();
    let Some(region) = length.checked_sub(start) else {
        return Err(Error::argument(format!("{}: starts at byte {start} of {length}", path.display())));
    };
    tree(region, threads, |leaf, buffer, hasher| {
        buffer.resize(usize_of_u64(leaf.end - leaf.start), 0);
        file.read_at(start + leaf.start, buffer)?;
        hasher.update(buffer);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = 4 << 20;

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
                let expected = Fingerprint(*blake3::hash(&bytes[..region as usize]).as_bytes());
                for threads in [1, 3] {
                    assert_eq!(content_fingerprint(&path, start, threads).unwrap(), expected, "{region} bytes");
                }
            }
        }
    }
}

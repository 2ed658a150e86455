//! The fingerprint of a corpus: its tokens and documents, whatever the files look like.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use super::{BLOCK, Corpus};
use crate::Result;
use crate::fingerprint::Fingerprint;
use crate::ids::{u64_of, usize_of_u64};

/// Tokens per hashed leaf; part of the definition.
const LEAF: u64 = 1 << 20;
const DOMAIN: &[u8] = b"memgraft corpus v1";

impl Corpus {
    /// BLAKE3 over the hashes of leaves of 2^20 tokens (`u32`, little-endian), the document ends and both counts.
    ///
    /// The same documents in another format, dtype or sharding have the same fingerprint; a split's parts have their own.
    /// The first call reads the whole corpus.
    ///
    /// # Errors
    /// As [`Corpus::read`].
    pub fn fingerprint(&self, threads: usize) -> Result<Fingerprint> {
        if let Some(&known) = self.fingerprint.get() {
            return Ok(known);
        }
        let num_leaves = self.num_tokens().div_ceil(LEAF);
        let next = AtomicU64::new(0);
        let work = || -> Result<Vec<(u64, blake3::Hash)>> {
            let mut done = Vec::new();
            let (mut tokens, mut bytes) = (vec![0; BLOCK], vec![0; BLOCK * 4]);
            loop {
                let leaf = next.fetch_add(1, Ordering::Relaxed);
                if leaf >= num_leaves {
                    return Ok(done);
                }
                let mut hasher = blake3::Hasher::new();
                let end = ((leaf + 1) * LEAF).min(self.num_tokens());
                let mut at = leaf * LEAF;
                while at < end {
                    let len = usize_of_u64((end - at).min(u64_of(BLOCK)));
                    self.read(at, &mut tokens[..len])?;
                    for (chunk, token) in bytes.chunks_exact_mut(4).zip(&tokens[..len]) {
                        chunk.copy_from_slice(&token.to_le_bytes());
                    }
                    hasher.update(&bytes[..len * 4]);
                    at += u64_of(len);
                }
                done.push((leaf, hasher.finalize()));
            }
        };
        let parts = crate::threads::run(threads.max(1), |_| work());
        let mut leaves = Vec::new();
        for part in parts {
            leaves.extend(part?);
        }
        leaves.sort_unstable_by_key(|&(leaf, _)| leaf);
        let mut root = blake3::Hasher::new();
        root.update(DOMAIN);
        root.update(&self.num_tokens().to_le_bytes());
        root.update(&u64_of(self.num_documents()).to_le_bytes());
        for (_, hash) in &leaves {
            root.update(hash.as_bytes());
        }
        for end in self.layout.ends() {
            root.update(&end.to_le_bytes());
        }
        Ok(*self.fingerprint.get_or_init(|| Fingerprint(*root.finalize().as_bytes())))
    }
}

//! The fingerprint of a corpus: its tokens and documents, whatever the files look like.

use std::sync::atomic::{AtomicU64, Ordering};

use super::stream::{BLOCK, Corpus};
use crate::Result;
use crate::fingerprint::Fingerprint;
use crate::ids::{u64_of, usize_of_u64};

/// Tokens per hashed leaf; part of the definition.
const LEAF: u64 = 1 << 20;
const DOMAIN: &[u8] = b"memgraft corpus v1";
/// Stretches of tokens in an outline, and tokens of one; part of its definition.
const STRETCHES: u64 = 1024;
const STRETCH: u64 = 64;
const OUTLINE: &[u8] = b"memgraft corpus outline v1";

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
        let mut root = Root::new(self.num_tokens(), u64_of(self.num_documents()));
        self.leaves(0, self.num_tokens(), threads)?.iter().for_each(|leaf| root.add_leaf(leaf));
        self.layout.ends().iter().for_each(|&end| root.add_end(end));
        Ok(*self.fingerprint.get_or_init(|| root.finish()))
    }

    /// BLAKE3 over both counts, the document ends, and 1,024 stretches of 64 tokens (`u32`, little-endian) that lie evenly
    /// from the first token to the last; of a corpus of no more, over all its tokens.
    ///
    /// Tells apart corpora that no process has read as a whole.
    ///
    /// # Errors
    /// As [`Corpus::read`].
    pub(crate) fn outline(&self) -> Result<Fingerprint> {
        let num_tokens = self.num_tokens();
        let mut hasher = blake3::Hasher::new();
        hasher.update(OUTLINE);
        hasher.update(&num_tokens.to_le_bytes());
        hasher.update(&u64_of(self.num_documents()).to_le_bytes());
        self.layout.ends().iter().for_each(|end| {
            hasher.update(&end.to_le_bytes());
        });
        let last = num_tokens.saturating_sub(STRETCH);
        let is_small = num_tokens <= STRETCHES * STRETCH;
        for stretch in 0..if is_small { num_tokens.div_ceil(STRETCH) } else { STRETCHES } {
            crate::stop::check()?;
            let at = if is_small {
                stretch * STRETCH
            } else {
                let place = u128::from(last) * u128::from(stretch) / u128::from(STRETCHES - 1);
                u64::try_from(place).unwrap_or(last)
            };
            let mut tokens = vec![0; usize_of_u64((num_tokens - at).min(STRETCH))];
            self.read(at, &mut tokens)?;
            tokens.iter().for_each(|token| {
                hasher.update(&token.to_le_bytes());
            });
        }
        Ok(Fingerprint(*hasher.finalize().as_bytes()))
    }

    /// The hash of the leaf that the token at `at` lies in, if that leaf starts before it.
    ///
    /// # Errors
    /// As [`Corpus::read`].
    pub(crate) fn shared_leaf(&self, at: u64) -> Result<Option<Fingerprint>> {
        let start = at / LEAF * LEAF;
        if start == at || at >= self.num_tokens() {
            return Ok(None);
        }
        Ok(self.leaves(start, start + 1, 1)?.pop())
    }

    /// The hashes of the leaves that start at a position in `start..end`.
    ///
    /// # Errors
    /// As [`Corpus::read`].
    pub(crate) fn leaves(&self, start: u64, end: u64, threads: usize) -> Result<Vec<Fingerprint>> {
        let last = end.div_ceil(LEAF);
        let next = AtomicU64::new(start.div_ceil(LEAF));
        let work = || -> Result<Vec<(u64, blake3::Hash)>> {
            let mut done = Vec::new();
            let (mut tokens, mut bytes) = (vec![0; BLOCK], vec![0; BLOCK * 4]);
            loop {
                crate::stop::check()?;
                let leaf = next.fetch_add(1, Ordering::Relaxed);
                if leaf >= last {
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
        Ok(leaves.into_iter().map(|(_, hash)| Fingerprint(*hash.as_bytes())).collect())
    }
}

/// The fingerprint of a corpus, from its leaves and then the ends of its documents, in order.
pub(crate) struct Root(blake3::Hasher);

impl Root {
    /// The leaf of `leaves`, those of a whole corpus, that the token at `at` lies in.
    pub(crate) fn leaf_at<'a>(leaves: &[&'a Fingerprint], at: u64) -> Option<&'a Fingerprint> {
        leaves.get(usize_of_u64(at / LEAF)).copied()
    }

    pub(crate) fn new(num_tokens: u64, num_documents: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(DOMAIN);
        hasher.update(&num_tokens.to_le_bytes());
        hasher.update(&num_documents.to_le_bytes());
        Self(hasher)
    }

    pub(crate) fn add_leaf(&mut self, leaf: &Fingerprint) {
        self.0.update(&leaf.0);
    }

    pub(crate) fn add_end(&mut self, end: u64) {
        self.0.update(&end.to_le_bytes());
    }

    pub(crate) fn finish(&self) -> Fingerprint {
        Fingerprint(*self.0.finalize().as_bytes())
    }
}

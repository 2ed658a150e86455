//! Where the n-grams of a block go before they are sorted: by first tokens, which costs a sort most of its depth.

use super::plan::CorpusBlock;
use crate::corpus::{BLOCK, Corpus};
use crate::ids::{fit_u32, u64_of, usize_of, usize_of_u64};
use crate::{Error, Result};

/// The files are not what the first pass has read.
pub(super) fn changed(corpus: &Corpus) -> Error {
    let path = corpus.paths().next().unwrap_or_else(|| std::path::Path::new("corpus"));
    Error::corpus(
        path,
        "expected the tokens that the first pass read, found others: the files changed meanwhile; run again",
    )
}

/// Positions for each bucket, at least, so that small blocks do not pay for large vocabularies.
const POSITIONS: usize = 16;

/// A counting sort by the leading bits of first tokens: the places of bucket `i` lie between those of its neighbours.
pub(super) struct Buckets {
    /// Bits of a token that do not tell its bucket.
    shift: u32,
    /// First place of each bucket, and one past the last of all.
    starts: Vec<u32>,
    /// The place that each bucket fills next.
    next: Vec<u32>,
}

impl Buckets {
    /// Counts the tokens of `block` that are not reserved.
    pub(super) fn count(corpus: &Corpus, block: &CorpusBlock, reserved: &[bool]) -> Result<Self> {
        let positions = usize_of_u64(block.end - block.start);
        fit_u32(positions, "positions of a block")?;
        let most = (positions / POSITIONS).max(1);
        let mut shift = 0;
        while reserved.len().div_ceil(1 << shift) > most {
            shift += 1;
        }
        let mut starts = vec![0; reserved.len().div_ceil(1 << shift) + 1];
        let mut buffer = vec![0; BLOCK];
        let mut at = block.start;
        while at < block.end {
            let len = usize_of_u64((block.end - at).min(u64_of(BLOCK)));
            corpus.read(at, &mut buffer[..len])?;
            for &token in &buffer[..len] {
                let reserved = *reserved.get(usize_of(token)).ok_or_else(|| changed(corpus))?;
                starts[usize_of(token >> shift) + 1] += u32::from(!reserved);
            }
            at += u64_of(len);
        }
        let mut sum = 0;
        for start in &mut starts {
            sum += *start;
            *start = sum;
        }
        Ok(Self { shift, next: starts.clone(), starts })
    }

    /// Places there are.
    pub(super) fn num_records(&self) -> usize {
        self.starts.last().map_or(0, |&end| usize_of(end))
    }

    /// The next place for an n-gram that starts with `token`; `None` for a token that was not there.
    #[inline]
    pub(super) fn place(&mut self, token: u32) -> Option<usize> {
        let next = self.next.get_mut(usize_of(token >> self.shift))?;
        *next += 1;
        Some(usize_of(*next - 1))
    }

    /// Bounds of the buckets, once all are full; `None` if one is not, or has run over.
    pub(super) fn bounds(self) -> Option<Vec<usize>> {
        let full = self.next.iter().zip(&self.starts[1..]).all(|(next, end)| next == end);
        full.then(|| self.starts.into_iter().map(usize_of).collect())
    }
}

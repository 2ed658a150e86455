//! What is sorted at a time: blocks of whole documents that fit the memory.

use crate::corpus::Corpus;
use crate::ids::{u64_of, usize_of_u64};

/// Most positions of a block: bounds the time between two looks at Ctrl-C, and lets a `u32` count them.
const MAX_BLOCK: u64 = 1 << 24;
/// Fewest positions of a block.
const MIN_BLOCK: u64 = 256;

/// Positions that one thread sorts at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CorpusBlock {
    /// First position.
    pub(super) start: u64,
    /// One past the last.
    pub(super) end: u64,
    /// First document it touches.
    pub(super) document: usize,
    /// Set where this is a piece of a document too long for a block: that document's number among such.
    pub(super) long: Option<u32>,
}

/// Positions per block so that all threads' blocks take three eighths of `memory`: allocators keep a part of what is freed,
/// and reading and spilling have buffers.
pub(super) fn block_size(num_tokens: u64, bytes_per_position: u64, memory: u64, threads: usize) -> u64 {
    let threads = u64_of(threads);
    let fits = memory / 8 * 3 / bytes_per_position / threads;
    let share = num_tokens.div_ceil(threads);
    fits.min(share).clamp(MIN_BLOCK, MAX_BLOCK)
}

/// Cuts a corpus into blocks of at most `size` positions and `size / max_order` documents, so that what is kept per
/// document stays within a share of what is kept per position. Returns them with the number of long documents.
pub(super) fn blocks(corpus: &Corpus, size: u64, max_order: usize) -> (Vec<CorpusBlock>, usize) {
    let blocks = blocks_between(corpus, &[], size, max_order);
    let num_long = blocks.iter().filter_map(|block| block.long).max().map_or(0, |last| crate::ids::usize_of(last) + 1);
    (blocks, num_long)
}

/// The same of what lies outside the stretches `done`, ascending and apart. A document that lies in one in part is long.
pub(super) fn blocks_between(corpus: &Corpus, done: &[(u64, u64)], size: u64, max_order: usize) -> Vec<CorpusBlock> {
    let max_documents = usize_of_u64(size).div_ceil(max_order);
    let mut blocks: Vec<CorpusBlock> = Vec::new();
    let mut num_long = 0u32;
    let mut open: Option<(CorpusBlock, usize)> = None;
    for document in 0..corpus.num_documents() {
        let (start, end) = corpus.document(document);
        let first = done.partition_point(|stretch| stretch.1 <= start);
        let inside: Vec<_> = done[first..].iter().copied().take_while(|stretch| stretch.0 < end).collect();
        if end - start > size || !inside.is_empty() {
            blocks.extend(open.take().map(|(block, _)| block));
            let mut at = start;
            let mut pieces = 0;
            for (from, to) in inside.into_iter().chain([(end, end)]) {
                while at < from {
                    let piece_end = (at + size).min(from);
                    blocks.push(CorpusBlock { start: at, end: piece_end, document, long: Some(num_long) });
                    at = piece_end;
                    pieces += 1;
                }
                at = at.max(to);
            }
            num_long += u32::from(pieces > 0);
            continue;
        }
        open = match open {
            Some((block, count)) if end - block.start <= size && count < max_documents => {
                Some((CorpusBlock { end, ..block }, count + 1))
            }
            other => {
                blocks.extend(other.map(|(block, _)| block));
                Some((CorpusBlock { start, end, document, long: None }, 1))
            }
        };
    }
    blocks.extend(open.map(|(block, _)| block));
    blocks.retain(|block| block.start < block.end);
    blocks
}

/// First tokens that cut the key space into at most `parts` ranges of about equal weight: range `i` holds the keys whose
/// first token lies in `cuts[i]..cuts[i + 1]`.
pub(super) fn ranges(weights: &[u64], parts: usize) -> Vec<u32> {
    let total: u64 = weights.iter().sum();
    let parts = u64_of(parts.max(1));
    let mut cuts = vec![0];
    let mut seen = 0;
    for (token, &weight) in (0u32..).zip(weights) {
        if seen >= total * u64_of(cuts.len()) / parts && seen > 0 && u64_of(cuts.len()) < parts {
            cuts.push(token);
        }
        seen += weight;
    }
    cuts.push(u32::try_from(weights.len()).unwrap_or(u32::MAX));
    cuts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_every_token_once() {
        for (weights, parts) in [(vec![1u64; 100], 8), (vec![0, 0, 9, 0], 4), (vec![5], 3), (vec![100, 1, 1, 1], 2)] {
            let cuts = ranges(&weights, parts);
            assert_eq!((cuts[0], *cuts.last().unwrap()), (0, u32::try_from(weights.len()).unwrap()));
            assert!(cuts.windows(2).all(|pair| pair[0] < pair[1]) && cuts.len() <= parts + 1, "{cuts:?}");
        }
        assert_eq!(ranges(&[1; 8], 4), [0, 2, 4, 6, 8]);
    }
}

//! The archive form of the canonical sections: deflated, without random access.
//!
//! A level of the trie holds the prefixes of one length. It is written in two parts. The first has the number of children
//! of every prefix that is one token shorter. The second has the last token of every child. A child whose sibling comes
//! before it stores the difference to that sibling's token, less one. The lowest bytes of all these numbers are written
//! first, then the second bytes, then the third. Each of these planes deflates better than mixed bytes do, because its
//! values are alike. `docs/FORMAT.md` has the bytes.

use std::io::{self, Read, Write};

use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;

use crate::ids::{low_u8, u64_of, usize_of};
use crate::wire::{MAX_LEB128, leb128, push_leb128};

/// Bytes that a token may need.
const PLANES: [u32; 3] = [0, 8, 16];

/// One level: rank of the parent and last token of each prefix, ascending.
pub(crate) type Pairs = (Vec<u32>, Vec<u32>);

/// Packs one level of a trie with `above` prefixes one token shorter.
///
/// # Errors
/// Those of the encoder.
pub(crate) fn pack_level(
    pairs: impl Iterator<Item = (u32, u32)>,
    above: usize,
    vocab_size: u32,
) -> io::Result<Vec<u8>> {
    let mut children = vec![0u64; above];
    let mut gaps = Vec::new();
    let mut last = None;
    for (parent, token) in pairs {
        children[usize_of(parent)] += 1;
        gaps.push(match last {
            Some((before, smaller)) if before == parent => token - smaller - 1,
            _ => token,
        });
        last = Some((parent, token));
    }
    let mut raw = Vec::with_capacity(above + gaps.len() * 2);
    children.iter().for_each(|&n| push_leb128(&mut raw, n));
    for shift in planes(vocab_size) {
        raw.extend(gaps.iter().map(|gap| low_u8(gap >> shift)));
    }
    deflate(&raw)
}

/// The level in `packed`; `None` where it is damaged or has more than `most` prefixes.
pub(crate) fn unpack_level(packed: &[u8], above: usize, vocab_size: u32, most: u64) -> Option<Pairs> {
    let mut raw = Inflated::new(packed, u64_of(above) * u64_of(MAX_LEB128) + most.saturating_mul(3));
    let children = (0..above).map(|_| raw.leb128()).collect::<Option<Vec<_>>>()?;
    let len = children.iter().try_fold(0u64, |sum, &n| sum.checked_add(n)).filter(|&len| len <= most)?;
    // The vector grows as bytes are read: `len` comes from the file, and a damaged file may claim any number.
    let mut tokens: Vec<u32> = Vec::new();
    for _ in 0..len {
        tokens.push(u32::from(raw.byte()?));
    }
    for shift in planes(vocab_size).skip(1) {
        for token in &mut tokens {
            *token |= u32::from(raw.byte()?) << shift;
        }
    }
    let family = |(parent, &n): (u32, &u64)| std::iter::repeat_n(parent, crate::ids::usize_of_u64(n));
    let parents: Vec<u32> = (0..).zip(&children).flat_map(family).collect();
    raw.ends()?;
    for i in 0..tokens.len() {
        if i > 0 && parents[i] == parents[i - 1] {
            tokens[i] = tokens[i].checked_add(tokens[i - 1])?.checked_add(1)?;
        }
        if tokens[i] >= vocab_size {
            return None;
        }
    }
    Some((parents, tokens))
}

/// Packs a list of numbers.
///
/// # Errors
/// Those of the encoder.
pub(crate) fn pack_numbers(numbers: impl Iterator<Item = u64>) -> io::Result<Vec<u8>> {
    let mut raw = Vec::new();
    numbers.for_each(|number| push_leb128(&mut raw, number));
    deflate(&raw)
}

/// The `len` numbers in `packed`; `None` where it is damaged.
pub(crate) fn unpack_numbers(packed: &[u8], len: usize) -> Option<Vec<u64>> {
    let mut raw = Inflated::new(packed, u64_of(len).saturating_mul(u64_of(MAX_LEB128)));
    let numbers = (0..len).map(|_| raw.leb128()).collect::<Option<Vec<_>>>()?;
    raw.ends()?;
    Some(numbers)
}

fn planes(vocab_size: u32) -> impl Iterator<Item = u32> {
    PLANES.into_iter().filter(move |&shift| shift == 0 || (vocab_size - 1) >> shift > 0)
}

fn deflate(raw: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(raw)?;
    encoder.finish()
}

/// Reads a zlib stream byte by byte, at most the number of bytes that an undamaged stream can hold.
struct Inflated<'a> {
    stream: io::Take<ZlibDecoder<&'a [u8]>>,
    buffer: Vec<u8>,
    at: usize,
}

impl<'a> Inflated<'a> {
    fn new(packed: &'a [u8], most: u64) -> Self {
        Self { stream: ZlibDecoder::new(packed).take(most.saturating_add(1)), buffer: Vec::new(), at: 0 }
    }

    fn byte(&mut self) -> Option<u8> {
        if self.at == self.buffer.len() {
            self.buffer.resize(1 << 16, 0);
            let read = self.stream.read(&mut self.buffer).ok()?;
            self.buffer.truncate(read);
            self.at = 0;
        }
        let byte = *self.buffer.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn leb128(&mut self) -> Option<u64> {
        leb128(|| self.byte())
    }

    /// `Some` where no byte is left. A broken end of the stream passes too, because the caller compares the key set's
    /// fingerprint afterwards.
    fn ends(&mut self) -> Option<()> {
        self.byte().is_none().then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_come_back_and_nothing_else_does() {
        for vocab_size in [1, 2, 256, 257, 1 << 16, (1 << 16) + 1, 1 << 20] {
            let last = vocab_size - 1;
            let mut pairs = vec![(0, 0), (2, last / 2), (2, last), (3, last)];
            pairs.dedup_by_key(|pair| (pair.0, pair.1));
            let packed = pack_level(pairs.iter().copied(), 5, vocab_size).unwrap();
            let n = u64_of(pairs.len());
            let (parents, tokens) = unpack_level(&packed, 5, vocab_size, n).unwrap();
            assert_eq!(parents.into_iter().zip(tokens).collect::<Vec<_>>(), pairs);
            assert!(unpack_level(&packed, 5, vocab_size, n - 1).is_none());
            assert!(unpack_level(&packed, 4, vocab_size, 9).is_none());
            assert!(unpack_level(&packed, 6, vocab_size, 9).is_none());
            assert!(unpack_level(&packed[..packed.len() / 2], 5, vocab_size, n).is_none());
        }
    }

    #[test]
    fn a_claim_without_bytes_is_refused() {
        let mut raw = Vec::new();
        push_leb128(&mut raw, u64::from(u32::MAX));
        assert!(unpack_level(&deflate(&raw).unwrap(), 1, 10, u64::MAX).is_none());
        assert!(unpack_numbers(&deflate(&[0xFF; 11]).unwrap(), 1).is_none());
    }

    #[test]
    fn numbers_come_back() {
        let numbers = [0, 1, 127, 128, 1 << 14, u64::from(u32::MAX), u64::MAX];
        let packed = pack_numbers(numbers.into_iter()).unwrap();
        assert_eq!(unpack_numbers(&packed, numbers.len()).unwrap(), numbers);
        assert!(unpack_numbers(&packed, numbers.len() - 1).is_none());
        assert!(unpack_numbers(&packed, numbers.len() + 1).is_none());
    }
}

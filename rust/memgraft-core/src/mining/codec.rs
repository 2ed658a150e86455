//! How records of a sorted run lie in bytes.
//!
//! A record is one head byte (key bytes shared with the record before; the high bit says that the count is 1), the other
//! key bytes, most significant first, the tag and, unless 1, the count as LEB128.

#![forbid(unsafe_code)]

use super::window::Key;
use crate::ids::{low_u8, saturating_u32, u64_of, usize_of_u64};
use crate::wire::{MAX_LEB128, push_leb128, read_leb128};

/// The most a record can take: head, 48 key bytes, tag, count.
pub(super) const MAX_RECORD: usize = 1 + 48 + 2 * MAX_LEB128;
const COUNT_IS_ONE: u8 = 0x80;

/// A record as read: key, tag, count.
pub(super) type Item<const W: usize> = (Key<W>, u64, u64);

/// Writes records one after another; keys never fall.
pub(super) struct Encoder<const W: usize> {
    last: Key<W>,
}

impl<const W: usize> Encoder<W> {
    pub(super) fn new() -> Self {
        Self { last: [0; W] }
    }

    pub(super) fn push(&mut self, buffer: &mut Vec<u8>, key: &Key<W>, tag: u64, count: u64) {
        let mut shared = 0;
        let mut bytes = [0; 48];
        for (word, chunk) in key.iter().zip(bytes.chunks_exact_mut(8)) {
            chunk.copy_from_slice(&word.to_be_bytes());
        }
        for (word, last) in key.iter().zip(&self.last) {
            let differ = word ^ last;
            shared += usize_of_u64(u64::from(differ.leading_zeros() / 8));
            if differ != 0 {
                break;
            }
        }
        buffer.push(low_u8(saturating_u32(shared)) | if count == 1 { COUNT_IS_ONE } else { 0 });
        buffer.extend_from_slice(&bytes[shared..W * 8]);
        push_leb128(buffer, tag);
        if count != 1 {
            push_leb128(buffer, count);
        }
        self.last = *key;
    }
}

/// Reads what [`Encoder`] wrote.
pub(super) struct Decoder<const W: usize> {
    last: Key<W>,
}

impl<const W: usize> Decoder<W> {
    pub(super) fn new() -> Self {
        Self { last: [0; W] }
    }

    /// The record at the start of `bytes` and its length; `None` where there is no whole record.
    #[inline]
    pub(super) fn read(&mut self, bytes: &[u8]) -> Option<(Item<W>, usize)> {
        let head = *bytes.first()?;
        let shared = usize::from(head & !COUNT_IS_ONE);
        let fresh = (W * 8).checked_sub(shared)?;
        let mut at = 1 + fresh;
        let source = bytes.get(1..at)?;
        let mut whole = [0; 48];
        for (word, chunk) in self.last.iter().zip(whole.chunks_exact_mut(8)) {
            chunk.copy_from_slice(&word.to_be_bytes());
        }
        whole[shared..W * 8].copy_from_slice(source);
        for (word, chunk) in self.last.iter_mut().zip(whole.chunks_exact(8)) {
            let mut big_endian = [0; 8];
            big_endian.copy_from_slice(chunk);
            *word = u64::from_be_bytes(big_endian);
        }
        let tag = read_leb128(bytes, &mut at)?;
        let count = if head & COUNT_IS_ONE == 0 { read_leb128(bytes, &mut at)? } else { 1 };
        Some(((self.last, tag, count), at))
    }
}

/// Bytes of a run as they lie in a block: what one position takes on disk.
pub(super) fn encoded_len<const W: usize>(records: impl Iterator<Item = Item<W>>) -> u64 {
    let (mut encoder, mut buffer, mut total) = (Encoder::<W>::new(), Vec::new(), 0);
    for (key, tag, count) in records {
        buffer.clear();
        encoder.push(&mut buffer, &key, tag, count);
        total += u64_of(buffer.len());
    }
    total
}

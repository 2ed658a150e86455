//! How records of a sorted run lie in bytes.
//!
//! A record is one head byte (key bytes shared with the record before; the high bit says that the count is 1), the other
//! key bytes, most significant first, the tag and, unless 1, the count as LEB128. Bytes of the last word in which no token
//! lies are left out.

#![forbid(unsafe_code)]

use super::window::{Key, MAX_WORDS, Packing};
use crate::ids::{low_u8, low_u32, u64_of, usize_of};
use crate::wire::{MAX_LEB128, read_leb128};

/// The most a record can take: head, key bytes, tag, count.
pub(super) const MAX_RECORD: usize = 1 + 8 * MAX_WORDS + 2 * MAX_LEB128;
/// A record and the bytes after it that a read or write of whole words touches.
const ROOM: usize = MAX_RECORD + 8;
const COUNT_IS_ONE: u8 = 0x80;

/// A record as read: key, tag, count.
pub(super) type Item<const W: usize> = (Key<W>, u64, u64);

/// Key bytes that are written, and those of them in the last word.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeyBytes {
    pub(super) num: usize,
    last_word: u64,
}

impl KeyBytes {
    /// As written today.
    pub(super) fn of(packing: &Packing) -> Self {
        let unused = packing.unused_bytes();
        Self { num: packing.words() * 8 - unused, last_word: u64::MAX << (8 * unused) }
    }

    /// All of them, as version 1.0 of run files wrote them.
    pub(super) fn all(packing: &Packing) -> Self {
        Self { num: packing.words() * 8, last_word: u64::MAX }
    }
}

/// Bytes gathered before a write, with room behind them that records are written into a word at a time.
pub(super) struct Gathered {
    bytes: Vec<u8>,
    len: usize,
}

impl Gathered {
    /// Nothing yet; takes `capacity` bytes before it grows.
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self { bytes: vec![0; capacity + ROOM], len: 0 }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.bytes.truncate(self.len);
        self.bytes.extend_from_slice(bytes);
        self.len = self.bytes.len();
    }

    #[inline]
    fn room(&mut self) -> &mut [u8] {
        if self.bytes.len() < self.len + ROOM {
            self.bytes.resize(self.bytes.capacity().max(self.len + ROOM), 0);
        }
        &mut self.bytes[self.len..self.len + ROOM]
    }
}

/// Writes records one after another; keys never fall.
pub(super) struct Encoder<const W: usize> {
    bytes: KeyBytes,
    last: Key<W>,
}

impl<const W: usize> Encoder<W> {
    pub(super) fn new(bytes: KeyBytes) -> Self {
        Self { bytes, last: [0; W] }
    }

    #[inline]
    pub(super) fn push(&mut self, gathered: &mut Gathered, key: &Key<W>, tag: u64, count: u64) {
        let mut shared = 0;
        for (word, last) in key.iter().zip(&self.last) {
            let differ = word ^ last;
            shared += usize_of(differ.leading_zeros() / 8);
            if differ != 0 {
                break;
            }
        }
        let shared = shared.min(self.bytes.num);
        let room = gathered.room();
        room[0] = low_u8(low_u32(u64_of(shared))) | if count == 1 { COUNT_IS_ONE } else { 0 };
        // Whole words are written from low places to high ones: each covers what the one before wrote too much.
        for (index, word) in key.iter().enumerate() {
            let before = index * 8;
            if before >= shared {
                put(room, 1 + before - shared, *word);
            } else if before + 8 > shared {
                put(room, 1, word << (8 * (shared - before)));
            }
        }
        self.last = *key;
        let mut at = 1 + self.bytes.num - shared;
        put_number(room, &mut at, tag);
        if count != 1 {
            put_number(room, &mut at, count);
        }
        gathered.len += at;
    }
}

#[inline]
fn put_number(room: &mut [u8], at: &mut usize, mut value: u64) {
    while value >= 0x80 {
        room[*at] = low_u8(low_u32(value)) | 0x80;
        value >>= 7;
        *at += 1;
    }
    room[*at] = low_u8(low_u32(value));
    *at += 1;
}

#[inline]
fn put(room: &mut [u8], at: usize, word: u64) {
    room[at..at + 8].copy_from_slice(&word.to_be_bytes());
}

/// Reads what [`Encoder`] wrote.
pub(super) struct Decoder<const W: usize> {
    bytes: KeyBytes,
    last: Key<W>,
}

impl<const W: usize> Decoder<W> {
    pub(super) fn new(bytes: KeyBytes) -> Self {
        Self { bytes, last: [0; W] }
    }

    /// The record at the start of `bytes` and its length; `None` where there is no whole record.
    #[inline]
    pub(super) fn read(&mut self, bytes: &[u8]) -> Option<(Item<W>, usize)> {
        if let Some(room) = bytes.first_chunk() {
            return self.read_room(room);
        }
        // Behind the end come zeros, which end every number.
        let mut room = [0; ROOM];
        room[..bytes.len()].copy_from_slice(bytes);
        self.read_room(&room).filter(|&(_, len)| len <= bytes.len())
    }

    #[inline]
    fn read_room(&mut self, room: &[u8; ROOM]) -> Option<(Item<W>, usize)> {
        let head = room[0];
        let shared = usize::from(head & !COUNT_IS_ONE);
        let mut at = 1 + self.bytes.num.checked_sub(shared)?;
        for (index, word) in self.last.iter_mut().enumerate() {
            let before = index * 8;
            let fresh = if before >= shared {
                get(room, 1 + before - shared)
            } else if before + 8 > shared {
                let bits = 8 * (shared - before);
                (*word & !(u64::MAX >> bits)) | (get(room, 1) >> bits)
            } else {
                *word
            };
            *word = if index + 1 == W { fresh & self.bytes.last_word } else { fresh };
        }
        let tag = number(room, &mut at)?;
        let count = if head & COUNT_IS_ONE == 0 { number(room, &mut at)? } else { 1 };
        Some(((self.last, tag, count), at))
    }
}

/// Nearly all numbers are of one byte.
#[inline]
fn number(room: &[u8; ROOM], at: &mut usize) -> Option<u64> {
    if room[*at] < 0x80 {
        *at += 1;
        return Some(u64::from(room[*at - 1]));
    }
    read_leb128(room, at)
}

#[inline]
fn get(room: &[u8; ROOM], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&room[at..at + 8]);
    u64::from_be_bytes(bytes)
}

/// Bytes of a run as they lie in a block: what one position takes on disk.
pub(super) fn encoded_len<const W: usize>(packing: &Packing, records: impl Iterator<Item = Item<W>>) -> u64 {
    let (mut encoder, mut gathered) = (Encoder::<W>::new(KeyBytes::of(packing)), Gathered::with_capacity(0));
    let mut total = 0;
    for (key, tag, count) in records {
        gathered.clear();
        encoder.push(&mut gathered, &key, tag, count);
        total += u64_of(gathered.len());
    }
    total
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::push_leb128;

    /// The layout, byte by byte.
    fn slow<const W: usize>(num: usize, records: &[Item<W>]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut last = vec![0; num];
        for (key, tag, count) in records {
            let bytes: Vec<u8> = key.iter().flat_map(|word| word.to_be_bytes()).take(num).collect();
            let shared = bytes.iter().zip(&last).take_while(|(a, b)| a == b).count();
            out.push(u8::try_from(shared).unwrap() | if *count == 1 { 0x80 } else { 0 });
            out.extend_from_slice(&bytes[shared..]);
            push_leb128(&mut out, *tag);
            if *count != 1 {
                push_leb128(&mut out, *count);
            }
            last = bytes;
        }
        out
    }

    fn check<const W: usize>(packing: &Packing, whole: bool, mut records: Vec<Item<W>>) {
        records.sort_unstable();
        let bytes = if whole { KeyBytes::all(packing) } else { KeyBytes::of(packing) };
        let mut gathered = Gathered::with_capacity(0);
        let mut encoder = Encoder::new(bytes);
        records.iter().for_each(|(key, tag, count)| encoder.push(&mut gathered, key, *tag, *count));
        let buffer = gathered.as_slice();
        assert_eq!(buffer, slow(bytes.num, &records));
        let (mut decoder, mut at, mut last) = (Decoder::new(bytes), 0, 0);
        for record in &records {
            let (item, len) = decoder.read(&buffer[at..]).unwrap();
            assert_eq!(item, *record);
            (last, at) = (at, at + len);
        }
        assert_eq!(at, buffer.len());
        // Cut short anywhere, the last record is no record.
        for cut in last..buffer.len() {
            let mut decoder = Decoder::<W> { bytes, last: records.iter().rev().nth(1).map_or([0; W], |r| r.0) };
            assert_eq!(decoder.read(&buffer[last..cut]), None);
        }
    }

    proptest! {
        #[test]
        fn records_come_back_and_lie_as_the_format_says(
            vocab_size in prop::sample::select(vec![2u32, 255, 32768, 65535, 131_072, 262_144]),
            max_order in 1usize..=16,
            records in prop::collection::vec(
                (prop::collection::vec(any::<u32>(), 1..18), 0u64..300, prop::sample::select(vec![1, 2, 127, 128, 1 << 40])),
                1..30,
            ),
            few in any::<bool>(),
            whole in any::<bool>(),
        ) {
            let packing = Packing::new(vocab_size, max_order);
            let tokens = |key: &[u32]| -> Vec<u32> {
                key.iter().take(max_order).map(|t| t % if few { vocab_size.min(3) } else { vocab_size }).collect()
            };
            macro_rules! with {
                ($($words:literal)*) => {
                    match packing.words() {
                        $($words => check::<$words>(
                            &packing, whole, records.iter().map(|(key, tag, count)| (packing.pack(&tokens(key)), *tag, *count)).collect(),
                        ),)*
                        other => panic!("{other} words"),
                    }
                };
            }
            with!(1 2 3 4 5 6);
        }
    }
}

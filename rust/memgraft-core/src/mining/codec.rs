//! How records of a sorted run lie in bytes.
//!
//! A record is one head byte (key bytes shared with the record before; the high bit says that the count is 1), the other
//! key bytes, most significant first, the tag and, unless 1, the count as LEB128. Bytes of the last word in which no token
//! lies are left out.

use std::hint::select_unpredictable;

use super::gathered::Gathered;
use super::record::{AsItem, BATCH, Item, ROOM, batches};
use super::window::{Key, MAX_WORDS, Packing};
use crate::ids::{low_u8, low_u32, u64_of, usize_of};
use crate::wire::{put_leb128, read_leb128};

/// Bytes before a record that a read of it may touch.
pub(super) const FRONT: usize = 8 * MAX_WORDS;
/// Bytes from the start of a record that a read of it may touch.
pub(super) const BACK: usize = ROOM;
const COUNT_IS_ONE: u8 = 0x80;

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

/// Writes records one after another; keys never fall.
pub(super) struct Encoder<const W: usize> {
    bytes: KeyBytes,
    last: Key<W>,
}

impl<const W: usize> Encoder<W> {
    pub(super) fn new(bytes: KeyBytes) -> Self {
        Self { bytes, last: [0; W] }
    }

    pub(super) fn push_all(&mut self, gathered: &mut Gathered, items: &[Item<W>]) {
        let (num, mut last) = (self.bytes.num, self.last);
        for items in items.chunks(BATCH) {
            let (room, mut at) = (gathered.room(BATCH), 0);
            for item in items {
                at += Self::put(&mut room[at..], num, &last, item);
                last = item.0;
            }
            gathered.wrote(at);
        }
        self.last = last;
    }

    /// Writes the record after one of key `last` at the start of `room`; returns its length.
    #[inline]
    fn put(room: &mut [u8], num: usize, last: &Key<W>, (key, tag, count): &Item<W>) -> usize {
        let room = room.first_chunk_mut::<ROOM>().expect("expected room for a record");
        let one = u8::from(*count == 1);
        let shared = if W <= 2 {
            let second = |key: &Key<W>| key.get(1).copied().unwrap_or(0);
            let (high, low) = (key[0] ^ last[0], second(key) ^ second(last));
            let (differ, word) = select_unpredictable(high == 0, (low, second(key)), (high, key[0]));
            // Counted from below: code for any x86-64 processor has no quick way to count zeros from above.
            let equal = differ.swap_bytes().trailing_zeros() & !7;
            let before = select_unpredictable(high == 0, 8, 0);
            let shared = (before + usize_of(equal / 8)).min(num);
            // The fresh bytes of the word that differs, and behind them the second, which is written once more if it is that.
            put(room, 1, word.wrapping_shl(equal));
            put(room, 9 - usize_of(equal / 8), second(key));
            shared
        } else {
            let mut shared = num;
            for (index, (word, last)) in key.iter().zip(last).enumerate().rev() {
                let differ = word ^ last;
                shared = if differ == 0 { shared } else { 8 * index + usize_of(differ.leading_zeros() / 8) };
            }
            let shared = shared.min(num);
            // Whole words are written from low places to high ones: each covers what the one before wrote too much.
            for (index, word) in key.iter().enumerate() {
                let before = index * 8;
                if before >= shared {
                    put(room, 1 + before - shared, *word);
                } else if before + 8 > shared {
                    put(room, 1, word << (8 * (shared - before)));
                }
            }
            shared
        };
        room[0] = low_u8(low_u32(u64_of(shared))) | (one << 7);
        let mut at = 1 + num - shared;
        if (tag | count) < 0x80 {
            room[at..at + 2].copy_from_slice(&[low_u8(low_u32(*tag)), low_u8(low_u32(*count))]);
            return at + 2 - usize::from(one);
        }
        put_leb128(room, &mut at, *tag);
        if one == 0 {
            put_leb128(room, &mut at, *count);
        }
        at
    }
}

#[inline]
fn put(room: &mut [u8], at: usize, word: u64) {
    room[at..at + 8].copy_from_slice(&word.to_be_bytes());
}

/// Reads what [`Encoder`] wrote.
pub(super) struct Decoder<const W: usize> {
    num_key_bytes: usize,
    /// By shared bytes: the bits of a key that are read.
    fresh: Vec<Key<W>>,
    last: Key<W>,
}

impl<const W: usize> Decoder<W> {
    pub(super) fn new(bytes: KeyBytes) -> Self {
        let fresh = |shared: usize| {
            let mut bits = [0; W];
            for (index, word) in bits.iter_mut().enumerate() {
                *word = match shared.saturating_sub(index * 8) {
                    before @ 0..8 => u64::MAX >> (8 * before),
                    _ => 0,
                };
            }
            bits[W - 1] &= bytes.last_word;
            bits
        };
        Self { num_key_bytes: bytes.num, fresh: (0..=bytes.num).map(fresh).collect(), last: [0; W] }
    }

    /// The next record shares nothing with the one before.
    pub(super) fn restart(&mut self) {
        self.last = [0; W];
    }

    /// Reads the records that start at `at` and before `stop` into `items`, as many as it has room for. Returns their
    /// number and where the next starts; `None` where something is no record.
    ///
    /// `bytes` has at least [`FRONT`] bytes before `at`, and [`BACK`] behind `stop` or as many of the records. `see` gets
    /// every record while it is at hand.
    #[inline]
    pub(super) fn read(
        &mut self,
        bytes: &[u8],
        mut at: usize,
        stop: usize,
        items: &mut [Item<W>],
        mut see: impl FnMut(&Item<W>),
    ) -> Option<(usize, usize)> {
        let (mut found, mut last) = (0, self.last);
        for item in items {
            if at >= stop {
                break;
            }
            let head = *bytes.get(at)?;
            let shared = usize::from(head & !COUNT_IS_ONE);
            let fresh = self.fresh.get(shared)?;
            // Read from so far before that every key byte lies at its place; those before the fresh ones are masked.
            let from = at + 1 - shared;
            let words = bytes.get(from..from + 8 * W)?.as_chunks::<8>().0;
            for ((word, fresh), bytes) in last.iter_mut().zip(fresh).zip(words) {
                *word ^= (*word ^ u64::from_be_bytes(*bytes)) & fresh;
            }
            let mut next = at + 1 + self.num_key_bytes - shared;
            let &[tag, count] = bytes.get(next..)?.first_chunk()?;
            let one = head >> 7;
            let count = count & one.wrapping_sub(1);
            if (tag | count) < 0x80 {
                *item = (last, u64::from(tag), u64::from(count | one));
                at = next + 2 - usize::from(one);
            } else {
                let tag = read_leb128(bytes, &mut next)?;
                *item = (last, tag, if one == 0 { read_leb128(bytes, &mut next)? } else { 1 });
                at = next;
            }
            see(item);
            found += 1;
        }
        self.last = last;
        Some((found, at))
    }
}

/// Bytes of a run as they lie in a block: what one position takes on disk.
pub(super) fn encoded_len<const W: usize>(packing: &Packing, records: &[impl AsItem<W>]) -> u64 {
    let (mut encoder, mut gathered) = (Encoder::<W>::new(KeyBytes::of(packing)), Gathered::with_capacity(0));
    let mut total = 0;
    batches(records, |items| {
        gathered.clear();
        encoder.push_all(&mut gathered, items);
        total += u64_of(gathered.len());
        Ok(())
    })
    .map_or(0, |()| total)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::window::with_words;
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

    /// Reads all of `buffer`, `most` records at a time.
    fn read_all<const W: usize>(bytes: KeyBytes, buffer: &[u8], most: usize) -> Option<Vec<Item<W>>> {
        // What lies around the records says nothing.
        let mut padded = vec![0xA5; FRONT];
        padded.extend_from_slice(buffer);
        padded.extend_from_slice(&[0; BACK]);
        let stop = FRONT + buffer.len();
        let (mut decoder, mut at, mut found) = (Decoder::<W>::new(bytes), FRONT, Vec::new());
        while at < stop {
            let mut items = vec![([0; W], 0, 0); most];
            let mut seen = Vec::new();
            let (number, next) = decoder.read(&padded, at, stop, &mut items, |item| seen.push(*item))?;
            assert_eq!(seen, items[..number]);
            found.extend_from_slice(&items[..number]);
            at = next;
        }
        (at == stop).then_some(found)
    }

    fn check<const W: usize>(packing: &Packing, whole: bool, most: usize, mut records: Vec<Item<W>>) {
        records.sort_unstable();
        let bytes = if whole { KeyBytes::all(packing) } else { KeyBytes::of(packing) };
        let mut gathered = Gathered::with_capacity(0);
        let mut encoder = Encoder::new(bytes);
        records.chunks(most).for_each(|records| encoder.push_all(&mut gathered, records));
        let buffer = gathered.as_slice();
        let (last, all) = (slow(bytes.num, &records[..records.len() - 1]), slow(bytes.num, &records));
        assert_eq!(buffer, all);
        assert_eq!(read_all(bytes, buffer, most).unwrap(), records);
        // Cut short anywhere, the last record is no record.
        for cut in last.len() + 1..buffer.len() {
            assert_eq!(read_all::<W>(bytes, &buffer[..cut], most), None);
        }
    }

    proptest! {
        #[test]
        fn records_come_back_and_lie_as_the_format_says(
            vocab_size in prop::sample::select(vec![2u32, 255, 32768, 65535, 131_072, 262_144]),
            max_order in 1usize..=16,
            records in prop::collection::vec(
                (prop::collection::vec(any::<u32>(), 1..18), 0u64..300, prop::sample::select(vec![1, 2, 127, 128, 1 << 40])),
                1..150,
            ),
            most in 1usize..70,
            few in any::<bool>(),
            whole in any::<bool>(),
        ) {
            let packing = Packing::new(vocab_size, max_order);
            let tokens = |key: &[u32]| -> Vec<u32> {
                key.iter().take(max_order).map(|t| t % if few { vocab_size.min(3) } else { vocab_size }).collect()
            };
            with_words!(packing, W => {
                let records = records.iter().map(|(key, tag, count)| (packing.pack(&tokens(key)), *tag, *count));
                check::<W>(&packing, whole, most, records.collect());
            });
        }
    }
}

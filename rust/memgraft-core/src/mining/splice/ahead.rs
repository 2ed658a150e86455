//! Records of both sides that have been looked at before their turn.

use std::num::NonZero;

use super::shape::Shape;
use crate::ids::{low_u8, low_u32, u64_of, usize_of, usize_of_u64};
use crate::mining::record::{MAX_RECORD, ROOM};

/// Places for records of one side, one of them for what is behind the last.
const HALF: usize = 256;
/// Places for those of both.
const PLACES: usize = 2 * HALF;
/// Records of one side that are looked at in one go.
pub(super) const MOST: usize = HALF - 1;
/// Records that are written in one go at most.
pub(in crate::mining) const MOST_RECORDS: usize = 2 * MOST;
/// Bytes that they take at most, with what is touched behind them.
pub(super) const MOST_BYTES: usize = MOST_RECORDS * ROOM;
/// The code of no record, after all others.
const END: u64 = 0x80;
/// What a record says first, less the bytes that it shares: its count is 1.
pub(super) const ONE: u8 = 0x80;
/// Bytes from a record on that may be looked at.
pub(super) const WINDOW: usize = 80;
/// What both sides have read, and what a read of a whole window touches behind it.
pub(super) type Both = [u8; BOTH + WINDOW];
/// A power of two, so that no place in it is compared with its end.
pub(super) const BOTH: usize = 1 << 19;
const _: () = assert!(MOST_RECORDS * MAX_RECORD + WINDOW <= MOST_BYTES, "a window is written behind the last record");
const _: () = assert!(MAX_RECORD <= WINDOW, "a record whose tag or count is large is copied as a window");

/// How a record compares with another, where both follow the same one: by the bytes of its key that it gives, since the
/// others are shared, fewer of them first; then by the first seven of these.
///
/// Both lie as they do in a file, the first byte lowest: where two codes differ is known without turning them, and the next
/// code of a record hangs on that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Code(pub(super) u64);

impl Code {
    /// Of one that gives so many bytes of its key, those of `word`.
    #[inline]
    pub(super) fn new(word: u64, given: u64) -> Self {
        Self((word << 8) | given)
    }

    /// Bytes of the key that are given.
    #[inline]
    pub(super) fn given(self) -> u64 {
        self.0 & 0xff
    }

    /// Whether the record with this code comes before that with `other`; of equal ones, neither does.
    #[inline]
    pub(super) fn is_before(self, other: Self) -> bool {
        self.0.swap_bytes() < other.0.swap_bytes()
    }

    /// Bytes of the key that both give and that are equal; `None` if all are that codes hold.
    #[inline]
    pub(super) fn equal(self, other: Self) -> Option<u64> {
        let differ = NonZero::new(self.0 ^ other.0)?;
        Some(u64::from((differ.trailing_zeros() / 8).max(1) - 1))
    }

    #[inline]
    pub(super) fn is_end(self) -> bool {
        self.0 & END != 0
    }
}

/// Where a record is. In the low half, the byte before those of its key that are looked at next; above them, the number of
/// the record behind it; in the high byte, what it would say first if it shared its whole key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place(pub(super) u64);

const NUMBER: u32 = 32;
const TOP: u32 = 56;

impl Place {
    /// Of a record with so many bytes of a key, whose count is not 1.
    #[inline]
    pub(super) const fn new(number: usize, at: usize, num: usize) -> Self {
        Self(u64_of(at) | (u64_of(number + 1) << NUMBER) | (u64_of(num) << TOP))
    }

    /// What is added on the way to the record behind it, `len` bytes later.
    #[inline]
    pub(super) const fn step(len: u64) -> u64 {
        len + (1 << NUMBER)
    }

    /// This, if the record says `first` first.
    #[inline]
    pub(super) fn of(self, first: u8) -> Self {
        Self(self.0 | (u64::from(first & ONE) << TOP))
    }

    #[inline]
    pub(super) fn at(self) -> usize {
        usize_of(self.low())
    }

    #[inline]
    pub(super) fn low(self) -> u32 {
        low_u32(self.0)
    }

    /// The number of the record behind it.
    #[inline]
    fn next(self) -> usize {
        usize_of_u64(self.0 >> NUMBER) % PLACES
    }

    #[inline]
    pub(super) fn number(self) -> usize {
        self.next().wrapping_sub(1) % PLACES
    }

    /// Whether its count is 1, and not given.
    #[inline]
    pub(super) fn is_one(self) -> bool {
        self.top() & ONE != 0
    }

    #[inline]
    fn top(self) -> u8 {
        low_u8(low_u32(self.0 >> TOP))
    }
}

/// The next record of a side.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    pub(super) code: Code,
    pub(super) place: Place,
}

impl Head {
    /// Stands where all records that were looked at have been written.
    pub(super) const USED_UP: Self = Self::end(Place::new(0, 0, 0));

    /// Stands at `place`, behind the last.
    pub(super) const fn end(place: Place) -> Self {
        Self { code: Code(END), place }
    }

    /// What the record says first.
    #[inline]
    pub(super) fn first_byte(&self) -> u8 {
        self.place.top().wrapping_sub(low_u8(low_u32(self.code.given())))
    }
}

/// By side and record: its code after the record before it in its stream, and its place.
pub(super) struct Ahead {
    heads: [Head; PLACES],
}

impl Ahead {
    pub(super) fn new() -> Self {
        Self { heads: [Head::USED_UP; PLACES] }
    }

    /// The records of one side, and the number of the first.
    pub(super) fn half(&mut self, side: usize) -> (&mut [Head; HALF], usize) {
        let half = self.heads.as_chunks_mut().0.get_mut(side);
        (half.expect("expected one of two sides"), side * HALF)
    }

    /// The record behind `place`.
    #[inline]
    pub(super) fn next(&self, place: Place) -> Head {
        self.heads[place.next()]
    }

    /// The first record of a side, after the record before it in its stream.
    pub(super) fn first(&self, side: usize) -> Head {
        self.heads[side * HALF]
    }

    /// The first record of a side as one that shares `shared` bytes with the record before, all of them of its first
    /// token, whose bytes are those of `token`.
    pub(super) fn share(&self, side: usize, shared: usize, token: &[u8; 8], bytes: &mut [u8]) -> Head {
        let Head { code, place } = self.first(side);
        let (num, start) = (usize::from(place.top() & !ONE), place.at());
        let (given, wanted) = (usize_of_u64(code.given()), num - shared);
        // Those that it shares only with the record before it in its stream, or with none at the start of a section,
        // are put before those that it gives: over what has been used, and its first byte, which is known.
        if wanted > given {
            bytes[start + 1 + given - wanted..=start].copy_from_slice(&token[shared..num - given]);
        }
        let place = Place(place.0 + u64_of(given) - u64_of(wanted));
        Head { code: Code::new(Shape::word(bytes, place.at() + 1), u64_of(wanted)), place }
    }

    /// Writes the records of a side from `head` on; returns bytes and number.
    pub(super) fn rest(&self, side: usize, head: &Head, bytes: &[u8], room: &mut [u8]) -> (usize, u64) {
        let first = side * HALF;
        let stop = first + self.heads[first..].iter().position(|head| head.code.is_end()).unwrap_or(MOST);
        let records = &bytes[head.place.at()..self.heads[stop].place.at()];
        room[..records.len()].copy_from_slice(records);
        room[0] = head.first_byte();
        (records.len(), u64_of(stop - head.place.number()))
    }
}

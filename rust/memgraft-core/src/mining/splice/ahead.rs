//! Records of both sides that have been looked at before their turn.

use super::shape::Shape;
use crate::ids::{low_u8, low_u32, u64_of, u64_of_u8, usize_of, usize_of_u64};
use crate::mining::record::{MAX_RECORD, ROOM};

/// Places for records of one side, one of them for what is behind the last.
const HALF: usize = 128;
/// Places for those of both.
const PLACES: usize = 2 * HALF;
/// Records of one side that are looked at in one go.
pub(super) const MOST: usize = HALF - 1;
/// Records that are written in one go at most.
pub(in crate::mining) const MOST_RECORDS: usize = 2 * MOST;
/// Bytes that they take at most, with what is touched behind them.
pub(super) const MOST_BYTES: usize = MOST_RECORDS * ROOM;
/// The code of no record, after all others.
const END: u64 = 1 << 63;
/// Bits of a code that are bytes of the key.
const BYTES: u64 = u64::MAX >> 8;
const TOP: u32 = 56;
/// What a record says first, less the bytes that it shares: its count is 1.
pub(super) const ONE: u8 = 0x80;
/// More than any record shares.
pub(super) const FEWEST: u64 = 0x7f;
/// Bytes from a record on that may be looked at.
pub(super) const WINDOW: usize = 80;
const _: () = assert!(MAX_RECORD <= WINDOW, "a record whose tag or count is large is copied as a window");

/// How a record compares with another, where both follow the same one: by the bytes of its key that it shares with that,
/// more of them first, then by the next seven bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Code(pub(super) u64);

impl Code {
    /// Of one that shares all but `fewer` of [`FEWEST`] bytes; those of the key lie behind the first of `word`.
    #[inline]
    pub(super) fn new(word: u64, fewer: u64) -> Self {
        Self((word & BYTES) | (fewer << TOP))
    }

    #[inline]
    pub(super) fn fewer(self) -> u64 {
        self.0 >> TOP
    }

    /// Bytes that are shared.
    #[inline]
    pub(super) fn shared(self) -> usize {
        usize_of_u64(FEWEST - self.fewer())
    }

    #[inline]
    pub(super) fn is_end(self) -> bool {
        self.0 >= END
    }
}

/// Where a record is: its number, whether its count is 1, and, in the low half, the byte before those of its key that are looked
/// at next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place(pub(super) u64);

impl Place {
    #[inline]
    pub(super) const fn new(number: usize, one: u8, at: usize) -> Self {
        Self(u64_of(at) | (u64_of(number) << 32) | (u64_of_u8(one) << 56))
    }

    #[inline]
    pub(super) fn at(self) -> usize {
        usize_of(low_u32(self.0))
    }

    #[inline]
    pub(super) fn number(self) -> usize {
        usize::from(low_u8(low_u32(self.0 >> 32)))
    }

    /// [`ONE`] or nothing.
    #[inline]
    pub(super) fn one(self) -> u8 {
        low_u8(low_u32(self.0 >> 56))
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
    pub(super) const USED_UP: Self = Self::end(0, 0);

    /// The record that lies at `at` and starts with `word`.
    #[inline]
    pub(super) fn new(word: u64, number: usize, at: usize) -> Self {
        let one = low_u8(low_u32(word >> TOP)) & ONE;
        // The first byte, without `ONE`, is what the record shares.
        Self { code: Code((word ^ (FEWEST << TOP)) & !END), place: Place::new(number, one, at) }
    }

    /// Stands behind the last, which ends at `at`.
    pub(super) const fn end(number: usize, at: usize) -> Self {
        Self { code: Code(END), place: Place::new(number, 0, at) }
    }

    /// What the record says first.
    #[inline]
    pub(super) fn first_byte(&self) -> u8 {
        low_u8(low_u32(FEWEST - self.code.fewer())) | self.place.one()
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
        let number = (place.number() + 1) % PLACES;
        self.heads[number]
    }

    /// The first record of a side, after the record before it in its stream.
    pub(super) fn first(&self, side: usize) -> Head {
        self.heads[side * HALF]
    }

    /// The first record of a side as one that shares `shared` bytes with the record before, all of them of its first
    /// token, whose bytes are those of `token`.
    pub(super) fn share(&self, side: usize, shared: usize, token: &[u8; 8], bytes: &mut [u8]) -> Head {
        let Head { code, place } = self.first(side);
        let (given, start) = (code.shared(), place.at());
        // Those that it shares only with the record before it in its stream, or with none at the start of a section,
        // are put before those that it gives: over what has been used, and its first byte, which is known.
        if shared < given {
            bytes[start + 1 + shared - given..=start].copy_from_slice(&token[shared..given]);
        }
        let at = start + shared - given;
        let code = Code::new(Shape::word(bytes, at), FEWEST - u64_of(shared));
        Head { code, place: Place::new(place.number(), place.one(), at) }
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

//! Two streams of records as one.

use std::sync::Arc;

use super::ahead::{Ahead, BOTH, Both, Head, MOST_BYTES, WINDOW};
use super::pick;
use super::plain::Ends;
use super::shape::Shape;
use super::side::{Records, Side, Source, Written};
use crate::ids::{u64_of, usize_of, usize_of_u64};
use crate::mining::codec::KeyBytes;
use crate::mining::options::{MAX_FILES, Means};
use crate::mining::record::{MAX_RECORD, ROOM};
use crate::mining::runs::{RunSet, Sections};
use crate::mining::window::Packing;
use crate::{Error, Result};

/// Room between a pair and those it is made of: for what is read at a time, and much more than a record that is left of the
/// time before.
const BETWEEN: usize = MOST_BYTES + MAX_RECORD + (12 << 10);
/// Bytes before a side's records: those of a first token that a record does not give itself.
const FRONT: usize = 8;
/// Bytes behind a side's records that a read of a window touches.
const BACK: usize = ROOM + WINDOW;
/// Bytes that are read at a time.
pub(in crate::mining) const CAPACITY: usize = BOTH / 2 - FRONT - BACK;
/// What a merge takes for each run.
pub(super) const SPLICE_BYTES: usize = size_of::<Both>() + size_of::<Ahead>() + size_of::<Ends>();

/// Whether `sets` are merged here. Decoded they are for want of memory or of open files, and since run files of version 1.0
/// give bytes of a key in which no token lies.
pub(in crate::mining) fn fits(packing: &Packing, sets: &[Arc<RunSet>], means: &Means) -> bool {
    let wanted = KeyBytes::of(packing).num;
    sets.len() <= most(means) && sets.iter().all(|set| set.key_bytes.num == wanted)
}

/// How many run files may be merged here at a time.
pub(in crate::mining) fn most(means: &Means) -> usize {
    usize_of_u64(means.memory / 2 / u64_of(SPLICE_BYTES)).min(MAX_FILES)
}

/// Two sorted streams of records, or one, as one.
pub(in crate::mining) struct Splice<'a, const C: usize> {
    shape: Shape,
    ends: Box<Ends>,
    bytes: Box<Both>,
    ahead: Box<Ahead>,
    sides: [Side<'a, C>; 2],
    /// The next record of each side, and what it shares with the record written last if that has its first token.
    heads: [Head; 2],
    /// First token, plus one, of the record written last; zero before the first.
    slot: u64,
}

impl<'a, const C: usize> Splice<'a, C> {
    /// The records of first tokens `from..to` of `sets`, each read `capacity` bytes at a time.
    pub(in crate::mining) fn open(
        packing: &Packing,
        sets: &'a [Arc<RunSet>],
        (from, to): (u32, u32),
        capacity: usize,
    ) -> Result<Self> {
        let source = |set: &'a RunSet| Ok(Source::set(Sections::open(set, Some(from), Some(to))?, from, to));
        let half = |sets: &'a [Arc<RunSet>]| match sets {
            [] => Ok(Source::Nothing),
            [one] => source(one),
            more => Ok(Source::Pair(Box::new(Self::open(packing, more, (from, to), capacity)?))),
        };
        let (left, right) = sets.split_at(sets.len().div_ceil(2));
        let (left, right) = (half(left)?, half(right)?);
        let room = |source: &Source<'_>| match source {
            Source::Nothing => 0,
            Source::Set(_) => capacity.max(MAX_RECORD),
            Source::Pair(_) => BETWEEN,
        };
        let left_end = FRONT + room(&left);
        let right_start = left_end + BACK + FRONT;
        let right_end = right_start + room(&right);
        assert!(right_end + BACK <= BOTH, "expected at most {CAPACITY} bytes to read at a time");
        Ok(Self {
            shape: Shape::of(packing),
            ends: Box::new(Ends::of(packing)),
            bytes: vec![0; BOTH + WINDOW].try_into().expect("as many bytes as it has"),
            ahead: Box::new(Ahead::new()),
            sides: [Side::new(0, left, FRONT, left_end), Side::new(1, right, right_start, right_end)],
            heads: [Head::USED_UP; 2],
            slot: 0,
        })
    }

    /// First token of the next record, `None` at the end. Adds the number of records that were looked at to `read`.
    pub(in crate::mining) fn token(&mut self, read: &mut u64) -> Result<Option<u32>> {
        let Self { shape, ends, bytes, ahead, sides, heads, .. } = self;
        for (index, (side, head)) in sides.iter_mut().zip(heads).enumerate() {
            if head.code.is_end() && side.advance(&mut bytes[..], ahead, shape, ends, read)? {
                *head = ahead.first(index);
            }
        }
        Ok(sides.iter().filter_map(Side::token).min())
    }

    /// The next record, which is the first of its first token, is written as if none came before it.
    pub(in crate::mining) fn restart(&mut self) {
        self.slot = 0;
    }

    /// Writes records of the first token that [`Splice::token`] has told at the start of `room`, which holds
    /// [`MOST_RECORDS`] records; none where they end.
    pub(in crate::mining) fn read(&mut self, room: &mut [u8], read: &mut u64) -> Result<Written> {
        let Some(token) = self.token(read)? else { return Ok(Written::default()) };
        let slot = u64::from(token) + 1;
        let has: [bool; 2] = std::array::from_fn(|index| self.sides[index].token() == Some(token));
        if slot != self.slot {
            let differ = self.shape.bytes(slot ^ self.slot);
            let shared = usize_of(u64::from_be_bytes(differ).leading_zeros() / 8);
            let bytes = self.shape.bytes(slot);
            for index in (0..2).filter(|&index| has[index]) {
                self.heads[index] = self.ahead.share(index, shared, &bytes, &mut self.bytes[..]);
            }
            self.slot = slot;
        }
        if has == [true, true] {
            let before = self.heads;
            let picked = pick::pick::<C>(&self.bytes, &self.ahead, self.shape.num, &mut self.heads, room);
            let (bytes, joined) = picked.ok_or_else(|| self.sides[0].damaged())?;
            let used: usize = (0..2).map(|index| self.heads[index].place.number() - before[index].place.number()).sum();
            return Ok(Written { bytes, records: u64_of(used) - joined });
        }
        let index = usize::from(has[1]);
        let head = std::mem::replace(&mut self.heads[index], Head::USED_UP);
        let (bytes, records) = self.ahead.rest(index, &head, &self.bytes[..], room);
        Ok(Written { bytes, records })
    }
}

impl<const C: usize> Records for Splice<'_, C> {
    fn read(&mut self, room: &mut [u8], read: &mut u64) -> Result<Written> {
        Splice::read(self, room, read)
    }

    fn damaged(&self) -> Error {
        self.sides[0].damaged()
    }
}

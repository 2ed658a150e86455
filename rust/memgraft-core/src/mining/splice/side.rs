//! One of two streams: where its records come from, and a look at the next of them.

use super::ahead::{Ahead, Head, MOST, MOST_BYTES, ONE, WINDOW};
use super::shape::Shape;
use crate::ids::{low_u32, u64_of, usize_of_u64};
use crate::mining::record::MAX_RECORD;
use crate::mining::runs::{MAX_COUNT, Sections};
use crate::wire::read_leb128;
use crate::{Error, Result};

/// What is written in one go.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::mining) struct Written {
    pub(in crate::mining) bytes: usize,
    pub(in crate::mining) records: u64,
}

/// Records made of others.
pub(super) trait Records: Send {
    /// Writes the next at the start of `room`, which holds [`MOST_BYTES`]; none at the end. Adds the number of records
    /// of run files that were looked at to `read`.
    fn read(&mut self, room: &mut [u8], read: &mut u64) -> Result<Written>;

    /// What they are made of is no stream in order.
    fn damaged(&self) -> Error;
}

/// Where records come from.
pub(super) enum Source<'a> {
    Nothing,
    Set(Box<SetSource<'a>>),
    Pair(Box<dyn Records + 'a>),
}

/// A run file between two first tokens.
pub(super) struct SetSource<'a> {
    sections: Sections<'a>,
    /// The bytes of the section that are still to be read.
    at: u64,
    end: u64,
    from: u32,
    to: u32,
    max_tag: u64,
}

impl<'a> Source<'a> {
    pub(super) fn set(sections: Sections<'a>, from: u32, to: u32) -> Self {
        let max_tag = sections.max_tag();
        Self::Set(Box::new(SetSource { sections, at: 0, end: 0, from, to, max_tag }))
    }
}

/// A stream, and a look at its next records.
pub(super) struct Side<'a, const C: usize> {
    index: usize,
    source: Source<'a>,
    /// Whether its source has no byte more, of the section where it has sections.
    is_read: bool,
    /// Where its bytes lie: from, to; those read and not looked at.
    front: usize,
    back: usize,
    used: usize,
    filled: usize,
    /// The key of the record looked at last, behind it its tag's first byte.
    key: [u8; 128],
    tag: u64,
    /// Whether the next record starts a section.
    starts: bool,
    /// The first token, plus one, of the records looked at; zero before the first and behind the last.
    slot: u64,
    ended: bool,
    /// Sum of counts that take more than a byte.
    sum: u64,
}

impl<'a, const C: usize> Side<'a, C> {
    pub(super) fn new(index: usize, source: Source<'a>, front: usize, back: usize) -> Self {
        let is_read = !matches!(source, Source::Pair(_));
        Self {
            index,
            source,
            is_read,
            front,
            back,
            used: front,
            filled: front,
            key: [0; 128],
            tag: 0,
            starts: true,
            slot: 0,
            ended: false,
            sum: 0,
        }
    }

    /// First token of the records looked at.
    pub(super) fn token(&self) -> Option<u32> {
        if self.ended { None } else { low_u32(self.slot).checked_sub(1) }
    }

    /// Looks at the next records, all of one first token, once those before are used up; false where there are none.
    pub(super) fn advance(
        &mut self,
        bytes: &mut [u8],
        ahead: &mut Ahead,
        shape: &Shape,
        read: &mut u64,
    ) -> Result<bool> {
        while !self.ended {
            if self.filled - self.used < MAX_RECORD && !self.is_read {
                self.refill(bytes, read)?;
            }
            if self.used == self.filled && self.is_read {
                self.ended = !self.next_section()?;
                continue;
            }
            let number = self.look(bytes, ahead, shape)?;
            let Source::Set(set) = &mut self.source else { return Ok(true) };
            *read += u64_of(number);
            let token = low_u32(self.slot - 1);
            if token >= set.to {
                self.drain(bytes)?;
                self.ended = true;
            } else if token >= set.from {
                return Ok(true);
            }
        }
        Ok(false)
    }

    #[cold]
    fn refill(&mut self, bytes: &mut [u8], read: &mut u64) -> Result<()> {
        bytes.copy_within(self.used..self.filled, self.front);
        self.filled = self.front + self.filled - self.used;
        self.used = self.front;
        let room = &mut bytes[self.filled..self.back];
        match &mut self.source {
            Source::Nothing => self.is_read = true,
            Source::Set(set) => {
                let number = at_most(set.end - set.at, room.len());
                set.sections.read(&mut room[..number], set.at)?;
                set.at += u64_of(number);
                self.filled += number;
                self.is_read = set.at == set.end;
            }
            Source::Pair(pair) => {
                let mut filled = 0;
                while room.len() - filled >= MOST_BYTES {
                    let written = pair.read(&mut room[filled..], read)?;
                    filled += written.bytes;
                    if written.bytes == 0 {
                        self.is_read = true;
                        break;
                    }
                }
                self.filled += filled;
            }
        }
        Ok(())
    }

    #[cold]
    fn next_section(&mut self) -> Result<bool> {
        let Source::Set(set) = &mut self.source else { return Ok(false) };
        let Some((at, end)) = set.sections.next()? else { return Ok(false) };
        (set.at, set.end) = (at, end);
        (self.is_read, self.starts) = (false, true);
        Ok(true)
    }

    /// Reads the section to its end, for its checksum, and no further one.
    #[cold]
    fn drain(&mut self, bytes: &mut [u8]) -> Result<()> {
        let Source::Set(set) = &mut self.source else { return Ok(()) };
        while set.at < set.end {
            let number = at_most(set.end - set.at, self.back - self.front);
            set.sections.read(&mut bytes[self.front..self.front + number], set.at)?;
            set.at += u64_of(number);
        }
        set.sections.stop()
    }

    /// Looks at the records from `used` on that have one first token; returns their number, at least one.
    fn look(&mut self, bytes: &[u8], ahead: &mut Ahead, shape: &Shape) -> Result<usize> {
        let Shape { num, large_tag, token_bytes, .. } = *shape;
        let (heads, first) = ahead.half(self.index);
        let stop = if self.is_read { self.filled } else { (self.filled + 1).saturating_sub(MAX_RECORD) };
        let (mut at, mut found) = (self.used, 0);
        self.start(bytes, at, shape)?;
        let mut key = self.key;
        // Only the first may share less: with it, another first token starts.
        let mut least = 0;
        while found < MOST && at < stop {
            let window: &[u8; WINDOW] = bytes[at..].first_chunk().expect("expected room behind the records");
            let head = window[0];
            let sharing = usize::from(head & !ONE);
            if sharing.wrapping_sub(least) > num - least {
                break;
            }
            let tail = (1 + num - sharing) & 63;
            let (tag, count) = (window[tail], window[tail + 1]);
            let one = head >> 7;
            let mut end = at + tail + 2 - usize::from(one);
            // Tags of several bytes and those of long documents, counts of several bytes, none, or zero.
            let large = (u32::from(tag) + large_tag) | u32::from((count | count.wrapping_sub(1)) & one.wrapping_sub(1));
            let before = key[sharing & 63];
            // A key that is shared as a whole has its tag behind it.
            if large >= 0x80 || window[1] <= before {
                let rises = (sharing < num).then_some(window[1] > before);
                let last = found.checked_sub(1).map(|last| heads[last]);
                end = self.careful(bytes, at, shape, rises, last)?;
            }
            let fresh: &mut [u8; 64] = key[sharing & 63..].first_chunk_mut().expect("expected room behind a key");
            fresh.as_chunks_mut::<16>().0[..C].copy_from_slice(&window[1..65].as_chunks::<16>().0[..C]);
            heads[found] = Head::new(Shape::word(window, 0), first + found, at);
            at = end;
            found += 1;
            least = token_bytes;
        }
        self.key = key;
        let Some(last) = found.checked_sub(1).filter(|_| at <= self.filled) else { return Err(self.damaged()) };
        self.tag = self.tag_of(bytes, &heads[last], shape)?;
        heads[found] = Head::end(first + found, at);
        self.used = at;
        Ok(found)
    }

    /// Notes the first token of the record at `at`, which may be another than that of the one before.
    fn start(&mut self, bytes: &[u8], at: usize, shape: &Shape) -> Result<()> {
        let word = Shape::word(bytes, at).to_be_bytes();
        let sharing = usize::from(word[0] & !ONE);
        if sharing >= shape.token_bytes && !self.starts {
            return Ok(());
        }
        let starts = std::mem::take(&mut self.starts);
        if starts {
            self.key = [0; 128];
        }
        let mut bytes = *self.key.first_chunk::<8>().expect("keys have room for a word");
        bytes.iter_mut().skip(sharing).zip(&word[1..]).for_each(|(byte, fresh)| *byte = *fresh);
        let slot = shape.slot(bytes);
        if slot == self.slot && !starts {
            return Ok(());
        }
        let (from, to) = match &self.source {
            Source::Set(set) => set.sections.tokens(),
            _ => (0, u32::MAX),
        };
        let belongs = low_u32(slot).checked_sub(1).is_some_and(|token| token >= from && token < to);
        if slot <= self.slot || !belongs {
            return Err(self.damaged());
        }
        self.slot = slot;
        Ok(())
    }

    /// Where the record at `at` ends, which is large, or does not seem to rise. `rises`: whether its key is larger than
    /// that of the `last`; `None` where it is the same.
    #[cold]
    fn careful(
        &mut self,
        bytes: &[u8],
        at: usize,
        shape: &Shape,
        rises: Option<bool>,
        last: Option<Head>,
    ) -> Result<usize> {
        let before = last.map_or(Ok(self.tag), |last| self.tag_of(bytes, &last, shape))?;
        let mut end = at + 1 + shape.num - usize::from(bytes[at] & !ONE);
        let mut read = || read_leb128(bytes, &mut end);
        let tag = read();
        let count = if bytes[at] & ONE == 0 { read() } else { Some(1) };
        let (Some(tag), Some(count)) = (tag, count) else { return Err(self.damaged()) };
        let (max_tag, max_sum) = match &self.source {
            Source::Set(set) => (set.max_tag, MAX_COUNT),
            _ => (u64::MAX, u64::MAX),
        };
        self.sum = self.sum.saturating_add(count);
        if count == 0 || tag > max_tag || self.sum >= max_sum || !rises.unwrap_or(before < tag) {
            return Err(self.damaged());
        }
        Ok(end)
    }

    /// The tag of a record.
    fn tag_of(&self, bytes: &[u8], record: &Head, shape: &Shape) -> Result<u64> {
        let mut tail = record.place.at() + 1 + shape.num - record.code.shared();
        read_leb128(bytes, &mut tail).ok_or_else(|| self.damaged())
    }

    /// Something is no record of a stream in order.
    pub(super) fn damaged(&self) -> Error {
        match &self.source {
            Source::Nothing => Error::argument("parts: expected at least one run file, got none"),
            Source::Set(set) => set.sections.damaged(),
            Source::Pair(pair) => pair.damaged(),
        }
    }
}

/// The smaller of a number of bytes of a file and one in memory.
fn at_most(left: u64, room: usize) -> usize {
    usize_of_u64(left.min(u64_of(room)))
}

//! One of two streams: where its records come from, and a look at the next of them.

use super::ahead::{Ahead, Code, Head, MOST, MOST_BYTES, ONE, Place, WINDOW};
use super::plain::{self, Ends, KEY, Key, PLAIN_COUNT};
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
    /// The key of the record looked at last, and its tag.
    key: Key,
    /// Whether the next record starts a section.
    starts: bool,
    /// The first token, plus one, of the records looked at; zero before the first.
    slot: u64,
    ended: bool,
    /// At least the sum of all counts.
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
            key: [0; KEY],
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
        ends: &Ends,
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
            let number = self.look(bytes, ahead, shape, ends)?;
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
    fn look(&mut self, bytes: &[u8], ahead: &mut Ahead, shape: &Shape, ends: &Ends) -> Result<usize> {
        let (heads, first) = ahead.half(self.index);
        let stop = if self.is_read { self.filled } else { (self.filled + 1).saturating_sub(MAX_RECORD) };
        self.start(bytes, self.used, shape)?;
        // A window that starts before `stop` ends in here.
        let bytes = &bytes[..stop + WINDOW - 1];
        let (mut place, mut found) = (Place::new(first, self.used, shape.num), 0);
        while found < MOST && place.at() < stop {
            let window = bytes[place.at()..].first_chunk().expect("expected room behind the records");
            let Some(len) = self.careful(window, shape, found > 0)? else { break };
            plain::note::<4>(window, &mut self.key);
            let code = Code::new(Shape::word(window, 1), u64_of(shape.num - usize::from(window[0] & !ONE)));
            heads[found] = Head { code, place: place.of(window[0]) };
            place.0 += Place::step(u64_of(len));
            found += 1;
            found += plain::look::<C>(bytes, &mut place, &mut heads[found..MOST], &mut self.key, ends);
        }
        // Plain ones are not looked up for this: no corpus comes near the largest sum.
        self.sum = self.sum.saturating_add(PLAIN_COUNT * u64_of(found));
        let max_sum = if matches!(self.source, Source::Set(_)) { MAX_COUNT } else { u64::MAX };
        if found == 0 || place.at() > self.filled || self.sum >= max_sum {
            return Err(self.damaged());
        }
        heads[found] = Head::end(place);
        self.used = place.at();
        Ok(found)
    }

    /// Notes the first token of the record at `at`, which may be another than that of the one before.
    fn start(&mut self, bytes: &[u8], at: usize, shape: &Shape) -> Result<()> {
        let word = Shape::word(bytes, at).to_le_bytes();
        let sharing = usize::from(word[0] & !ONE);
        if sharing >= shape.token_bytes && !self.starts {
            return Ok(());
        }
        let starts = std::mem::take(&mut self.starts);
        if starts {
            self.key = [0; KEY];
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

    /// Bytes of the record that `window` starts with, whatever its tag and count; `None` if it may have another first token
    /// than those before it, which `goes_on` says that there are.
    #[cold]
    fn careful(&mut self, window: &[u8; WINDOW], shape: &Shape, goes_on: bool) -> Result<Option<usize>> {
        let (num, shared) = (shape.num, usize::from(window[0] & !ONE));
        if goes_on && shared < shape.token_bytes {
            return Ok(None);
        }
        if shared > num {
            return Err(self.damaged());
        }
        let mut end = 1 + num - shared;
        // Of as few bytes as it takes: what is copied is what would be written.
        let mut read = || {
            let start = end;
            read_leb128(window, &mut end).filter(|_| end == start + 1 || window[end - 1] != 0)
        };
        let tag = read();
        let count = if window[0] & ONE == 0 { read().filter(|&count| count > 1) } else { Some(1) };
        let (Some(tag), Some(count)) = (tag, count) else { return Err(self.damaged()) };
        let max_tag = if let Source::Set(set) = &self.source { set.max_tag } else { u64::MAX };
        // A key that is shared as a whole has its tag behind it.
        let rises = if shared < num {
            window[1] > self.key[shared]
        } else {
            let mut behind = num;
            read_leb128(&self.key, &mut behind).is_some_and(|before| before < tag)
        };
        if tag > max_tag || !rises {
            return Err(self.damaged());
        }
        self.sum = self.sum.saturating_add(count);
        Ok(Some(end))
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

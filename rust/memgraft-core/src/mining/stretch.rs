//! A stretch of a file of records, read through a buffer.

use super::codec::{BACK, Decoder, FRONT};
use super::record::{BATCH, Item, MAX_RECORD};
use super::window::MAX_WORDS;
use crate::ids::{u64_of, usize_of_u64};

/// What is read at a time is hashed and decoded while it lies in a processor's own cache.
pub(super) const MAX_READ_BUFFER: usize = 256 << 10;
/// Smallest buffer of a reader.
pub(super) const MIN_READ_BUFFER: usize = 4 << 10;
/// The most that batches take for each run that is merged: its own, and that of a pair.
pub(super) const STREAM_BYTES: usize = 2 * BATCH * (8 * MAX_WORDS + 16);

/// Bytes of a file that are still to be read, and those read and not used.
pub(super) struct Stretch {
    at: u64,
    end: u64,
    /// Room that a decoder may touch, what was read, zeros that it may touch.
    buffer: Vec<u8>,
    used: usize,
    filled: usize,
}

impl Stretch {
    pub(super) fn new(at: u64, end: u64, capacity: usize) -> Self {
        let buffer = vec![0; FRONT + capacity.max(MIN_READ_BUFFER) + BACK];
        Self { at, end, buffer, used: FRONT, filled: FRONT }
    }

    /// Goes on with another stretch, once this one is used up.
    pub(super) fn restart(&mut self, at: u64, end: u64) {
        *self = Self { at, end, buffer: std::mem::take(&mut self.buffer), used: FRONT, filled: FRONT };
    }

    /// Whether all of it is used.
    #[inline]
    pub(super) fn is_used_up(&self) -> bool {
        self.used == self.filled && self.at == self.end
    }

    /// Whether less than a whole record is there while the stretch goes on.
    #[inline]
    pub(super) fn is_short(&self) -> bool {
        self.filled - self.used < MAX_RECORD && self.at < self.end
    }

    /// Reads records of a stretch that is not short into `items`, and shows each to `see`; returns their number, `None` where
    /// something is no record.
    #[inline]
    pub(super) fn records<const W: usize>(
        &mut self,
        decoder: &mut Decoder<W>,
        items: &mut [Item<W>],
        see: impl FnMut(&Item<W>),
    ) -> Option<usize> {
        let stop = if self.at < self.end { (self.filled + 1).saturating_sub(MAX_RECORD) } else { self.filled };
        let (found, used) = decoder.read(&self.buffer, self.used, stop, items, see)?;
        self.used = used;
        (used <= self.filled).then_some(found)
    }

    /// Uses what has been read.
    pub(super) fn skip_all(&mut self) {
        self.used = self.filled;
    }

    /// Reads on with `read`, which gets room and where in the file it starts.
    pub(super) fn refill<E>(&mut self, read: impl FnOnce(&mut [u8], u64) -> Result<(), E>) -> Result<(), E> {
        self.buffer.copy_within(self.used..self.filled, FRONT);
        let kept = FRONT + self.filled - self.used;
        let room = self.buffer.len() - BACK - kept;
        let filled = kept + usize_of_u64((self.end - self.at).min(u64_of(room)));
        read(&mut self.buffer[kept..filled], self.at)?;
        self.buffer[filled..filled + BACK].fill(0);
        self.at += u64_of(filled - kept);
        (self.used, self.filled) = (FRONT, filled);
        Ok(())
    }
}

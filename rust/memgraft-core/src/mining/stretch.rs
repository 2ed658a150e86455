//! A stretch of a file of records, read through a buffer.

#![forbid(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::codec::MAX_RECORD;
use crate::ids::{u64_of, usize_of_u64};

/// Smallest buffer of a reader.
pub(super) const MIN_READ_BUFFER: usize = 4 << 10;

/// Bytes of a file that are still to be read, and those read and not used.
pub(super) struct Stretch {
    pub(super) at: u64,
    pub(super) end: u64,
    buffer: Vec<u8>,
    used: usize,
    capacity: usize,
}

impl Stretch {
    pub(super) fn new(at: u64, end: u64, capacity: usize) -> Self {
        let capacity = capacity.max(MIN_READ_BUFFER);
        Self { at, end, buffer: Vec::with_capacity(capacity), used: 0, capacity }
    }

    /// Goes on with another stretch, once this one is used up.
    pub(super) fn restart(&mut self, at: u64, end: u64) {
        (self.at, self.end, self.used) = (at, end, 0);
        self.buffer.clear();
    }

    /// What has been read and not used; at least a whole record unless the stretch ends before.
    #[inline]
    pub(super) fn rest(&self) -> &[u8] {
        &self.buffer[self.used..]
    }

    #[inline]
    pub(super) fn is_short(&self) -> bool {
        self.buffer.len() - self.used < MAX_RECORD && self.at < self.end
    }

    #[inline]
    pub(super) fn skip(&mut self, bytes: usize) {
        self.used += bytes;
    }

    /// Reads on; returns what is new.
    pub(super) fn refill(&mut self, file: &File) -> std::io::Result<&[u8]> {
        self.buffer.drain(..self.used);
        self.used = 0;
        let kept = self.buffer.len();
        let take = usize_of_u64((self.end - self.at).min(u64_of(self.capacity - kept)));
        self.buffer.resize(kept + take, 0);
        file.read_exact_at(&mut self.buffer[kept..], self.at)?;
        self.at += u64_of(take);
        Ok(&self.buffer[kept..])
    }
}

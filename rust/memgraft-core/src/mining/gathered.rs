//! Bytes of records on their way into a file.

use super::record::{BATCH, ROOM};

/// Bytes gathered before a write, with room behind them that records are written into a word at a time.
pub(super) struct Gathered {
    bytes: Vec<u8>,
    len: usize,
}

impl Gathered {
    /// Nothing yet; takes `capacity` bytes and a batch more before it grows.
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self { bytes: vec![0; capacity + BATCH * ROOM], len: 0 }
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

    /// Forgets the first `len` bytes.
    pub(super) fn drop_front(&mut self, len: usize) {
        self.bytes.copy_within(len..self.len, 0);
        self.len -= len;
    }

    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.bytes.truncate(self.len);
        self.bytes.extend_from_slice(bytes);
        self.len = self.bytes.len();
    }

    /// Room for so many records.
    #[inline]
    pub(super) fn room(&mut self, records: usize) -> &mut [u8] {
        let end = self.len + records * ROOM;
        if self.bytes.len() < end {
            self.bytes.resize(self.bytes.capacity().max(end), 0);
        }
        &mut self.bytes[self.len..end]
    }

    /// The caller has written so many bytes at the start of [`Gathered::room`].
    #[inline]
    pub(super) fn wrote(&mut self, num_bytes: usize) {
        self.len += num_bytes;
    }
}

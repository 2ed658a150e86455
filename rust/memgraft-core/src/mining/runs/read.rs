//! Records of a run file, checked on the way.

#![forbid(unsafe_code)]

use std::fs::File;

use super::RunSet;
use crate::fingerprint::Fingerprint;
use crate::ids::{u64_of, usize_of};
use crate::mining::codec::{Decoder, Item, KeyBytes};
use crate::mining::stretch::Stretch;
use crate::mining::window::{Key, Packing};
use crate::{Error, Result};

/// No count is larger, so that sums do not overflow.
const MAX_COUNT: u64 = 1 << 62;

/// Reads the records between two keys, which are bounds of first tokens.
pub(in crate::mining) struct SetReader<'a, const W: usize> {
    set: &'a RunSet,
    packing: Packing,
    file: File,
    /// The segment that is read, and one past the last to read.
    segment: usize,
    end: usize,
    open: bool,
    stretch: Stretch,
    bytes: KeyBytes,
    decoder: Decoder<W>,
    /// First tokens of the segment: from, to.
    tokens: (u32, u32),
    hasher: blake3::Hasher,
    from: Option<Key<W>>,
    to: Option<Key<W>>,
    /// Key and tag of the record before, of the file.
    last: (Key<W>, u64),
    sum: u64,
    max_tag: u64,
    longs: u64,
}

impl<'a, const W: usize> SetReader<'a, W> {
    /// Opens the records of `from..to` of `set`; tags of long documents get `longs` added.
    pub(in crate::mining) fn open(
        set: &'a RunSet,
        packing: &Packing,
        from: Option<Key<W>>,
        to: Option<Key<W>>,
        longs: u64,
        capacity: usize,
    ) -> Result<Self> {
        let token = |key: &Key<W>| packing.token(key, 0).unwrap_or(0);
        let segments = &set.segments;
        // The segment before the first that starts at or after `from` may hold records from `from` on.
        let segment = from.map_or(0, |key| segments.partition_point(|segment| segment.token <= token(&key)).max(1) - 1);
        let end = to.map_or(segments.len(), |key| segments.partition_point(|segment| segment.token < token(&key)));
        let bytes = set.key_bytes;
        Ok(Self {
            set,
            packing: *packing,
            file: set.reopen()?,
            segment,
            end,
            open: false,
            stretch: Stretch::new(0, 0, capacity),
            bytes,
            decoder: Decoder::new(bytes),
            tokens: (0, 0),
            hasher: blake3::Hasher::new(),
            from,
            to,
            last: ([0; W], 0),
            sum: 0,
            max_tag: u64_of(packing.max_order() + set.facts().longs.len()),
            longs,
        })
    }

    /// Puts the next record into `item`; false at the end.
    #[inline]
    pub(in crate::mining) fn next(&mut self, item: &mut Item<W>) -> Result<bool> {
        loop {
            if self.stretch.is_short() {
                self.refill()?;
            }
            if self.stretch.rest().is_empty() {
                if !self.open_next()? {
                    return Ok(false);
                }
                continue;
            }
            let (found, len) = self.decoder.read(self.stretch.rest()).ok_or_else(|| self.damaged())?;
            self.stretch.skip(len);
            let (key, tag, count) = found;
            self.sum = self.sum.saturating_add(count);
            // No record lies at the start that `last` has: its key would be empty, and belong to no first token.
            let rises = self.last < (key, tag);
            if !rises || !self.belongs(&key) || tag > self.max_tag || count == 0 || self.sum >= MAX_COUNT {
                return Err(self.damaged());
            }
            self.last = (key, tag);
            if self.from.is_some_and(|from| key < from) {
                continue;
            }
            if self.to.is_some_and(|to| key >= to) {
                // The rest of the segment is another reader's; its checksum covers it all.
                self.drain()?;
                self.segment = self.end;
                return Ok(false);
            }
            let tag = if tag > u64_of(self.packing.max_order()) { tag + self.longs } else { tag };
            *item = (key, tag, count);
            return Ok(true);
        }
    }

    /// Whether `key` may lie in the segment that is read.
    #[inline]
    fn belongs(&self, key: &Key<W>) -> bool {
        let (from, to) = self.tokens;
        self.packing.first_token(key).is_some_and(|token| token >= from && token < to) && self.packing.is_whole(key)
    }

    /// Ends the segment that is read and starts the next; false where there is none.
    #[cold]
    fn open_next(&mut self) -> Result<bool> {
        if self.open {
            self.close()?;
        }
        if self.segment >= self.end {
            return Ok(false);
        }
        let segments = &self.set.segments;
        let segment = &segments[self.segment];
        let to = segments.get(self.segment + 1).map_or(self.set.facts().tokens.1, |next| next.token);
        self.tokens = (segment.token, to);
        self.stretch.restart(segment.offset, segment.offset + segment.length);
        self.decoder = Decoder::new(self.bytes);
        self.hasher.reset();
        self.open = true;
        Ok(true)
    }

    #[cold]
    fn refill(&mut self) -> Result<()> {
        let fail = |e| Error::io(self.set.path(), "cannot read the run file", e);
        let fresh = self.stretch.refill(&self.file).map_err(fail)?;
        self.hasher.update(fresh);
        Ok(())
    }

    /// Ends a segment: what was read is what was written.
    fn close(&mut self) -> Result<()> {
        if Fingerprint(*self.hasher.finalize().as_bytes()) != self.set.segments[self.segment].checksum {
            return Err(self.damaged());
        }
        self.segment += 1;
        self.open = false;
        Ok(())
    }

    fn drain(&mut self) -> Result<()> {
        while self.stretch.at < self.stretch.end {
            self.stretch.skip(self.stretch.rest().len());
            self.refill()?;
        }
        self.stretch.skip(self.stretch.rest().len());
        self.close()
    }

    fn damaged(&self) -> Error {
        let place = self.set.segments.get(self.segment).map_or(0, |segment| segment.offset);
        let token = self.set.segments.get(self.segment).map_or(0, |segment| usize_of(segment.token));
        Error::format(
            self.set.path(),
            format!(
                "the records from byte {place} on (first token {token}) are damaged; copy it again or mine the part again"
            ),
        )
    }
}

impl RunSet {
    /// Checks every byte: checksums, the order of records, their number.
    ///
    /// # Errors
    /// [`Error::Format`] names what is wrong, [`Error::Io`] where the file cannot be read.
    pub fn verify(&self) -> Result<()> {
        let packing = self.packing();
        match packing.words() {
            1 => self.verify_records::<1>(&packing)?,
            2 => self.verify_records::<2>(&packing)?,
            3 => self.verify_records::<3>(&packing)?,
            4 => self.verify_records::<4>(&packing)?,
            5 => self.verify_records::<5>(&packing)?,
            _ => self.verify_records::<6>(&packing)?,
        }
        self.facts().shards.iter().try_for_each(|shard| self.read_lengths(shard, |_| Ok(())))
    }

    fn verify_records<const W: usize>(&self, packing: &Packing) -> Result<()> {
        let mut reader = SetReader::<W>::open(self, packing, None, None, 0, 1 << 20)?;
        let mut found = 0;
        let mut item = ([0; W], 0, 0);
        while reader.next(&mut item)? {
            found += 1;
        }
        if found == self.facts().num_records {
            return Ok(());
        }
        let want = self.facts().num_records;
        Err(Error::format(self.path(), format!("expected {want} records, found {found}; mine the part again")))
    }
}

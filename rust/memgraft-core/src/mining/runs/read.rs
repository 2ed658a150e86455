//! Records of a run file, checked on the way.

use super::{RunSet, Sections};
use crate::ids::u64_of;
use crate::mining::codec::Decoder;
use crate::mining::record::{BATCH, Item, before};
use crate::mining::stretch::Stretch;
use crate::mining::window::{Common, Key, Packing, with_words};
use crate::{Error, Result};

/// No count is larger, so that sums do not overflow.
pub(in crate::mining) const MAX_COUNT: u64 = 1 << 62;
/// Counts below this can be summed over a batch and looked at afterwards.
const SMALL_COUNT: u64 = 1 << 55;
const _: () = assert!(SMALL_COUNT <= MAX_COUNT >> BATCH.ilog2() && BATCH.is_power_of_two());

/// What is noted of a batch of records while they are read.
struct Seen<const W: usize> {
    last: Item<W>,
    rise: bool,
    keys: Common<W>,
    /// Bits of counts less one: all of them where a count is zero.
    counts: u64,
    sum: u64,
    max_tag: u64,
}

impl<const W: usize> Seen<W> {
    fn after(last: Item<W>) -> Self {
        Self { last, rise: true, keys: Common::new(), counts: 0, sum: 0, max_tag: 0 }
    }

    #[inline]
    fn take(&mut self, packing: &Packing, item: &Item<W>) {
        self.rise &= before(&self.last, item);
        packing.add(&mut self.keys, &item.0);
        self.counts |= item.2.wrapping_sub(1);
        self.sum = self.sum.wrapping_add(item.2);
        self.max_tag = self.max_tag.max(item.1);
        self.last = *item;
    }
}

/// Reads the records between two keys, which are bounds of first tokens.
pub(in crate::mining) struct SetReader<'a, const W: usize> {
    sections: Sections<'a>,
    packing: Packing,
    stretch: Stretch,
    decoder: Decoder<W>,
    from: Option<Key<W>>,
    to: Option<Key<W>>,
    /// The record before, of the file.
    last: Item<W>,
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
        let token = |key: Option<Key<W>>| key.map(|key| packing.first_token(&key).unwrap_or(0));
        let sections = Sections::open(set, token(from), token(to))?;
        Ok(Self {
            max_tag: sections.max_tag(),
            sections,
            packing: *packing,
            stretch: Stretch::new(0, 0, capacity),
            decoder: Decoder::new(set.key_bytes),
            from,
            to,
            last: ([0; W], 0, 0),
            sum: 0,
            longs,
        })
    }

    /// Puts the next records into `items`; returns their number, zero at the end.
    #[inline]
    pub(in crate::mining) fn fill(&mut self, items: &mut [Item<W>]) -> Result<usize> {
        loop {
            if self.stretch.is_short() {
                self.refill()?;
            }
            if self.stretch.is_used_up() {
                if !self.open_next()? {
                    return Ok(0);
                }
                continue;
            }
            let (mut seen, packing) = (Seen::after(self.last), self.packing);
            let found = self.stretch.records(&mut self.decoder, items, |item| seen.take(&packing, item));
            let found = found.ok_or_else(|| self.sections.damaged())?;
            self.check(&seen, &items[..found])?;
            let below = |bound: Option<Key<W>>, none: usize| {
                bound.map_or(none, |bound| items[..found].partition_point(|item| item.0 < bound))
            };
            let starts = items.first().is_some_and(|item| self.from.is_none_or(|from| from <= item.0));
            let (start, end) = (if starts { 0 } else { below(self.from, 0) }, below(self.to, found));
            if end < found {
                // The rest of the section is another reader's; its checksum covers it all.
                self.drain()?;
            }
            if start < end {
                if start > 0 {
                    items.copy_within(start..end, 0);
                }
                if self.longs > 0 {
                    self.number(&mut items[..end - start]);
                }
                return Ok(end - start);
            }
        }
    }

    /// Checks records that follow one another, of which `seen` was noted.
    #[inline]
    fn check(&mut self, seen: &Seen<W>, items: &[Item<W>]) -> Result<()> {
        // No record lies at the start that `last` has: its key would be empty, and belong to no first token.
        let mut good = seen.rise && seen.max_tag <= self.max_tag;
        good &= self.packing.all_longest(&seen.keys) || items.iter().all(|item| self.packing.is_whole(&item.0));
        let sum = if seen.counts < SMALL_COUNT {
            self.sum + seen.sum
        } else {
            good &= items.iter().all(|item| item.2 > 0);
            items.iter().fold(self.sum, |sum, item| sum.saturating_add(item.2))
        };
        let (from, to) = self.sections.tokens();
        let belongs =
            |item: &Item<W>| self.packing.first_token(&item.0).is_some_and(|token| token >= from && token < to);
        // Keys rise: what lies between the first and the last has first tokens between theirs.
        if !good || sum >= MAX_COUNT || !items.first().is_none_or(belongs) || !belongs(&seen.last) {
            return Err(self.sections.damaged());
        }
        (self.last, self.sum) = (seen.last, sum);
        Ok(())
    }

    /// Gives tags of long documents their numbers among those of all files.
    fn number(&self, items: &mut [Item<W>]) {
        let max_order = u64_of(self.packing.max_order());
        items.iter_mut().filter(|item| item.1 > max_order).for_each(|item| item.1 += self.longs);
    }

    /// Ends the section that is read and starts the next; false where there is none.
    #[cold]
    fn open_next(&mut self) -> Result<bool> {
        let Some((at, end)) = self.sections.next()? else { return Ok(false) };
        self.stretch.restart(at, end);
        self.decoder.restart();
        Ok(true)
    }

    #[cold]
    fn refill(&mut self) -> Result<()> {
        self.stretch.refill(|bytes, at| self.sections.read(bytes, at))
    }

    /// Reads the section to its end, and no further one.
    fn drain(&mut self) -> Result<()> {
        self.stretch.skip_all();
        while !self.stretch.is_used_up() {
            self.refill()?;
            self.stretch.skip_all();
        }
        self.sections.stop()
    }
}

impl RunSet {
    /// Checks every byte: checksums, the order of records, their number.
    ///
    /// # Errors
    /// [`Error::Format`] names what is wrong, [`Error::Io`] where the file cannot be read.
    pub fn verify(&self) -> Result<()> {
        let packing = self.packing();
        with_words!(packing, W => self.verify_records::<W>(&packing)?);
        self.facts().shards.iter().try_for_each(|shard| self.read_lengths(shard, |_| Ok(())))
    }

    fn verify_records<const W: usize>(&self, packing: &Packing) -> Result<()> {
        let mut reader = SetReader::<W>::open(self, packing, None, None, 0, 1 << 20)?;
        let mut found = 0;
        let mut items = [([0; W], 0, 0); BATCH];
        loop {
            match reader.fill(&mut items)? {
                0 => break,
                number => found += u64_of(number),
            }
        }
        if found == self.facts().num_records {
            return Ok(());
        }
        let want = self.facts().num_records;
        Err(Error::format(self.path(), format!("expected {want} records, found {found}; mine the part again")))
    }
}

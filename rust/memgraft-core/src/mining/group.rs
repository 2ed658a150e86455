//! From the sorted stream of n-grams to counts and document frequencies of every order.

use super::select::Picker;
use super::window::{Key, Packing};
use crate::Result;
use crate::ids::{MAX_ORDER, u64_of, usize_of_u64};

const LEVELS: usize = MAX_ORDER + 1;

/// Takes the sorted stream and emits each n-gram of each order when its group ends.
pub(super) struct Groups<'a, 'b, 'f, const W: usize> {
    packing: &'a Packing,
    picker: &'a mut Picker<'b, 'f, W>,
    key: Key<W>,
    len: usize,
    counts: [u64; LEVELS],
    documents: [u64; LEVELS],
    /// `repeats[n]`: occurrences in the open group of order `n + 1` whose document has already shown the group of order `n`.
    repeats: [u64; LEVELS],
    /// Group numbers per order, and per long document the group in which it was last seen.
    serials: [u64; LEVELS],
    serial: u64,
    shown: Vec<u64>,
    /// Occurrences counted per order, whatever their count.
    pub(super) positions: [u64; LEVELS],
    /// Distinct n-grams per order.
    pub(super) distinct: [u64; LEVELS],
}

impl<'a, 'b, 'f, const W: usize> Groups<'a, 'b, 'f, W> {
    pub(super) fn new(packing: &'a Packing, num_long: usize, picker: &'a mut Picker<'b, 'f, W>) -> Self {
        Self {
            packing,
            picker,
            key: [0; W],
            len: 0,
            counts: [0; LEVELS],
            documents: [0; LEVELS],
            repeats: [0; LEVELS],
            serials: [0; LEVELS],
            serial: 0,
            shown: vec![0; num_long * packing.max_order()],
            positions: [0; LEVELS],
            distinct: [0; LEVELS],
        }
    }

    /// Takes `count` occurrences of `key`; keys never fall.
    #[inline]
    pub(super) fn push(&mut self, key: &Key<W>, tag: u64, count: u64) -> Result<()> {
        if *key != self.key {
            debug_assert!(*key > self.key, "the stream is sorted");
            let shared = self.packing.shared(&self.key, key).min(self.len);
            self.close(shared)?;
            self.key = *key;
            self.len = self.packing.len(key);
            if !self.shown.is_empty() {
                self.serial += 1;
                self.serials[shared + 1..=self.len].fill(self.serial);
            }
        }
        self.counts[self.len] += count;
        let max_order = self.packing.max_order();
        let tag = usize_of_u64(tag);
        if tag <= max_order {
            self.add_documents(tag, count);
        } else {
            let tag = self.show_long(tag - max_order - 1);
            self.add_documents(tag, 1);
        }
        Ok(())
    }

    fn add_documents(&mut self, tag: usize, count: u64) {
        if tag < self.len {
            self.documents[self.len] += count;
            self.repeats[tag] += count;
        }
    }

    /// The longest order whose open group the long document has shown; it has shown all of them afterwards.
    fn show_long(&mut self, long: usize) -> usize {
        let max_order = self.packing.max_order();
        let mine = &mut self.shown[long * max_order..][..self.len];
        let groups = &self.serials[1..=self.len];
        let tag = mine.iter().zip(groups).take_while(|(shown, group)| shown == group).count();
        mine[tag..].copy_from_slice(&groups[tag..]);
        tag
    }

    /// Ends the groups of all orders above `shared`.
    fn close(&mut self, shared: usize) -> Result<()> {
        for order in (shared + 1..=self.len).rev() {
            let (count, documents) = (self.counts[order], self.documents[order]);
            self.positions[order] += count;
            self.distinct[order] += 1;
            self.picker.offer(order, count, documents, || self.packing.prefix(&self.key, order))?;
            self.counts[order - 1] += count;
            self.documents[order - 1] += documents - self.repeats[order - 1];
            self.counts[order] = 0;
            self.documents[order] = 0;
            self.repeats[order - 1] = 0;
        }
        // Level 0 is the sum of all groups of order 1 and is of no use.
        self.counts[0] = 0;
        self.documents[0] = 0;
        Ok(())
    }

    /// Ends the stream.
    pub(super) fn finish(mut self) -> Result<([u64; LEVELS], [u64; LEVELS])> {
        self.close(0)?;
        debug_assert!(self.counts.iter().all(|&count| count == 0), "{}", u64_of(self.len));
        Ok((self.positions, self.distinct))
    }
}

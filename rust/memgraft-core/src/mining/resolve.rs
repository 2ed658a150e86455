//! Tags of long documents, once all their records come in order: what a run file holds has no such tags left.

use super::record::Item;
use super::window::{Key, Packing};
use crate::ids::{MAX_ORDER, u64_of, usize_of_u64};

/// Turns the tags of long documents into those that their occurrences have in a block of their own, and joins records of
/// equal key and tag.
pub(super) struct Resolver<const W: usize> {
    packing: Packing,
    key: Key<W>,
    len: usize,
    by_tag: [u64; MAX_ORDER + 1],
    serials: [u64; MAX_ORDER + 1],
    serial: u64,
    shown: Vec<u64>,
}

impl<const W: usize> Resolver<W> {
    pub(super) fn new(packing: &Packing, num_long: usize) -> Self {
        Self {
            packing: *packing,
            key: [0; W],
            len: 0,
            by_tag: [0; MAX_ORDER + 1],
            serials: [0; MAX_ORDER + 1],
            serial: 0,
            shown: vec![0; num_long * packing.max_order()],
        }
    }

    /// Takes the next record in order; `emit` gets those of the key before it.
    #[inline]
    pub(super) fn push(&mut self, item: &Item<W>, emit: impl FnMut(Item<W>)) {
        let (key, tag, count) = *item;
        if key != self.key {
            self.flush(emit);
            let shared = self.packing.shared(&self.key, &key).min(self.len);
            self.key = key;
            self.len = self.packing.len(&key);
            self.serial += 1;
            self.serials[shared.min(self.len) + 1..=self.len].fill(self.serial);
        }
        let max_order = self.packing.max_order();
        let tag = usize_of_u64(tag);
        if tag <= max_order {
            self.by_tag[tag] += count;
            return;
        }
        // One of the document's occurrences may count; the others have all been shown.
        let first = (tag - max_order - 1) * max_order;
        let mine = &mut self.shown[first..first + self.len];
        let groups = &self.serials[1..=self.len];
        let tag = mine.iter().zip(groups).take_while(|(shown, group)| shown == group).count();
        mine[tag..].copy_from_slice(&groups[tag..]);
        self.by_tag[tag] += 1;
        self.by_tag[self.len] += count - 1;
    }

    /// Emits the records of the last key.
    pub(super) fn flush(&mut self, mut emit: impl FnMut(Item<W>)) {
        for (tag, count) in self.by_tag.iter_mut().enumerate().filter(|(_, count)| **count > 0) {
            emit((self.key, u64_of(tag), std::mem::take(count)));
        }
    }
}

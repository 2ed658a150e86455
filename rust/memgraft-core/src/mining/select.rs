//! The keys that are kept: of each order the most frequent, ties by key.

#![forbid(unsafe_code)]

use std::cmp::Ordering;
use std::sync::{Mutex, PoisonError};

use super::window::Key;
use crate::ids::{MAX_ORDER, u64_of};
use crate::{Error, Result};

/// A key that may be kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate<const W: usize> {
    pub(super) key: Key<W>,
    pub(super) count: u64,
    pub(super) documents: u64,
}

/// More frequent first, then the smaller key.
fn rank<const W: usize>(a: &Candidate<W>, b: &Candidate<W>) -> Ordering {
    b.count.cmp(&a.count).then(a.key.cmp(&b.key))
}

/// How many keys of each order are wanted: `None` = order not wanted, `u64::MAX` = all.
pub(super) type Budgets = [Option<u64>; MAX_ORDER + 1];

/// Candidates beyond the budget, as a part of it, that are gathered before a cut.
const SLACK: u64 = 8;
/// Candidates that a thread gathers before it hands them over.
const BATCH: usize = 4096;

/// Candidates of all threads per order, cut back to the budget whenever they grow past it.
pub(super) struct Selection<const W: usize> {
    budgets: Budgets,
    orders: Vec<Vec<Candidate<W>>>,
    floors: Floors<W>,
    max_candidates: u64,
    held: u64,
    memory: u64,
}

/// The worst candidate that the last cut of an order has kept: nothing worse can be selected any more.
type Floors<const W: usize> = [Option<Candidate<W>>; MAX_ORDER + 1];

/// One thread's way into a selection.
pub(super) struct Picker<'a, const W: usize> {
    selection: &'a Mutex<Selection<W>>,
    budgets: Budgets,
    min_count: u64,
    floors: Floors<W>,
    batch: Vec<(usize, Candidate<W>)>,
    /// Keys at or above `min_count`, kept or not.
    pub(super) frequent: [u64; MAX_ORDER + 1],
}

impl<const W: usize> Selection<W> {
    /// A selection that may take `bytes` of the `memory` the user gave.
    pub(super) fn new(budgets: Budgets, bytes: u64, memory: u64) -> Self {
        Self {
            budgets,
            orders: vec![Vec::new(); MAX_ORDER + 1],
            floors: [None; MAX_ORDER + 1],
            max_candidates: bytes / u64_of(size_of::<Candidate<W>>()),
            held: 0,
            memory,
        }
    }

    fn add(&mut self, order: usize, candidate: Candidate<W>) -> Result<()> {
        let Some(budget) = self.budgets[order] else { return Ok(()) };
        if self.floors[order].is_some_and(|floor| rank(&floor, &candidate).is_lt()) {
            return Ok(());
        }
        self.orders[order].push(candidate);
        self.held += 1;
        if u64_of(self.orders[order].len()) > budget.saturating_add((budget / SLACK).max(16)) {
            self.cut(order);
        }
        if self.held > self.max_candidates { Err(self.too_many()) } else { Ok(()) }
    }

    fn cut(&mut self, order: usize) {
        let Some(budget) = self.budgets[order].and_then(|budget| usize::try_from(budget).ok()) else { return };
        let kept = &mut self.orders[order];
        let before = kept.len();
        if budget == 0 {
            kept.clear();
        } else if before > budget {
            kept.select_nth_unstable_by(budget - 1, rank);
            kept.truncate(budget);
            self.floors[order] = kept.last().copied();
        }
        self.held -= u64_of(before - self.orders[order].len());
    }

    fn too_many(&self) -> Error {
        Error::Limit {
            message: format!(
                "memory: expected the selected keys to fit half of {} bytes, found {} of {} bytes each and more to come; \
                 give more memory, a higher min_count, or a smaller budget",
                self.memory,
                self.held,
                size_of::<Candidate<W>>()
            ),
        }
    }

    /// The keys of `order`, the most frequent first.
    pub(super) fn ranked(&mut self, order: usize) -> Vec<Candidate<W>> {
        self.cut(order);
        let mut kept = std::mem::take(&mut self.orders[order]);
        kept.sort_unstable_by(rank);
        kept
    }
}

impl<'a, const W: usize> Picker<'a, W> {
    /// A picker of keys that occur `min_count` times.
    pub(super) fn new(selection: &'a Mutex<Selection<W>>, budgets: Budgets, min_count: u64) -> Self {
        Self {
            selection,
            budgets,
            min_count,
            floors: [None; MAX_ORDER + 1],
            batch: Vec::with_capacity(BATCH),
            frequent: [0; MAX_ORDER + 1],
        }
    }

    /// Considers an n-gram; its key is made only if it is a candidate.
    #[inline]
    pub(super) fn offer(&mut self, order: usize, count: u64, documents: u64, key: impl Fn() -> Key<W>) -> Result<()> {
        if count < self.min_count {
            return Ok(());
        }
        self.frequent[order] += 1;
        if self.budgets[order].is_none() || self.floors[order].is_some_and(|floor| count < floor.count) {
            return Ok(());
        }
        self.batch.push((order, Candidate { key: key(), count, documents }));
        if self.batch.len() < BATCH { Ok(()) } else { self.hand_over() }
    }

    /// Moves the batch into the selection, and learns what is no longer worth offering.
    pub(super) fn hand_over(&mut self) -> Result<()> {
        // A thread that panicked while it held the lock ends the whole mining with its panic.
        let mut selection = self.selection.lock().unwrap_or_else(PoisonError::into_inner);
        for (order, candidate) in self.batch.drain(..) {
            selection.add(order, candidate)?;
        }
        self.floors = selection.floors;
        Ok(())
    }
}

//! The keys that are kept: of each order the most frequent, ties by key.

#![forbid(unsafe_code)]

use std::cmp::Ordering;

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

/// Candidates per order, cut back to the budget whenever they grow past it.
pub(super) struct Selection<const W: usize> {
    budgets: Budgets,
    min_count: u64,
    orders: Vec<Vec<Candidate<W>>>,
    /// The worst candidate kept by the last cut.
    floors: Vec<Option<Candidate<W>>>,
    max_candidates: u64,
    held: u64,
    memory: u64,
    /// Keys at or above `min_count`, kept or not.
    pub(super) frequent: [u64; MAX_ORDER + 1],
}

/// Candidates beyond the budget that are gathered before a cut.
const SLACK: u64 = 1 << 16;

impl<const W: usize> Selection<W> {
    /// A selection that may take `bytes` of the `memory` the user gave.
    pub(super) fn new(budgets: Budgets, min_count: u64, bytes: u64, memory: u64) -> Self {
        Self {
            budgets,
            min_count,
            orders: vec![Vec::new(); MAX_ORDER + 1],
            floors: vec![None; MAX_ORDER + 1],
            max_candidates: bytes / u64_of(size_of::<Candidate<W>>()),
            held: 0,
            memory,
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
        let Some(budget) = self.budgets[order] else { return Ok(()) };
        if self.floors[order].is_some_and(|floor| count < floor.count) {
            return Ok(());
        }
        let candidate = Candidate { key: key(), count, documents };
        if self.floors[order].is_some_and(|floor| rank(&floor, &candidate).is_lt()) {
            return Ok(());
        }
        self.orders[order].push(candidate);
        self.held += 1;
        let slack = (budget / 2).clamp(16, SLACK);
        if u64_of(self.orders[order].len()) > budget.saturating_add(slack) {
            self.cut(order);
        }
        if self.held > self.max_candidates {
            return Err(self.too_many());
        }
        Ok(())
    }

    fn cut(&mut self, order: usize) {
        let Some(budget) = self.budgets[order].and_then(|budget| usize::try_from(budget).ok()) else { return };
        let kept = &mut self.orders[order];
        if budget == 0 {
            kept.clear();
        } else if kept.len() > budget {
            kept.select_nth_unstable_by(budget - 1, rank);
            kept.truncate(budget);
            self.floors[order] = kept.last().copied();
        }
        self.held = self.orders.iter().map(|kept| u64_of(kept.len())).sum();
    }

    fn too_many(&self) -> Error {
        Error::Limit {
            message: format!(
                "memory: expected the selected keys to fit a quarter of {} bytes, found {} of {} bytes each and more to come; \
                 give more memory, a higher min_count, or a smaller budget",
                self.memory,
                self.held,
                size_of::<Candidate<W>>()
            ),
        }
    }

    /// Adds another thread's candidates.
    pub(super) fn absorb(&mut self, other: Self) {
        for (order, kept) in other.orders.into_iter().enumerate() {
            self.orders[order].extend(kept);
            self.cut(order);
            self.frequent[order] += other.frequent[order];
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

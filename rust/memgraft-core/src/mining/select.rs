//! The keys that are kept: of each order, or of all together, the first by rank; ties by key.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use super::choice::{Batch, Choice, Excluded, Filter, Rank};
use super::window::{Key, Packing};
use crate::ids::{MAX_ORDER, u64_of};
use crate::{Error, Result};

/// A key that may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate<const W: usize> {
    pub(super) key: Key<W>,
    pub(super) count: u64,
    pub(super) documents: u64,
}

/// The better first, then the smaller key.
fn rank<const W: usize>(by: Rank, a: &Candidate<W>, b: &Candidate<W>) -> Ordering {
    let documents = match by {
        Rank::Count => Ordering::Equal,
        Rank::Documents => b.documents.cmp(&a.documents),
    };
    documents.then(b.count.cmp(&a.count)).then(a.key.cmp(&b.key))
}

/// Candidates beyond the budget, as a part of it, that are gathered before a cut.
const SLACK: u64 = 8;
/// Candidates that a thread gathers before it hands them over.
const BATCH: usize = 4096;

/// What a selection is asked for, ready for use.
pub(super) struct Wanted<'a, const W: usize> {
    packing: Packing,
    /// Pool of each order that is wanted: 0 where all share one budget, else the order.
    pools: [Option<usize>; MAX_ORDER + 1],
    budgets: [u64; MAX_ORDER + 1],
    by: Rank,
    min_count: u64,
    min_documents: u64,
    excluded: Excluded<W>,
    required: Vec<Key<W>>,
    filter: Option<&'a Filter<'a>>,
}

impl<'a, const W: usize> Wanted<'a, W> {
    pub(super) fn new(choice: &Choice<'a>, packing: &Packing, excluded: Excluded<W>) -> Result<Self> {
        let mut required: Vec<Key<W>> = choice.required.iter().map(|key| packing.pack(key)).collect();
        required.sort_unstable();
        required.dedup();
        if let Some(key) = required.iter().find(|key| excluded.holds(packing, packing.len(key), key)) {
            let shown: Vec<_> = packing.tokens(key).collect();
            return Err(Error::argument(format!(
                "required: key {shown:?} occurs in the excluded text; leave it out of one of them"
            )));
        }
        let (mut pools, mut budgets) = ([None; MAX_ORDER + 1], [0; MAX_ORDER + 1]);
        for (&order, &budget) in &choice.budgets {
            let pool = if choice.total.is_some() { 0 } else { order };
            pools[order] = Some(pool);
            budgets[pool] = choice.total.or(budget).unwrap_or(u64::MAX);
        }
        for key in &required {
            if let Some(pool) = pools[packing.len(key)] {
                budgets[pool] = budgets[pool].saturating_sub(1);
            }
        }
        Ok(Self {
            packing: *packing,
            pools,
            budgets,
            by: choice.rank,
            min_count: choice.min_count,
            min_documents: choice.min_documents,
            excluded,
            required,
            filter: choice.filter,
        })
    }
}

/// Candidates of all threads per pool, cut back to the budget whenever they grow past it.
pub(super) struct Selection<const W: usize> {
    by: Rank,
    budgets: [u64; MAX_ORDER + 1],
    pools: Vec<Vec<Candidate<W>>>,
    required: Vec<Candidate<W>>,
    floors: Floors<W>,
    max_candidates: u64,
    held: u64,
    memory: u64,
}

/// The worst candidate that the last cut of a pool has kept: nothing worse can be selected any more.
type Floors<const W: usize> = [Option<Candidate<W>>; MAX_ORDER + 1];

/// One thread's way into a selection.
pub(super) struct Picker<'a, 'f, const W: usize> {
    selection: &'a Mutex<Selection<W>>,
    wanted: &'a Wanted<'f, W>,
    floors: Floors<W>,
    /// By order: no n-gram of a smaller count is looked at.
    least: [u64; MAX_ORDER + 1],
    batch: Vec<(usize, Candidate<W>)>,
    required: Vec<Candidate<W>>,
    /// N-grams at or above `min_count` and `min_documents`, kept or not.
    pub(super) frequent: [u64; MAX_ORDER + 1],
    /// Of these, those in the excluded text.
    pub(super) excluded: [u64; MAX_ORDER + 1],
}

impl<const W: usize> Selection<W> {
    /// A selection that may take `bytes` of the `memory` the user gave.
    pub(super) fn new(wanted: &Wanted<'_, W>, bytes: u64, memory: u64) -> Self {
        let bytes = bytes.saturating_sub(wanted.excluded.bytes());
        Self {
            by: wanted.by,
            budgets: wanted.budgets,
            pools: vec![Vec::new(); MAX_ORDER + 1],
            required: Vec::new(),
            floors: [None; MAX_ORDER + 1],
            max_candidates: bytes / u64_of(size_of::<Candidate<W>>()),
            held: 0,
            memory,
        }
    }

    fn add(&mut self, pool: usize, candidate: Candidate<W>) -> Result<()> {
        let budget = self.budgets[pool];
        if self.floors[pool].is_some_and(|floor| rank(self.by, &floor, &candidate).is_lt()) {
            return Ok(());
        }
        self.pools[pool].push(candidate);
        self.held += 1;
        if u64_of(self.pools[pool].len()) > budget.saturating_add((budget / SLACK).max(16)) {
            self.cut(pool);
        }
        if self.held > self.max_candidates { Err(self.too_many()) } else { Ok(()) }
    }

    fn cut(&mut self, pool: usize) {
        let Ok(budget) = usize::try_from(self.budgets[pool]) else { return };
        let kept = &mut self.pools[pool];
        let before = kept.len();
        if budget == 0 {
            kept.clear();
        } else if before > budget {
            kept.select_nth_unstable_by(budget - 1, |a, b| rank(self.by, a, b));
            kept.truncate(budget);
            self.floors[pool] = kept.last().copied();
        }
        self.held -= u64_of(before - self.pools[pool].len());
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

    /// All keys in row order: the most frequent first, ties by key.
    pub(super) fn into_rows(mut self, wanted: &Wanted<'_, W>) -> Vec<Candidate<W>> {
        (0..self.pools.len()).for_each(|pool| self.cut(pool));
        let mut rows = std::mem::take(&mut self.required);
        let found: HashSet<Key<W>> = rows.iter().map(|row| row.key).collect();
        let absent = wanted.required.iter().filter(|key| !found.contains(*key));
        rows.extend(absent.map(|&key| Candidate { key, count: 0, documents: 0 }));
        for pool in &mut self.pools {
            rows.append(pool);
        }
        rows.sort_unstable_by(|a, b| rank(Rank::Count, a, b));
        rows
    }
}

impl<'a, 'f, const W: usize> Picker<'a, 'f, W> {
    pub(super) fn new(selection: &'a Mutex<Selection<W>>, wanted: &'a Wanted<'f, W>) -> Self {
        Self {
            selection,
            wanted,
            floors: [None; MAX_ORDER + 1],
            least: std::array::from_fn(|order| if wanted.pools[order].is_some() { 0 } else { u64::MAX }),
            batch: Vec::with_capacity(BATCH),
            required: Vec::new(),
            frequent: [0; MAX_ORDER + 1],
            excluded: [0; MAX_ORDER + 1],
        }
    }

    /// Considers an n-gram; its key is made only if it is a candidate.
    #[inline]
    pub(super) fn offer(&mut self, order: usize, count: u64, documents: u64, key: impl Fn() -> Key<W>) -> Result<()> {
        let frequent = count >= self.wanted.min_count && documents >= self.wanted.min_documents;
        self.frequent[order] += u64::from(frequent);
        if count < self.least[order] || !frequent && self.wanted.required.is_empty() {
            return Ok(());
        }
        self.consider(order, Candidate { key: key(), count, documents }, frequent)
    }

    fn consider(&mut self, order: usize, candidate: Candidate<W>, frequent: bool) -> Result<()> {
        let (wanted, Candidate { key, count, documents }) = (self.wanted, candidate);
        let Some(pool) = wanted.pools[order] else { return Ok(()) };
        if wanted.required.binary_search(&key).is_ok() {
            self.required.push(candidate);
            return Ok(());
        }
        if !frequent {
            return Ok(());
        }
        if wanted.excluded.bytes() > 0 && wanted.excluded.holds(&wanted.packing, order, &key) {
            self.excluded[order] += 1;
            return Ok(());
        }
        let worse = |floor: Candidate<W>| match wanted.by {
            Rank::Count => count < floor.count,
            Rank::Documents => documents < floor.documents,
        };
        if self.floors[pool].is_some_and(worse) {
            return Ok(());
        }
        self.batch.push((pool, candidate));
        if self.batch.len() < BATCH { Ok(()) } else { self.hand_over() }
    }

    /// Moves the batch into the selection, and learns what is no longer worth offering.
    pub(super) fn hand_over(&mut self) -> Result<()> {
        if let Some(filter) = self.wanted.filter.filter(|_| !self.batch.is_empty()) {
            self.refuse(filter)?;
        }
        // A thread that panicked while it held the lock ends the whole mining with its panic.
        let mut selection = self.selection.lock().unwrap_or_else(PoisonError::into_inner);
        for (pool, candidate) in self.batch.drain(..) {
            selection.add(pool, candidate)?;
        }
        selection.required.append(&mut self.required);
        self.floors = selection.floors;
        drop(selection);
        self.raise_least();
        Ok(())
    }

    /// Counts below the floor of a pool need no look, unless what is required or excluded must be found among them.
    fn raise_least(&mut self) {
        let wanted = self.wanted;
        if wanted.by == Rank::Count && wanted.required.is_empty() && wanted.excluded.bytes() == 0 {
            for (least, pool) in self.least.iter_mut().zip(&wanted.pools) {
                *least = pool.map_or(u64::MAX, |pool| self.floors[pool].map_or(0, |floor| floor.count));
            }
        }
    }

    fn refuse(&mut self, filter: &Filter<'_>) -> Result<()> {
        let mut batch = Batch { offsets: vec![0], ..Batch::default() };
        for (_, candidate) in &self.batch {
            batch.tokens.extend(self.wanted.packing.tokens(&candidate.key));
            batch.offsets.push(u64_of(batch.tokens.len()));
            batch.counts.push(candidate.count);
            batch.documents.push(candidate.documents);
        }
        let kept = filter(&batch)?;
        if kept.len() != self.batch.len() {
            return Err(Error::argument(format!(
                "keep: expected {} answers, one a candidate, got {}",
                self.batch.len(),
                kept.len()
            )));
        }
        let mut kept = kept.into_iter();
        self.batch.retain(|_| kept.next() == Some(true));
        Ok(())
    }
}

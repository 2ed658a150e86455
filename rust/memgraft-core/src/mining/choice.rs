//! Which n-grams become keys.

use std::collections::BTreeMap;

use super::window::{Key, Packing};
use crate::ids::{MAX_ORDER, u64_of};
use crate::{Error, Result};

/// What decides between two keys that both could be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rank {
    /// Occurrences.
    #[default]
    Count,
    /// Documents, then occurrences.
    Documents,
}

/// Candidates as a filter sees them.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Tokens of all candidates, one after the other.
    pub tokens: Vec<u32>,
    /// Start of each candidate in `tokens`, and the end of the last.
    pub offsets: Vec<u64>,
    /// Occurrences of each.
    pub counts: Vec<u64>,
    /// Documents with each.
    pub documents: Vec<u64>,
}

/// Says for each candidate of a batch whether it may be kept; called from several threads.
pub type Filter<'a> = dyn Fn(&Batch) -> Result<Vec<bool>> + Sync + 'a;

/// The choice of keys.
#[derive(Clone)]
pub struct Choice<'a> {
    /// Orders wanted, each with the number of keys to keep; `None` keeps all that are frequent enough.
    pub budgets: BTreeMap<usize, Option<u64>>,
    /// Keys to keep of all orders together, in place of the budgets by order.
    pub total: Option<u64>,
    /// Which keys come first.
    pub rank: Rank,
    /// Fewest occurrences of a key.
    pub min_count: u64,
    /// Fewest documents of a key.
    pub min_documents: u64,
    /// Keys that are kept whatever their count; they are part of the budget.
    pub required: Vec<Vec<u32>>,
    /// Refuses candidates.
    pub filter: Option<&'a Filter<'a>>,
}

impl Default for Choice<'_> {
    fn default() -> Self {
        Self {
            budgets: BTreeMap::new(),
            total: None,
            rank: Rank::Count,
            min_count: 1,
            min_documents: 0,
            required: Vec::new(),
            filter: None,
        }
    }
}

impl Choice<'_> {
    /// The longest order wanted.
    #[must_use]
    pub fn max_order(&self) -> usize {
        self.budgets.keys().max().copied().unwrap_or(1)
    }

    pub(super) fn check(&self, vocab_size: u32, reserved: &[u32]) -> Result<()> {
        if self.budgets.is_empty() || self.budgets.keys().any(|order| !(1..=MAX_ORDER).contains(order)) {
            let found: Vec<_> = self.budgets.keys().collect();
            return Err(Error::argument(format!("orders: expected some of 1 to {MAX_ORDER}, got {found:?}")));
        }
        if self.min_count == 0 {
            return Err(Error::argument("expected min_count of 1 and more, got 0"));
        }
        for key in &self.required {
            let way = "leave it out, or mine with other orders";
            if !self.budgets.contains_key(&key.len()) {
                return Err(Error::argument(format!(
                    "required: expected keys of the orders mined, got {key:?}; {way}"
                )));
            }
            if let Some(token) = key.iter().find(|&&token| token >= vocab_size || reserved.contains(&token)) {
                let message =
                    format!("required: key {key:?} holds {token}, which is reserved or outside the vocabulary; {way}");
                return Err(Error::Token { message });
            }
        }
        Ok(())
    }
}

/// N-grams that evaluation text holds: no key from some order up is one of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Excluded<const W: usize> {
    /// The longest n-grams of the text, ascending, distinct.
    keys: Vec<Key<W>>,
    from: usize,
}

impl<const W: usize> Excluded<W> {
    pub(super) fn new(mut keys: Vec<Key<W>>, from: usize) -> Self {
        keys.sort_unstable();
        keys.dedup();
        Self { keys, from }
    }

    /// Whether `key`, of `order` tokens, is in the text.
    #[inline]
    pub(super) fn holds(&self, packing: &Packing, order: usize, key: &Key<W>) -> bool {
        if self.keys.is_empty() || order < self.from {
            return false;
        }
        let at = self.keys.partition_point(|other| other < key);
        self.keys.get(at).is_some_and(|other| packing.shared(other, key) >= order)
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> u64 {
        u64_of(self.keys.len() * W * 8)
    }
}

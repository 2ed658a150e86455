//! What is asked of mining, and what comes back.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::select::Budgets;
use crate::ids::{MAX_ORDER, check_vocab_size, u64_of};
use crate::{Error, Result};

/// The least memory that mining works in.
pub const MIN_MEMORY: u64 = 1 << 20;

/// What to mine and with what means.
#[derive(Debug, Clone)]
pub struct MineOptions {
    /// Orders wanted, each with the number of keys to keep; `None` keeps all that are frequent enough.
    pub budgets: BTreeMap<usize, Option<u64>>,
    /// Fewest occurrences of a key.
    pub min_count: u64,
    /// Every token is smaller than this.
    pub vocab_size: u32,
    /// Tokens that are in no key and end every n-gram.
    pub reserved: Vec<u32>,
    /// Bytes of working memory, the result included.
    pub memory: u64,
    /// Folder for spilled runs.
    pub temporary: PathBuf,
    /// Threads.
    pub threads: usize,
    /// Forces spilling with blocks of so many positions; for tests.
    #[doc(hidden)]
    pub block_size: Option<u64>,
    /// Forces merging of so many runs at a time; for tests.
    #[doc(hidden)]
    pub max_fan_in: Option<usize>,
}

/// Mined keys, order by order, the most frequent first, and what was counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mined {
    /// Tokens of all keys, one after the other.
    pub tokens: Vec<u32>,
    /// Start of each key in `tokens`, and the end of the last.
    pub offsets: Vec<u64>,
    /// Occurrences of each key.
    pub counts: Vec<u64>,
    /// Documents that each key occurs in.
    pub documents: Vec<u64>,
    /// Per order: positions where an n-gram fits, all of them counted.
    pub positions: [u64; MAX_ORDER + 1],
    /// Per order: distinct n-grams.
    pub distinct: [u64; MAX_ORDER + 1],
    /// Per order: n-grams of at least the minimum count.
    pub frequent: [u64; MAX_ORDER + 1],
    /// Sorted runs before merging.
    pub num_runs: u64,
    /// Bytes written to the temporary folder.
    pub spilled_bytes: u64,
}

impl MineOptions {
    /// The longest order wanted.
    pub(super) fn max_order(&self) -> usize {
        self.budgets.keys().max().copied().unwrap_or(1)
    }

    /// Budgets by order.
    pub(super) fn budgets(&self) -> Budgets {
        let mut budgets = [None; MAX_ORDER + 1];
        for (&order, &budget) in &self.budgets {
            budgets[order] = Some(budget.unwrap_or(u64::MAX));
        }
        budgets
    }

    pub(super) fn check(&self) -> Result<()> {
        check_vocab_size(self.vocab_size)?;
        if self.budgets.is_empty() || self.budgets.keys().any(|order| !(1..=MAX_ORDER).contains(order)) {
            let found: Vec<_> = self.budgets.keys().collect();
            return Err(Error::argument(format!("orders: expected some of 1 to {MAX_ORDER}, got {found:?}")));
        }
        if let Some(token) = self.reserved.iter().find(|&&token| token >= self.vocab_size) {
            return Err(Error::argument(format!(
                "reserved: expected tokens below vocab_size {}, got {token}; give the tokenizer's full size",
                self.vocab_size
            )));
        }
        if self.min_count == 0 || self.threads == 0 {
            return Err(Error::argument(format!(
                "expected min_count and threads of 1 and more, got {} and {}",
                self.min_count, self.threads
            )));
        }
        // Per thread: a histogram of tokens, twice.
        let least = MIN_MEMORY + u64::from(self.vocab_size) * 16 * u64_of(self.threads);
        if self.memory < least {
            return Err(Error::argument(format!(
                "memory: expected at least {least} bytes for {} tokens of vocabulary and {} threads, got {}",
                self.vocab_size, self.threads, self.memory
            )));
        }
        Ok(())
    }
}

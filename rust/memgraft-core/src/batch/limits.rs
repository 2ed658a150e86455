//! The check that answers are possible ones, which a damaged table's need not be.

use crate::automaton::{Found, NO_ROW};

/// What answers may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Rows are smaller than this.
    pub num_keys: u32,
    /// Orders are at most this.
    pub max_order: u32,
}

impl Limits {
    /// Whether one answer is a possible one.
    pub fn allow(self, found: Found) -> bool {
        (found.row == NO_ROW || found.row < self.num_keys) && u32::from(found.order) <= self.max_order
    }

    /// Whether all answers are possible ones.
    ///
    /// The loop compares nothing, because plain x86-64 cannot compare vectors of unsigned numbers. It looks at the top bit
    /// instead. `num_keys` is below 2^31, and so is `row + 1` of a possible row (0 for a miss). The top bit of `row + 1` is
    /// set where the row is too large to be one; that of `num_keys - (row + 1)` where the row is `num_keys` or more.
    pub(super) fn hold(self, rows: &[u32], orders: &[u8]) -> bool {
        let bits = rows.iter().fold(0, |bits, &row| {
            let from_one = row.wrapping_add(1);
            bits | from_one | self.num_keys.wrapping_sub(from_one)
        });
        let order = orders.iter().fold(0, |a, &order| a.max(order));
        bits >> 31 == 0 && u32::from(order) <= self.max_order
    }
}

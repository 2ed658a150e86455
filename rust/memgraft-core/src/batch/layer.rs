//! One index of a lookup, and how the answers of one go over those of others.

use super::limits::Limits;
use crate::automaton::Table;

/// One index of a lookup.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layer<'a> {
    pub table: &'a Table,
    pub limits: Limits,
    /// What is added to the rows of this index.
    pub first_row: i32,
}

/// Takes the answers of `over`, rows counted from `first_row`, where they are hits and at least as long.
#[inline(always)]
pub(crate) fn merge(rows: &mut [i32], orders: &mut [u8], over: impl Iterator<Item = (i32, u8)>, first_row: i32) {
    for ((row, order), (over_row, over_order)) in rows.iter_mut().zip(orders).zip(over) {
        let takes = over_order >= (*order).max(1);
        // Wraps at a miss alone, whose sum is not taken.
        *row = if takes { over_row.wrapping_add(first_row) } else { *row };
        *order = if takes { over_order } else { *order };
    }
}

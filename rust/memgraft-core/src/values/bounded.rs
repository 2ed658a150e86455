//! Rows that are known to lie in a table.
use std::ops::Deref;

use crate::ids::u64_of;
use crate::{Error, Result};

/// Rows of a caller, each at least 0 and below the number of rows of one table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounded<'a>(&'a [i32]);

impl<'a> Bounded<'a> {
    /// Checks `rows` against a table of `num_rows`.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the first position whose row lies outside.
    pub fn check(rows: &'a [i32], num_rows: usize) -> Result<Self> {
        check_rows(rows, num_rows, 0).map(|()| Self(rows))
    }

    /// The rows.
    pub fn rows(self) -> &'a [i32] {
        self.0
    }
}

/// Distinct rows of one table, ascending; [`super::dedup::dedup`] alone makes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Distinct(Vec<i32>);

impl Distinct {
    /// The caller has taken `rows` from checked ones.
    pub(super) fn of(rows: Vec<i32>) -> Self {
        Self(rows)
    }

    /// The rows, which need no check for the table they were checked against.
    pub(super) fn bounded(&self) -> Bounded<'_> {
        Bounded(&self.0)
    }

    /// The rows alone.
    #[must_use]
    pub fn into_vec(self) -> Vec<i32> {
        self.0
    }
}

impl Deref for Distinct {
    type Target = [i32];

    fn deref(&self) -> &[i32] {
        &self.0
    }
}

impl<const N: usize> PartialEq<[i32; N]> for Distinct {
    fn eq(&self, other: &[i32; N]) -> bool {
        self.0 == other
    }
}

/// Refuses rows outside `lowest..num_rows`.
///
/// # Errors
/// [`Error::Argument`] naming the first such position.
pub(super) fn check_rows(rows: &[i32], num_rows: usize, lowest: i32) -> Result<()> {
    let above = u64_of(num_rows).saturating_add(u64::from(lowest.unsigned_abs()));
    let span = u32::try_from(above).unwrap_or(u32::MAX);
    let inside = |row: i32| row.wrapping_sub(lowest).cast_unsigned() < span;
    // No early exit: the loop over good rows, which is nearly always the case, then runs on vectors.
    if rows.iter().fold(true, |good, &row| good & inside(row)) {
        return Ok(());
    }
    let position = rows.iter().position(|&row| !inside(row)).unwrap_or(0);
    let row = rows[position];
    let miss = if lowest < 0 { " or -1 for a miss" } else { "" };
    Err(Error::argument(format!(
        "row {row} at position {position}: expected 0 <= row < {num_rows}{miss}; \
         the rows come from another bank's index"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_outside_are_named() {
        for (rows, lowest, at) in [
            (vec![0, 5, -2], -1, "row -2 at position 2"),
            (vec![0, 6, -1], -1, "row 6 at position 1"),
            (vec![0, -1], 0, "row -1 at position 1"),
            (vec![i32::MIN], -1, "position 0"),
            (vec![i32::MAX], 0, "position 0"),
        ] {
            let error = check_rows(&rows, 6, lowest).unwrap_err().to_string();
            assert!(error.contains(at), "{error}");
        }
        assert!(check_rows(&[0, 5, -1], 6, -1).is_ok());
        assert!(check_rows(&[i32::MAX - 1, -1], i32::MAX as usize, -1).is_ok());
        assert!(check_rows(&[0], 0, -1).is_err());
        assert!(check_rows(&[-1], 0, -1).is_ok());
    }
}

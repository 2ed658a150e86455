//! The standard library's hash map from slices to rows, longest slice first.

use std::collections::HashMap;

use memgraft_core::keyset::KeySet;

/// `HashMap<&[u32], u32>` over the tokens of a key set.
#[derive(Debug)]
pub struct SliceMap<'a> {
    rows: HashMap<&'a [u32], u32>,
    max_order: usize,
}

impl<'a> SliceMap<'a> {
    /// All keys.
    #[must_use]
    pub fn new(keys: &'a KeySet) -> Self {
        let rows = keys.iter().enumerate().map(|(row, key)| (key, row as u32)).collect();
        Self { rows, max_order: keys.max_order() }
    }

    /// The row of the longest key at each position of `tokens`, -1 where there is none; no segments.
    pub fn lookup(&self, tokens: &[u32], rows: &mut [i32]) {
        for at in 0..tokens.len() {
            let longest = (at + 1).min(self.max_order);
            let found = (1..=longest).rev().find_map(|order| self.rows.get(&tokens[at + 1 - order..=at]));
            rows[at] = found.map_or(-1, |&row| row as i32);
        }
    }
}

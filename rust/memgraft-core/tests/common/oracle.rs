//! Brute force, written without looking at the automaton: for each position try the longest
//! key first, look it up in a map, and never cross a segment start.

use std::collections::{HashMap, HashSet};

pub struct Oracle {
    rows: HashMap<Vec<u32>, i32>,
    max_order: usize,
}

impl Oracle {
    pub fn new(keys: &[(Vec<u32>, u64)]) -> Self {
        Self::of_layers(&[keys])
    }

    /// Rows are numbered through all layers; a later layer's key takes the place of an equal one.
    pub fn of_layers(layers: &[&[(Vec<u32>, u64)]]) -> Self {
        let (mut rows, mut first) = (HashMap::new(), 0);
        for keys in layers {
            let mut order: Vec<&(Vec<u32>, u64)> = keys.iter().collect();
            order.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
            rows.extend(order.iter().enumerate().map(|(row, (key, _))| (key.clone(), first + row as i32)));
            first += keys.len() as i32;
        }
        let max_order = rows.keys().map(Vec::len).max().unwrap_or(0);
        Self { rows, max_order }
    }

    pub fn row(&self, key: &[u32]) -> Option<i32> {
        self.rows.get(key).copied()
    }

    /// (row, order) at each position; a segment starts at 0 and at each of `starts`.
    pub fn lookup(&self, tokens: &[u32], starts: &HashSet<usize>) -> Vec<(i32, u8)> {
        let mut begin = 0;
        let mut out = Vec::new();
        for at in 0..tokens.len() {
            if starts.contains(&at) {
                begin = at;
            }
            let longest = self.max_order.min(at + 1 - begin);
            let found = (1..=longest).rev().find_map(|n| Some((*self.rows.get(&tokens[at + 1 - n..=at])?, n as u8)));
            out.push(found.unwrap_or((-1, 0)));
        }
        out
    }
}

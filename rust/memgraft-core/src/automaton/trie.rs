//! The prefixes of all keys, level by level, each level sorted by (parent, token).

#![forbid(unsafe_code)]

use super::NO_ROW;
use crate::Result;
use crate::ids::{fit_u32, saturating_u32};
use crate::keyset::KeySet;
use crate::keyset::sort::lexicographic;

/// Marks the first token of a family once parents are forgotten; tokens have 20 bits.
pub(crate) const FIRST_CHILD: u32 = 1 << 31;

/// The nodes of one depth; a node's rank is its place here.
#[derive(Debug, Default, Clone)]
pub(crate) struct Level {
    /// Rank of the parent one level up; ascending. All zero at depth 1, whose parent is the root.
    pub parent: Vec<u32>,
    /// Last token; ascending under one parent.
    pub token: Vec<u32>,
    /// The key's row, or [`NO_ROW`] for a prefix that is no key.
    pub row: Vec<u32>,
}

impl Level {
    pub fn len(&self) -> usize {
        self.token.len()
    }

    /// Keeps of the parents what is needed to link: where a family begins. Saves four bytes a node at the peak.
    pub fn forget_parents(&mut self) {
        let parents = std::mem::take(&mut self.parent);
        for (i, token) in self.token.iter_mut().enumerate() {
            if i == 0 || parents[i] != parents[i - 1] {
                *token |= FIRST_CHILD;
            }
        }
    }

    fn shrink(&mut self) {
        self.parent.shrink_to_fit();
        self.token.shrink_to_fit();
        self.row.shrink_to_fit();
    }

    /// Runs of nodes under one parent: (parent, first, end).
    pub fn families(&self) -> impl Iterator<Item = (u32, usize, usize)> {
        let mut first = 0;
        self.parent.chunk_by(|a, b| a == b).map(move |run| {
            let start = first;
            first += run.len();
            (run[0], start, first)
        })
    }
}

/// All levels; `levels[d]` holds the prefixes of `d + 1` tokens.
#[derive(Debug, Default, Clone)]
pub(crate) struct Trie {
    pub levels: Vec<Level>,
}

impl Trie {
    /// The prefixes of `keys`, in one pass over the keys in lexicographic order.
    ///
    /// # Errors
    /// [`crate::Error::Limit`] with 2^32 or more prefixes of one length.
    pub fn new(keys: &KeySet) -> Result<Self> {
        let offsets: Vec<usize> = {
            let mut at = 0;
            let mut offsets = Vec::with_capacity(keys.len() + 1);
            offsets.push(0);
            for &len in keys.lengths() {
                at += usize::from(len);
                offsets.push(at);
            }
            offsets
        };
        let tokens = keys.tokens();
        let key = |i: u32| &tokens[offsets[crate::ids::usize_of(i)]..offsets[crate::ids::usize_of(i) + 1]];
        let order = lexicographic(saturating_u32(keys.len()), keys.vocab_size(), key);
        let mut levels = vec![Level::default(); keys.max_order()];
        let mut last: &[u32] = &[];
        for &row in &order {
            let key = key(row);
            let shared = last.iter().zip(key).take_while(|(a, b)| a == b).count();
            for depth in shared..key.len() {
                let parent = match depth.checked_sub(1) {
                    Some(up) => fit_u32(levels[up].len() - 1, "prefixes of one length")?,
                    None => 0,
                };
                let level = &mut levels[depth];
                level.parent.push(parent);
                level.token.push(key[depth]);
                level.row.push(NO_ROW);
            }
            if let Some(slot) = levels[key.len() - 1].row.last_mut() {
                *slot = row;
            }
            last = key;
        }
        levels.iter_mut().for_each(Level::shrink);
        Ok(Self { levels })
    }
}

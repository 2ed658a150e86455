//! The prefixes of all keys, level by level, each level sorted by (parent, token). Eight bytes a prefix: who is whose
//! parent is two marks in the token's word.

use std::ops::Range;

use super::words::NO_ROW;
use crate::Result;
use crate::ids::{fit_u32, saturating_u32, usize_of};
use crate::keyset::KeySet;
use crate::keyset::sort::lexicographic;

/// Marks in a token word, above the 20 bits of a token: the node begins a family; it has children of its own.
const FIRST_CHILD: u32 = 1 << 31;
const HAS_CHILDREN: u32 = 1 << 30;
const TOKEN: u32 = HAS_CHILDREN - 1;
/// What stands above the first level: the empty prefix, parent of all nodes there.
const ROOT: [u32; 1] = [HAS_CHILDREN];

/// The nodes of one depth; a node's rank is its place here.
#[derive(Debug, Default, Clone)]
pub(crate) struct Level {
    /// Last token and marks; tokens ascend within a family, families come in the order of their parents.
    words: Vec<u32>,
    /// The key's row, or [`NO_ROW`] for a prefix that is no key.
    pub row: Vec<u32>,
}

/// One prefix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Node {
    /// Last token.
    pub token: u32,
    /// The key's row, or [`NO_ROW`].
    pub row: u32,
    /// Whether it is its parent's first child.
    pub begins_family: bool,
    /// Whether longer prefixes go on from it.
    pub has_children: bool,
}

impl Level {
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// The last tokens of the nodes in `range`.
    pub fn tokens(&self, range: Range<usize>) -> impl Iterator<Item = u32> {
        self.words[range].iter().map(|word| word & TOKEN)
    }

    /// All nodes in the order of their rank.
    pub fn nodes(&self) -> impl Iterator<Item = Node> {
        self.words.iter().zip(&self.row).map(|(&word, &row)| Node {
            token: word & TOKEN,
            row,
            begins_family: word & FIRST_CHILD != 0,
            has_children: word & HAS_CHILDREN != 0,
        })
    }
}

/// All levels; `levels[d]` holds the prefixes of `d + 1` tokens.
#[derive(Debug, Default, Clone)]
pub(crate) struct Trie {
    pub levels: Vec<Level>,
}

impl Trie {
    /// The prefixes of `keys`.
    ///
    /// # Errors
    /// [`crate::Error::Limit`] with 2^32 or more prefixes of one length, [`crate::Error::Format`] for keys that are
    /// none, as those of a damaged file can be.
    pub fn new(keys: &KeySet) -> Result<Self> {
        let offsets = keys.checked_offsets()?;
        let tokens = keys.tokens();
        let key = |i: u32| &tokens[offsets[usize_of(i)]..offsets[usize_of(i) + 1]];
        let (trie, twice) = Self::of(saturating_u32(keys.len()), keys.vocab_size(), keys.max_order(), key)?;
        if twice {
            return Err(keys.damaged("a key has two rows"));
        }
        Ok(trie)
    }

    /// The prefixes of the keys `key(row)`, in one pass over them in lexicographic order, and whether some are equal: of
    /// those the last row counts. Keys have 1 to `max_order` tokens below `vocab_size`.
    ///
    /// # Errors
    /// [`crate::Error::Limit`] with 2^32 or more prefixes of one length, [`crate::Error::Interrupted`] where the caller has
    /// asked the work to end.
    pub fn of<'a>(
        num_keys: u32,
        vocab_size: u32,
        max_order: usize,
        key: impl Fn(u32) -> &'a [u32],
    ) -> Result<(Self, bool)> {
        let mut levels = vec![Level::default(); max_order];
        let mut last: &[u32] = &[];
        let mut twice = false;
        lexicographic(num_keys, vocab_size, key, |row, key| {
            let shared = last.iter().zip(key).take_while(|(a, b)| a == b).count();
            let again = shared == key.len();
            twice |= again;
            for depth in shared..key.len() {
                let begins_family = match depth.checked_sub(1).map(|up| levels[up].words.last_mut()) {
                    Some(Some(parent)) => {
                        let before = *parent;
                        *parent |= HAS_CHILDREN;
                        before & HAS_CHILDREN == 0
                    }
                    _ => levels[0].words.is_empty(),
                };
                let level = &mut levels[depth];
                level.words.push(key[depth] | if begins_family { FIRST_CHILD } else { 0 });
                level.row.push(NO_ROW);
            }
            if let Some(slot) = levels[key.len() - 1].row.last_mut() {
                *slot = if again { row.max(*slot) } else { row };
            }
            last = key;
        })?;
        for level in &mut levels {
            fit_u32(level.len(), "prefixes of one length")?;
            level.words.shrink_to_fit();
            level.row.shrink_to_fit();
        }
        Ok((Self { levels }, twice))
    }

    /// Ranks, one level up, of the parents of `levels[depth]`; one a family, in order.
    fn parents(&self, depth: usize) -> impl Iterator<Item = u32> {
        let above = depth.checked_sub(1).map_or(&ROOT[..], |up| &self.levels[up].words);
        (0..).zip(above).filter(|&(_, word)| word & HAS_CHILDREN != 0).map(|(rank, _)| rank)
    }

    /// The families of `levels[depth]`, each the range of its nodes.
    pub fn families(&self, depth: usize) -> impl Iterator<Item = Range<usize>> {
        let mut first = 0;
        self.levels[depth].words.chunk_by(|_, next| next & FIRST_CHILD == 0).map(move |family| {
            let start = first;
            first += family.len();
            start..first
        })
    }

    /// Rank of the parent and last token of each node of `levels[depth]`.
    pub fn pairs(&self, depth: usize) -> impl ExactSizeIterator<Item = (u32, u32)> {
        let mut parents = self.parents(depth);
        let mut parent = 0;
        self.levels[depth].words.iter().map(move |&word| {
            if word & FIRST_CHILD != 0 {
                // As many parents as families, by construction.
                parent = parents.next().unwrap_or(parent);
            }
            (parent, word & TOKEN)
        })
    }
}

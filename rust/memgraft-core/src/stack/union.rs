//! All keys of a stack in one table, in memory: its lookups take no longer than those of one index with as many keys.

use super::layers::Layers;
use crate::Result;
use crate::automaton::{Table, Trie, build};
use crate::batch::{Layer, Limits};
use crate::ids::{saturating_u32, usize_of};

/// Stacks of more keys than this keep their layers apart: the table takes some 30 bytes a key, 250 MB, in each process.
pub(super) const MAX_UNION: usize = 1 << 23;

/// The table, with the rows of the stack.
#[derive(Debug)]
pub(super) struct Union {
    table: Table,
    limits: Limits,
}

impl Union {
    /// Reads the keys of all layers. Of equal keys the last layer's row stays.
    ///
    /// # Errors
    /// [`crate::Error::Format`] in a damaged file, [`crate::Error::Interrupted`] where the caller has asked the work to end.
    pub fn new(layers: &Layers) -> Result<Self> {
        let (mut tokens, mut ends, mut counts, mut max_order) = (Vec::new(), vec![0], Vec::new(), 0);
        for layer in &layers.indexes {
            // What is read here is the set with the layer's fingerprint.
            let keys = layer.key_set()?;
            if keys.len() != layer.num_keys() || keys.vocab_size() != layers.vocab_size() {
                return Err(layer.damaged());
            }
            let first = tokens.len();
            ends.extend(keys.checked_offsets()?.iter().skip(1).map(|end| first + end));
            tokens.extend_from_slice(keys.tokens());
            counts.extend_from_slice(keys.counts());
            max_order = max_order.max(keys.max_order());
        }
        let num_keys = saturating_u32(counts.len());
        let key = |row: u32| &tokens[ends[usize_of(row)]..ends[usize_of(row) + 1]];
        let (trie, _) = Trie::of(num_keys, layers.vocab_size(), max_order, key)?;
        drop((tokens, ends));
        let table = build(&trie, &counts, layers.vocab_size())?;
        Ok(Self { table, limits: Limits { num_keys, max_order: saturating_u32(max_order) } })
    }

    /// What a lookup walks.
    pub fn layer(&self) -> Layer<'_> {
        Layer { table: &self.table, limits: self.limits, first_row: 0 }
    }
}

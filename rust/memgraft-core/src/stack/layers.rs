//! The indexes of a stack, and the rows that they have in it.

use std::sync::Arc;

use crate::batch::Layer;
use crate::ids::row_as_i32;
use crate::index::Index;

/// At least one index, from the lowest to the one that wins.
#[derive(Debug, Clone)]
pub(super) struct Layers {
    pub indexes: Vec<Arc<Index>>,
    /// The first row of each index, and the number of rows at the end.
    pub first_rows: Vec<u32>,
}

impl Layers {
    /// Tokens are smaller than this, in all of them.
    pub fn vocab_size(&self) -> u32 {
        self.indexes[0].vocab_size()
    }

    /// The lowest, as many as are asked for, as a lookup walks them.
    pub fn walked(&self, num: usize) -> Vec<Layer<'_>> {
        let layers = self.indexes.iter().zip(&self.first_rows).take(num);
        layers.map(|(index, &first)| index.layer(row_as_i32(first))).collect()
    }
}

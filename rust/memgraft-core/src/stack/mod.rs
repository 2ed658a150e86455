//! Several indexes as one: the longest match of all, at equal length the later index's.
//!
//! Rows are numbered through: those of the first index keep their numbers, those of the next follow.

mod crowns;
mod layers;
mod union;

use std::sync::Arc;

use crate::batch::{self, Bounds, Options, Tokens, merge};
use crate::fingerprint::Fingerprint;
use crate::ids::{MAX_KEYS, MAX_ORDER, RowId, StateId, row_as_i32, saturating_u32, u64_of, usize_of};
use crate::index::Index;
use crate::{Error, Result};
use crowns::{Crowns, Made};
use layers::Layers;

/// Indexes over one vocabulary, from the lowest to the one that wins.
#[derive(Debug, Clone)]
pub struct Stack {
    layers: Layers,
    crowns: Arc<Crowns>,
}

impl Stack {
    /// Puts `layers` on top of each other; reads nothing.
    ///
    /// # Errors
    /// [`Error::Argument`] for no layers or vocabularies that differ, [`Error::Limit`] for more than [`MAX_KEYS`] rows.
    pub fn new(layers: Vec<Arc<Index>>) -> Result<Self> {
        let Some(first) = layers.first() else {
            return Err(Error::argument("layers: expected at least one index, got none"));
        };
        let vocab_size = first.vocab_size();
        let mut first_rows = vec![0];
        let mut num_rows = 0;
        for (number, layer) in layers.iter().enumerate() {
            if layer.vocab_size() != vocab_size {
                let found = layer.vocab_size();
                return Err(Error::argument(format!(
                    "layers[{number}]: expected an index over the vocabulary of {vocab_size} as the first, got one over \
                     {found}; make its key set with vocab_size={vocab_size}"
                )));
            }
            num_rows += layer.num_keys();
            if u64_of(num_rows) > MAX_KEYS {
                let message = format!("layers: expected at most {MAX_KEYS} rows in all, got {num_rows} or more");
                return Err(Error::Limit { message });
            }
            first_rows.push(saturating_u32(num_rows));
        }
        let crowns = Arc::new(Crowns::new(&layers));
        Ok(Self { layers: Layers { indexes: layers, first_rows }, crowns })
    }

    /// The indexes, from the lowest to the one that wins.
    #[must_use]
    pub fn layers(&self) -> &[Arc<Index>] {
        &self.layers.indexes
    }

    /// The first row of each layer, and the number of rows at the end.
    #[must_use]
    pub fn first_rows(&self) -> &[u32] {
        &self.layers.first_rows
    }

    /// Rows of all layers.
    #[must_use]
    pub fn num_keys(&self) -> usize {
        usize_of(self.layers.first_rows[self.layers.indexes.len()])
    }

    /// Tokens are smaller than this.
    #[must_use]
    pub fn vocab_size(&self) -> u32 {
        self.layers.vocab_size()
    }

    /// Number of rows of order 1..=16, of all layers.
    #[must_use]
    pub fn keys_by_order(&self) -> [u64; MAX_ORDER] {
        let mut sums = [0; MAX_ORDER];
        for layer in &self.layers.indexes {
            sums.iter_mut().zip(layer.keys_by_order()).for_each(|(sum, n)| *sum += n);
        }
        sums
    }

    /// Hash of the layers' contents in their order; states belong to it.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"memgraft stack v1");
        self.layers.indexes.iter().for_each(|layer| {
            hasher.update(&layer.fingerprint().0);
        });
        Fingerprint(*hasher.finalize().as_bytes())
    }

    /// The layer of `row`, and the row's number there.
    ///
    /// # Errors
    /// [`Error::Argument`] past the last row.
    pub fn locate(&self, row: RowId) -> Result<(usize, RowId)> {
        if usize_of(row.0) >= self.num_keys() {
            let message =
                format!("row: expected less than {} (the rows of all layers), got {}", self.num_keys(), row.0);
            return Err(Error::argument(message));
        }
        let layer = self.layers.first_rows.partition_point(|&first| first <= row.0) - 1;
        Ok((layer, RowId(row.0 - self.layers.first_rows[layer])))
    }

    /// The row of exactly `tokens`, of the last layer that has it.
    ///
    /// # Errors
    /// [`Error::Format`] in a damaged file.
    pub fn find(&self, tokens: &[u32]) -> Result<Option<RowId>> {
        for (layer, &first) in self.layers.indexes.iter().zip(&self.layers.first_rows).rev() {
            if let Some(row) = layer.find(tokens)? {
                return Ok(Some(RowId(first + row.0)));
            }
        }
        Ok(None)
    }

    /// Fills `rows` (-1 at a miss) and `orders` (0 at a miss) for every position of `tokens`.
    ///
    /// # Errors
    /// As [`Index::lookup_tokens`].
    pub fn lookup_tokens(
        &self,
        tokens: &Tokens<'_>,
        bounds: &Bounds<'_>,
        rows: &mut [i32],
        orders: &mut [u8],
        options: Options,
    ) -> Result<()> {
        let (layers, above) = match self.crowns.of(&self.layers, u64_of(tokens.len()))? {
            None => (self.layers.walked(self.layers.indexes.len()), None),
            Some(Made::Extensions { below, extensions }) => (self.layers.walked(*below), Some(extensions)),
            Some(Made::Union(union)) => (vec![union.layer()], None),
        };
        match batch::lookup(&layers, above, tokens, bounds, rows, orders, options)? {
            None => Ok(()),
            Some(damaged) => Err(self.layers.indexes[damaged].damaged()),
        }
    }

    /// Reads one token for each sequence; `states` holds one state a layer for each sequence, sequence by sequence.
    ///
    /// Nothing is changed on an error.
    ///
    /// # Errors
    /// As [`Index::advance_tokens`].
    pub fn advance_tokens(
        &self,
        states: &mut [StateId],
        tokens: &Tokens<'_>,
        rows: &mut [i32],
        orders: &mut [u8],
    ) -> Result<()> {
        let width = self.layers.indexes.len();
        if tokens.len().checked_mul(width) != Some(states.len()) {
            let (want, got) = (tokens.len() * width, states.len());
            return Err(Error::argument(format!("states: expected {want}, one a token and layer, got {got}")));
        }
        tokens.check_lengths([("rows", rows.len()), ("orders", orders.len())])?;
        let mut after = states.to_vec();
        let (mut all_rows, mut all_orders) = (vec![-1; rows.len()], vec![0; rows.len()]);
        let (mut layer_rows, mut layer_orders) = (all_rows.clone(), all_orders.clone());
        for (number, (layer, &first)) in self.layers.indexes.iter().zip(&self.layers.first_rows).enumerate() {
            let mut column: Vec<StateId> = states.iter().skip(number).step_by(width).copied().collect();
            layer.advance_tokens(&mut column, tokens, &mut layer_rows, &mut layer_orders)?;
            let over = layer_rows.iter().copied().zip(layer_orders.iter().copied());
            merge(&mut all_rows, &mut all_orders, over, row_as_i32(first));
            after.iter_mut().skip(number).step_by(width).zip(column).for_each(|(state, new)| *state = new);
        }
        states.copy_from_slice(&after);
        rows.copy_from_slice(&all_rows);
        orders.copy_from_slice(&all_orders);
        Ok(())
    }
}

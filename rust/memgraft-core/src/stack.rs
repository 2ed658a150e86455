//! Several indexes as one: the longest match of all, at equal length the later index's.
//!
//! Rows are numbered through: those of the first index keep their numbers, those of the next follow.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::batch::{self, Bounds, Extensions, Layer, MAX_EXTENSIONS, Options, Tokens, Unknown, merge};
use crate::fingerprint::Fingerprint;
use crate::ids::{MAX_KEYS, MAX_ORDER, RowId, StateId, row_as_i32, saturating_u32, u64_of, usize_of, usize_of_u64};
use crate::index::Index;
use crate::{Error, Result};

/// Reading a key of an overlay takes as long as walking some tens of positions.
const POSITIONS_PER_KEY: u64 = 32;
/// Overlays whose keys are at most this part of those below gain by a table of extensions, whatever the text.
const SMALL: usize = 16;
/// So many overlays gain by it whatever their size: steps at all positions take no longer than some walks.
const MANY: usize = 4;
/// Keys looked up at once in what lies below them.
const KEYS_AT_ONCE: usize = 1 << 13;

/// Indexes over one vocabulary, from the lowest to the one that wins.
#[derive(Debug, Clone)]
pub struct Stack {
    layers: Vec<Arc<Index>>,
    /// The first row of each layer, and the number of rows at the end.
    first_rows: Vec<u32>,
    crowns: Arc<Crowns>,
}

/// What spares lookups the walks over overlays, made when they are long enough to pay for it.
#[derive(Debug)]
struct Crowns {
    /// From the smallest to the largest, each at least twice the one before but for the last.
    of: Vec<Crown>,
    /// Positions looked up so far.
    positions: AtomicU64,
}

/// The upper layers of a stack as extensions of those below.
#[derive(Debug)]
struct Crown {
    /// Layers below, which are walked.
    below: usize,
    num_keys: usize,
    /// Whether someone has begun to make it.
    begun: AtomicBool,
    /// Nothing where keys cannot be read.
    made: OnceLock<Option<Extensions>>,
}

impl Crowns {
    fn new(layers: &[Arc<Index>]) -> Self {
        let mut of: Vec<Crown> = Vec::new();
        let all_keys: usize = layers.iter().map(|layer| layer.num_keys()).sum();
        let mut num_keys = 0;
        for (below, layer) in layers.iter().enumerate().skip(1).rev() {
            num_keys += layer.num_keys();
            if num_keys > MAX_EXTENSIONS {
                break;
            }
            if num_keys * SMALL > all_keys - num_keys && layers.len() - below < MANY {
                continue;
            }
            // The last one grows until it is twice the one before.
            if of.len() > 1 && of[of.len() - 1].num_keys < 2 * of[of.len() - 2].num_keys {
                of.pop();
            }
            of.push(Crown { below, num_keys, begun: AtomicBool::new(false), made: OnceLock::new() });
        }
        Self { of, positions: AtomicU64::new(0) }
    }
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
        Ok(Self { layers, first_rows, crowns })
    }

    /// The indexes, from the lowest to the one that wins.
    #[must_use]
    pub fn layers(&self) -> &[Arc<Index>] {
        &self.layers
    }

    /// The first row of each layer, and the number of rows at the end.
    #[must_use]
    pub fn first_rows(&self) -> &[u32] {
        &self.first_rows
    }

    /// Rows of all layers.
    #[must_use]
    pub fn num_keys(&self) -> usize {
        usize_of(self.first_rows[self.layers.len()])
    }

    /// Tokens are smaller than this.
    #[must_use]
    pub fn vocab_size(&self) -> u32 {
        self.layers[0].vocab_size()
    }

    /// Number of rows of order 1..=16, of all layers.
    #[must_use]
    pub fn keys_by_order(&self) -> [u64; MAX_ORDER] {
        let mut sums = [0; MAX_ORDER];
        for layer in &self.layers {
            sums.iter_mut().zip(layer.keys_by_order()).for_each(|(sum, n)| *sum += n);
        }
        sums
    }

    /// Hash of the layers' contents in their order; states belong to it.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"memgraft stack v1");
        self.layers.iter().for_each(|layer| {
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
        let layer = self.first_rows.partition_point(|&first| first <= row.0) - 1;
        Ok((layer, RowId(row.0 - self.first_rows[layer])))
    }

    /// The row of exactly `tokens`, of the last layer that has it.
    ///
    /// # Errors
    /// [`Error::Format`] in a damaged file.
    pub fn find(&self, tokens: &[u32]) -> Result<Option<RowId>> {
        for (layer, &first) in self.layers.iter().zip(&self.first_rows).rev() {
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
        let crown = self.crown(u64_of(tokens.len()))?;
        let walked = crown.map_or(self.layers.len(), |(below, _)| below);
        let above = crown.map(|(_, above)| above);
        match batch::lookup(&self.walked(walked), above, tokens, bounds, rows, orders, options)? {
            None => Ok(()),
            Some(damaged) => Err(self.layers[damaged].damaged()),
        }
    }

    /// The lowest layers, as many as are asked for.
    fn walked(&self, num: usize) -> Vec<Layer<'_>> {
        let layers = self.layers.iter().zip(&self.first_rows).take(num);
        layers.map(|(layer, &first)| layer.layer(row_as_i32(first))).collect()
    }

    /// The extensions that save most of those that are there, and the number of layers below them; makes what so many
    /// more positions pay for.
    fn crown(&self, positions: u64) -> Result<Option<(usize, &Extensions)>> {
        let Crowns { of, positions: sum } = &*self.crowns;
        let positions = sum.fetch_add(positions, Ordering::Relaxed).saturating_add(positions);
        let pays = |crown: &&Crown| positions >= POSITIONS_PER_KEY * u64_of(crown.num_keys);
        // One call makes it, and none waits: another thread walks until it is there, as does a child forked meanwhile.
        if let Some(crown) = of.iter().rev().find(pays)
            && !crown.begun.swap(true, Ordering::Relaxed)
        {
            let made = self.extensions(crown);
            if matches!(made, Err(Error::Interrupted)) {
                crown.begun.store(false, Ordering::Relaxed);
                return Err(Error::Interrupted);
            }
            // A damaged file is walked, so that the walk says what is wrong.
            crown.made.set(made.ok()).ok();
        }
        Ok(of.iter().rev().find_map(|crown| Some((crown.below, crown.made.get()?.as_ref()?))))
    }

    /// Reads the keys of the upper layers and what lies below each.
    fn extensions(&self, crown: &Crown) -> Result<Extensions> {
        let upper = &self.layers[crown.below..];
        let below = self.walked(crown.below);
        let any_single = upper.iter().any(|layer| layer.keys_by_order()[0] > 0);
        let mut extensions = Extensions::new(crown.num_keys, any_single);
        for (layer, &first_row) in upper.iter().zip(&self.first_rows[crown.below..]) {
            let keys = layer.key_set()?;
            if keys.len() != layer.num_keys() {
                return Err(layer.damaged());
            }
            let (mut row, mut tokens) = (first_row, keys.tokens());
            for lengths in keys.lengths().chunks(KEYS_AT_ONCE) {
                let mut end = 0;
                let ends = lengths.iter().map(|&length| {
                    end += u64::from(length);
                    end
                });
                let starts: Vec<u64> = std::iter::once(0).chain(ends).collect();
                let (here, rest) = tokens.split_at(usize_of_u64(end).min(tokens.len()));
                let bounds = Bounds { cu_seqlens: Some(&starts), ..Bounds::default() };
                let checked = Tokens::check(here, self.vocab_size(), &bounds, Unknown::Error)?;
                let (mut rows, mut orders) = (vec![0; here.len()], vec![0; here.len()]);
                let damaged =
                    batch::lookup(&below, None, &checked, &bounds, &mut rows, &mut orders, Options::default())?;
                if let Some(damaged) = damaged {
                    return Err(self.layers[damaged].damaged());
                }
                for key in starts.windows(2) {
                    let key = usize_of_u64(key[0])..usize_of_u64(key[1]);
                    if let Some(last) = key.clone().next_back() {
                        extensions.add(&here[key], (rows[last], orders[last]), row);
                    }
                    row += 1;
                }
                tokens = rest;
            }
        }
        Ok(extensions.finish())
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
        let width = self.layers.len();
        if tokens.len().checked_mul(width) != Some(states.len()) {
            let (want, got) = (tokens.len() * width, states.len());
            return Err(Error::argument(format!("states: expected {want}, one a token and layer, got {got}")));
        }
        tokens.check_lengths([("rows", rows.len()), ("orders", orders.len())])?;
        let mut after = states.to_vec();
        let (mut all_rows, mut all_orders) = (vec![-1; rows.len()], vec![0; rows.len()]);
        let (mut layer_rows, mut layer_orders) = (all_rows.clone(), all_orders.clone());
        for (number, (layer, &first)) in self.layers.iter().zip(&self.first_rows).enumerate() {
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

//! What spares lookups of a stack the walks over its overlays: made when so much has been looked up that it pays.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::layers::Layers;
use super::union::{MAX_UNION, Union};
use crate::batch::{self, Bounds, Extensions, MAX_EXTENSIONS, Options, Tokens, Unknown};
use crate::ids::{u64_of, usize_of_u64};
use crate::index::Index;
use crate::{Error, Result};

/// Reading a key takes as long as walking some tens of positions.
const POSITIONS_PER_KEY: u64 = 32;
/// Overlays whose keys are at most this part of those below gain by a table of extensions, whatever the text.
const SMALL: usize = 16;
/// So many overlays gain by it whatever their size: steps at all positions take no longer than some walks.
const MANY: usize = 4;
/// Keys looked up at once in what lies below them.
const KEYS_AT_ONCE: usize = 1 << 13;

/// All crowns of a stack.
#[derive(Debug)]
pub(super) struct Crowns {
    /// From the smallest to the largest, each at least twice the one before but for the last two.
    of: Vec<Crown>,
    /// Positions looked up so far.
    positions: AtomicU64,
}

/// The upper layers of a stack as extensions of those below, or all layers as one table.
#[derive(Debug)]
struct Crown {
    /// Layers below, which are walked; with none it is a union.
    below: usize,
    num_keys: usize,
    /// Whether someone has begun to make it.
    begun: AtomicBool,
    /// Nothing where keys cannot be read.
    made: OnceLock<Option<Made>>,
}

/// A crown that is there.
#[derive(Debug)]
pub(super) enum Made {
    /// What the layers above the lowest `below` add to the answers of those.
    Extensions { below: usize, extensions: Extensions },
    /// All layers.
    Union(Union),
}

impl Crowns {
    /// Those that `layers` may get; reads nothing.
    pub fn new(layers: &[Arc<Index>]) -> Self {
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
            of.push(Crown::new(below, num_keys));
        }
        if layers.len() > 1 && all_keys <= MAX_UNION {
            of.push(Crown::new(0, all_keys));
        }
        Self { of, positions: AtomicU64::new(0) }
    }

    /// What saves most of what is there; makes what so many more positions pay for.
    pub fn of(&self, layers: &Layers, positions: u64) -> Result<Option<&Made>> {
        let Self { of, positions: sum } = self;
        let positions = sum.fetch_add(positions, Ordering::Relaxed).saturating_add(positions);
        let pays = |crown: &&Crown| positions >= POSITIONS_PER_KEY * u64_of(crown.num_keys);
        // One call makes it, and none waits: another thread walks until it is there, as does a child forked meanwhile.
        if let Some(crown) = of.iter().rev().find(pays)
            && !crown.begun.swap(true, Ordering::Relaxed)
        {
            let made = crown.make(layers);
            if matches!(made, Err(Error::Interrupted)) {
                crown.begun.store(false, Ordering::Relaxed);
                return Err(Error::Interrupted);
            }
            // A damaged file is walked, so that the walk says what is wrong.
            crown.made.set(made.ok()).ok();
        }
        Ok(of.iter().rev().find_map(|crown| crown.made.get()?.as_ref()))
    }
}

impl Crown {
    fn new(below: usize, num_keys: usize) -> Self {
        Self { below, num_keys, begun: AtomicBool::new(false), made: OnceLock::new() }
    }

    fn make(&self, layers: &Layers) -> Result<Made> {
        if self.below == 0 {
            return Union::new(layers).map(Made::Union);
        }
        self.extensions(layers).map(|extensions| Made::Extensions { below: self.below, extensions })
    }

    /// Reads the keys of the upper layers and what lies below each.
    fn extensions(&self, layers: &Layers) -> Result<Extensions> {
        let upper = &layers.indexes[self.below..];
        let below = layers.walked(self.below);
        let any_single = upper.iter().any(|layer| layer.keys_by_order()[0] > 0);
        let mut extensions = Extensions::new(self.num_keys, any_single);
        for (layer, &first_row) in upper.iter().zip(&layers.first_rows[self.below..]) {
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
                let checked = Tokens::check(here, layers.vocab_size(), &bounds, Unknown::Error)?;
                let (mut rows, mut orders) = (vec![0; here.len()], vec![0; here.len()]);
                let damaged =
                    batch::lookup(&below, None, &checked, &bounds, &mut rows, &mut orders, Options::default())?;
                if let Some(damaged) = damaged {
                    return Err(layers.indexes[damaged].damaged());
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
}

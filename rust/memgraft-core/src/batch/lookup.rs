//! Longest matches at every position of a batch: parts of it on threads, runs of a part on lanes.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::bounds::Bounds;
use super::lanes::Walk;
use super::limits::Limits;
use super::options::{Instructions, Options};
use super::segments::Feeder;
use super::tokens::Tokens;
#[cfg(target_arch = "x86_64")]
use crate::automaton::Avx2;
use crate::automaton::{Portable, Prober, Table};
use crate::{Result, stop, threads};

/// Below this many tokens a thread costs more than it saves.
const TOKENS_PER_THREAD: usize = 1 << 14;
/// Longest run that one lane walks before it takes new work; half and twice as long measure alike.
const CHUNK: usize = 512;
/// Positions of one step of the first layer, between two looks whether the caller still waits.
const STEP: usize = 1 << 18;
/// Positions of one step of a layer above it: its answers stay in the cache until they are merged.
const OVER_STEP: usize = 1 << 14;

/// One index of a lookup.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layer<'a> {
    pub table: &'a Table,
    pub limits: Limits,
    /// What is added to the rows of this index.
    pub first_row: i32,
}

/// Fills `rows` and `orders` (-1 and 0 at a miss) for every position of `tokens` with the longest match of any layer; at
/// equal length the later layer's.
///
/// Returns the number of a layer whose table turned out to be damaged: the output is then not to be used.
///
/// # Errors
/// [`crate::Error::Argument`] where lengths or bounds do not fit the tokens, [`crate::Error::Interrupted`] where the caller
/// has asked the work to end.
pub(crate) fn lookup(
    layers: &[Layer<'_>],
    tokens: &Tokens<'_>,
    bounds: &Bounds<'_>,
    rows: &mut [i32],
    orders: &mut [u8],
    options: Options,
) -> Result<Option<usize>> {
    layers.iter().try_for_each(|layer| tokens.check_vocab_size(layer.table.vocab_size()))?;
    tokens.check_lengths([("rows", rows.len()), ("orders", orders.len())])?;
    bounds.check(tokens.len())?;
    let num_threads = options.threads.clamp(1, tokens.len().div_ceil(TOKENS_PER_THREAD).max(1));
    let part = tokens.len().div_ceil(num_threads).max(1);
    let damaged = AtomicUsize::new(usize::MAX);
    let pieces = rows.chunks_mut(part).zip(orders.chunks_mut(part)).enumerate();
    let results = threads::over(pieces, |(piece, (rows, orders)): (usize, (&mut [i32], &mut [u8]))| -> Result<()> {
        let (mut over_rows, mut over_orders) = (Vec::new(), Vec::new());
        for (number, layer) in layers.iter().enumerate() {
            let length = if number == 0 { STEP } else { OVER_STEP };
            let mut start = piece * part;
            for (rows, orders) in rows.chunks_mut(length).zip(orders.chunks_mut(length)) {
                stop::check()?;
                let sound = if number == 0 {
                    layer.answer(tokens, bounds, start, rows, orders, options)
                } else {
                    over_rows.resize(OVER_STEP, 0);
                    over_orders.resize(OVER_STEP, 0);
                    let over = (&mut over_rows[..rows.len()], &mut over_orders[..rows.len()]);
                    let sound = layer.answer(tokens, bounds, start, over.0, over.1, options);
                    merge(rows, orders, over.0, over.1, layer.first_row);
                    sound
                };
                if !sound {
                    damaged.store(number, Ordering::Relaxed);
                }
                start += rows.len();
            }
        }
        Ok(())
    });
    results.into_iter().collect::<Result<()>>()?;
    Ok(Some(damaged.into_inner()).filter(|&number| number < layers.len()))
}

impl Layer<'_> {
    /// Fills `rows` and `orders` for the positions from `start` on; false where the table is damaged.
    fn answer(
        &self,
        tokens: &Tokens<'_>,
        bounds: &Bounds<'_>,
        start: usize,
        rows: &mut [i32],
        orders: &mut [u8],
        options: Options,
    ) -> bool {
        let Self { table, limits, .. } = *self;
        // Every lane gets work, and no lane more than a chunk at a time.
        let chunk = rows.len().div_ceil(options.lanes.max(1)).clamp(64, CHUNK);
        let feeder = Feeder::new(tokens, bounds, start, start + rows.len(), chunk, limits.max_order);
        walk_all(&mut Walk { table, limits, tokens, first: start, rows, orders, feeder }, options)
    }
}

/// Takes the answers of `over`, rows counted from `first_row`, where they are hits and at least as long.
pub(crate) fn merge(rows: &mut [i32], orders: &mut [u8], over_rows: &[i32], over_orders: &[u8], first_row: i32) {
    let below = rows.iter_mut().zip(orders);
    for ((row, order), (&over_row, &over_order)) in below.zip(over_rows.iter().zip(over_orders)) {
        let takes = over_order >= (*order).max(1);
        // Wraps at a miss alone, whose sum is not taken.
        *row = if takes { over_row.wrapping_add(first_row) } else { *row };
        *order = if takes { over_order } else { *order };
    }
}

/// Runs the lanes the best way this processor and `options` allow.
fn walk_all(walk: &mut Walk<'_, '_>, options: Options) -> bool {
    #[cfg(target_arch = "x86_64")]
    if let Some(avx2) = Avx2::detect().filter(|_| options.instructions == Instructions::Best) {
        // SAFETY: `avx2` exists, so the processor has the features the function is compiled for.
        return unsafe { walk_avx2(walk, options, avx2) };
    }
    walk_with(walk, options, Portable)
}

/// [`walk_with`] compiled for AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
fn walk_avx2(walk: &mut Walk<'_, '_>, options: Options, avx2: Avx2) -> bool {
    walk_with(walk, options, avx2)
}

#[inline(always)]
fn walk_with<P: Prober>(walk: &mut Walk<'_, '_>, options: Options, prober: P) -> bool {
    match (options.lanes, options.prefetch) {
        (0 | 1, true) => walk.run::<P, 1, true>(prober),
        (0 | 1, false) => walk.run::<P, 1, false>(prober),
        (2..=8, true) => walk.run::<P, 8, true>(prober),
        (9..=16, true) => walk.run::<P, 16, true>(prober),
        (_, true) => walk.run::<P, 32, true>(prober),
        (_, false) => walk.run::<P, 16, false>(prober),
    }
}

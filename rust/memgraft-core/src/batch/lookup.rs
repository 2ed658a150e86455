//! Longest matches at every position of a batch: parts of it on threads, runs of a part on lanes.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicUsize, Ordering};

use super::bounds::Bounds;
use super::extending::{Room, pick};
use super::extensions::Extensions;
use super::lanes::Walk;
use super::layer::Layer;
use super::options::{Instructions, Options};
use super::segments::Feeder;
use super::tokens::Tokens;
#[cfg(target_arch = "x86_64")]
use crate::automaton::Avx2;
use crate::automaton::{Portable, Prober};
use crate::{Result, stop, threads};

/// Below this many tokens a thread costs more than it saves.
const TOKENS_PER_THREAD: usize = 1 << 14;
/// Longest run that one lane walks before it takes new work; half and twice as long measure alike.
const CHUNK: usize = 512;
/// Positions of one step, between two looks whether the caller still waits.
const STEP: usize = 1 << 18;
/// Positions of one step of several layers: answers stay in the cache until those above are put over them.
const STACK_STEP: usize = 1 << 16;

/// Fills `rows` and `orders` (-1 and 0 at a miss) for every position of `tokens` with the longest match of any layer; at
/// equal length the later layer's. `above` holds the keys of layers above all of `layers`.
///
/// Returns the number of a layer whose table turned out to be damaged: the output is then not to be used.
///
/// # Errors
/// [`crate::Error::Argument`] where lengths or bounds do not fit the tokens, [`crate::Error::Interrupted`] where the caller
/// has asked the work to end.
pub(crate) fn lookup(
    layers: &[Layer<'_>],
    above: Option<&Extensions>,
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
    let step = if layers.len() > 1 || above.is_some() { STACK_STEP } else { STEP };
    let damaged = AtomicUsize::new(usize::MAX);
    let pieces = rows.chunks_mut(part).zip(orders.chunks_mut(part)).enumerate();
    let results = threads::over(pieces, |(piece, (rows, orders)): (usize, (&mut [i32], &mut [u8]))| -> Result<()> {
        let mut above = above.map(|above| (above, Box::<Room>::default()));
        let mut start = piece * part;
        for (rows, orders) in rows.chunks_mut(step).zip(orders.chunks_mut(step)) {
            stop::check()?;
            for (number, layer) in layers.iter().enumerate() {
                if !layer.answer((tokens, bounds), start, rows, orders, number > 0, options) {
                    damaged.store(number, Ordering::Relaxed);
                }
            }
            if let Some((above, room)) = &mut above {
                extend(above, room, (tokens, bounds), start, rows, orders, options);
            }
            start += rows.len();
        }
        Ok(())
    });
    results.into_iter().collect::<Result<()>>()?;
    Ok(Some(damaged.into_inner()).filter(|&number| number < layers.len()))
}

impl Layer<'_> {
    /// Fills `rows` and `orders` for the positions from `start` on, or puts answers over those there; false where the table is
    /// damaged.
    fn answer(
        &self,
        (tokens, bounds): (&Tokens<'_>, &Bounds<'_>),
        start: usize,
        rows: &mut [i32],
        orders: &mut [u8],
        over: bool,
        options: Options,
    ) -> bool {
        let Self { table, limits, .. } = *self;
        // Every lane gets work, and no lane more than a chunk at a time.
        let chunk = rows.len().div_ceil(options.lanes.max(1)).clamp(64, CHUNK);
        let feeder = Feeder::new(tokens, bounds, start, start + rows.len(), chunk, limits.max_order);
        let over = over.then_some(self.first_row);
        walk_all(&mut Walk { table, limits, tokens, first: start, rows, orders, over, feeder }, options)
    }
}

/// [`Extensions::extend`] the best way this processor and `options` allow.
fn extend(
    above: &Extensions,
    room: &mut Room,
    text: (&Tokens<'_>, &Bounds<'_>),
    start: usize,
    rows: &mut [i32],
    orders: &mut [u8],
    options: Options,
) {
    #[cfg(target_arch = "x86_64")]
    if Avx2::detect().filter(|_| options.instructions == Instructions::Best).is_some() {
        // SAFETY: `detect` found the features the function is compiled for.
        let pick = |above: &Extensions, room: &mut Room, rows: &[i32], orders: &[u8]| unsafe {
            pick_avx2(above, room, rows, orders)
        };
        return above.extend(room, &pick, text, start, rows, orders);
    }
    above.extend(room, &pick, text, start, rows, orders);
}

/// [`pick`] compiled for AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
fn pick_avx2(above: &Extensions, room: &mut Room, rows: &[i32], orders: &[u8]) -> usize {
    pick(above, room, rows, orders)
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

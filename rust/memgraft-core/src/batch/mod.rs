//! Longest matches at every position of a batch: interleaved lanes, threads
//! per call, caller-owned output.

mod lanes;
mod segments;

use std::sync::atomic::{AtomicBool, Ordering};

pub use segments::Bounds;

use crate::automaton::Table;
use crate::{Error, Result};
use segments::Feeder;

/// Below this many tokens a thread costs more than it saves.
const TOKENS_PER_THREAD: usize = 1 << 14;
/// Longest run that one lane walks before it takes new work.
const CHUNK: usize = 2048;

/// How to run a lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Threads at most; small batches run on the calling thread alone.
    pub threads: usize,
    /// Lanes per thread: 1, 4, 8, 12, 16 or 24.
    pub lanes: usize,
    /// Whether lanes prefetch.
    pub prefetch: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { threads: 1, lanes: 16, prefetch: true }
    }
}

/// What a token outside the vocabulary does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unknown {
    /// An error that names its position.
    #[default]
    Error,
    /// It matches nothing, and nothing matches across it.
    Miss,
}

/// Fills `rows` and `orders` (-1 and 0 at a miss) for every position of `tokens`.
///
/// Returns false if the table turned out to be damaged: the output is then not to be used.
///
/// # Errors
/// [`Error::Argument`] where lengths or bounds do not fit the tokens.
pub(crate) fn lookup(
    table: &Table,
    limits: Limits,
    tokens: &[u32],
    bounds: &Bounds<'_>,
    rows: &mut [i32],
    orders: &mut [u8],
    options: Options,
) -> Result<bool> {
    for (name, len) in [("rows", rows.len()), ("orders", orders.len())] {
        if len != tokens.len() {
            return Err(Error::argument(format!("{name}: expected {} elements, one a token, got {len}", tokens.len())));
        }
    }
    bounds.check(tokens.len())?;
    let threads = options.threads.clamp(1, tokens.len().div_ceil(TOKENS_PER_THREAD).max(1));
    let part = tokens.len().div_ceil(threads).max(1);
    // Every lane gets work, and no lane more than a chunk at a time.
    let chunk = part.div_ceil(options.lanes.max(1)).clamp(64, CHUNK);
    let damaged = AtomicBool::new(false);
    let run = |start: usize, rows: &mut [i32], orders: &mut [u8]| {
        let feeder = Feeder::new(tokens, bounds, start, start + rows.len(), chunk, limits.max_order);
        let mut walk = lanes::Walk { table, limits, tokens, first: start, rows, orders, feeder };
        let fine = match (options.lanes, options.prefetch) {
            (0 | 1, false) => walk.run::<1, false>(),
            (0 | 1, true) => walk.run::<1, true>(),
            (2..=4, true) => walk.run::<4, true>(),
            (5..=8, true) => walk.run::<8, true>(),
            (9..=12, true) => walk.run::<12, true>(),
            (13..=16, true) => walk.run::<16, true>(),
            (_, true) => walk.run::<24, true>(),
            (_, false) => walk.run::<16, false>(),
        };
        if !fine {
            damaged.store(true, Ordering::Relaxed);
        }
    };
    if threads == 1 {
        run(0, rows, orders);
    } else {
        std::thread::scope(|scope| {
            let mut pieces = rows.chunks_mut(part).zip(orders.chunks_mut(part)).enumerate();
            let own = pieces.next();
            for (i, (rows, orders)) in pieces {
                scope.spawn(move || run(i * part, rows, orders));
            }
            if let Some((_, (rows, orders))) = own {
                run(0, rows, orders);
            }
        });
    }
    Ok(!damaged.load(Ordering::Relaxed))
}

/// What answers may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Rows are smaller than this.
    pub num_keys: u32,
    /// Orders are at most this.
    pub max_order: u32,
}

/// Checks that every token lies inside the vocabulary.
///
/// # Errors
/// [`Error::Token`] that names the first position (row and column with a `width`).
pub fn check_tokens(tokens: &[u32], vocab_size: u32, width: Option<usize>) -> Result<()> {
    // One branch-free pass that the compiler vectorises; the position only where it is needed.
    let largest = tokens.iter().fold(0, |a, &b| a.max(b));
    if largest < vocab_size {
        return Ok(());
    }
    match tokens.iter().position(|&token| token >= vocab_size) {
        Some(at) => Err(token_error(at, i64::from(tokens[at]), vocab_size, width)),
        None => Ok(()),
    }
}

/// The error for `token` at flat position `at`.
#[must_use]
pub fn token_error(at: usize, token: i64, vocab_size: u32, width: Option<usize>) -> Error {
    let place = match width.filter(|&width| width > 0) {
        Some(width) => format!("[{}, {}]", at / width, at % width),
        None => format!("[{at}]"),
    };
    let message = format!(
        "tokens{place}: {token} lies outside the vocabulary of {vocab_size}; \
         use the tokenizer the keys were mined with, or unknown=\"miss\" to let such tokens match nothing"
    );
    Error::Token { message }
}

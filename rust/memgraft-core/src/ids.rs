//! Ids as newtypes, the limits of the format, and the one home of `as` casts.

#![forbid(unsafe_code)]

use crate::{Error, Result};

/// Longest key in tokens.
pub const MAX_ORDER: usize = 16;
/// Largest vocabulary; tokens are smaller than this.
pub const MAX_VOCAB_SIZE: u32 = 1 << 20;
/// Most keys of one set: rows are non-negative `i32` on the Python side.
pub const MAX_KEYS: u64 = (1 << 31) - 1;

/// One tokenizer id, smaller than the vocabulary size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId(pub u32);

/// A key's place in the bank; rows run from the most to the least frequent key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowId(pub u32);

/// A state of the automaton: what a sequence must remember between two tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StateId(pub u32);

impl StateId {
    /// The state before the first token of a segment.
    pub const START: Self = Self(0);
}

/// The length of a key, 1 to [`MAX_ORDER`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Order(pub u8);

const _: () = assert!(usize::BITS == 64, "memgraft addresses files larger than 4 GiB: 64-bit targets only");

/// `u32` to `usize`, lossless.
#[inline(always)]
#[must_use]
pub const fn usize_of(value: u32) -> usize {
    value as usize
}

/// `u64` to `usize`, lossless on the 64-bit targets this crate builds for.
#[inline(always)]
#[must_use]
pub const fn usize_of_u64(value: u64) -> usize {
    value as usize
}

/// `usize` to `u64`, lossless.
#[inline(always)]
#[must_use]
pub const fn u64_of(value: usize) -> u64 {
    value as u64
}

/// The low 32 bits.
#[inline(always)]
#[must_use]
pub const fn low_u32(value: u64) -> u32 {
    value as u32
}

/// The low 8 bits.
#[inline(always)]
#[must_use]
pub const fn low_u8(value: u32) -> u8 {
    value as u8
}

/// A row as callers see it: the bits of a `u32`, with `u32::MAX` read as -1.
#[inline(always)]
#[must_use]
pub const fn row_as_i32(value: u32) -> i32 {
    value as i32
}

/// `usize` to `u32` where the caller has checked the limit; saturates rather than wraps.
#[inline(always)]
#[must_use]
pub const fn saturating_u32(value: usize) -> u32 {
    if value > u32::MAX as usize { u32::MAX } else { value as u32 }
}

/// `value` as `u32`, or a limit error that names `what`.
///
/// # Errors
/// [`Error::Limit`] above `u32::MAX`.
pub fn fit_u32(value: usize, what: &str) -> Result<u32> {
    u32::try_from(value)
        .map_err(|_| Error::Limit { message: format!("{what}: {value} does not fit 32 bits; split the set") })
}

/// Checks a vocabulary size.
///
/// # Errors
/// [`Error::Argument`] outside `1..=MAX_VOCAB_SIZE`.
pub fn check_vocab_size(vocab_size: u32) -> Result<()> {
    if vocab_size == 0 || vocab_size > MAX_VOCAB_SIZE {
        return Err(Error::argument(format!(
            "vocab_size: expected 1 to {MAX_VOCAB_SIZE}, got {vocab_size}; pass the tokenizer's number of ids"
        )));
    }
    Ok(())
}

//! Ids as newtypes, the limits of the format, and the one home of `as` casts.

#![allow(clippy::as_conversions, reason = "every cast of the crate is here, with what makes it right")]

use crate::{Error, Result};

/// Longest key in tokens.
pub const MAX_ORDER: usize = 16;
/// Largest vocabulary; tokens are smaller than this.
pub const MAX_VOCAB_SIZE: u32 = 1 << 20;
/// Most keys of one set: rows are non-negative `i32` on the Python side.
pub const MAX_KEYS: u64 = (1 << 31) - 1;

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

const _: () = assert!(usize::BITS == 64, "memgraft addresses files larger than 4 GiB: 64-bit targets only");

/// `u32` to `usize`, lossless.
#[inline(always)]
#[must_use]
pub const fn usize_of(value: u32) -> usize {
    value as usize
}

/// `u8` to `u32`, lossless, where `From` cannot be called.
#[inline(always)]
#[must_use]
pub const fn u32_of(value: u8) -> u32 {
    value as u32
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

/// A row of callers as an index; a miss lies past every table.
#[inline(always)]
#[must_use]
pub const fn usize_of_row(row: i32) -> usize {
    row.cast_unsigned() as usize
}

/// `usize` to `u32` where the caller has checked the limit; saturates rather than wraps.
#[inline(always)]
#[must_use]
pub const fn saturating_u32(value: usize) -> u32 {
    if value > u32::MAX as usize { u32::MAX } else { value as u32 }
}

/// An integer that callers hold token ids in.
pub(crate) trait LowBits: Copy {
    /// The low 32 bits, those of the sign continued.
    fn low(self) -> u32;
}

macro_rules! low_bits {
    ($($kind:ty)*) => {
        $(
            impl LowBits for $kind {
                #[inline(always)]
                #[allow(clippy::cast_sign_loss, clippy::cast_possible_truncation, trivial_numeric_casts)]
                fn low(self) -> u32 {
                    self as u32
                }
            }
        )*
    };
}

low_bits!(i64 i32 u32 u16 u8 i16 u64);

/// `round(fraction * count)` for a fraction between 0 and 1.
#[must_use]
pub fn share_of(fraction: f64, count: usize) -> usize {
    (fraction * count as f64).round() as usize
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

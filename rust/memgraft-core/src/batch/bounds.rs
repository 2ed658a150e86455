//! Where look-back stops.

use crate::ids::u64_of;
use crate::{Error, Result};

/// Segment starts of a flat batch; look-back never crosses one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bounds<'a> {
    /// Each run of this many positions (a row of a 2-D batch) starts a segment.
    pub width: Option<usize>,
    /// A segment starts where the id differs from the one before. Positions of a negative id are padding: they miss,
    /// nothing matches across them, and their tokens may be anything.
    pub ids: Option<&'a [i64]>,
    /// A segment starts after this token.
    pub eos: Option<u32>,
    /// Ascending segment starts and one end, as flash-attention's `cu_seqlens`.
    pub cu_seqlens: Option<&'a [u64]>,
}

impl Bounds<'_> {
    /// Checks that the bounds fit a batch of `len` tokens.
    pub(super) fn check(&self, len: usize) -> Result<()> {
        if self.width.is_some_and(|width| width == 0 || !len.is_multiple_of(width)) {
            let width = self.width.unwrap_or(0);
            return Err(Error::argument(format!("width: expected a divisor of {len}, got {width}")));
        }
        if let Some(ids) = self.ids.filter(|ids| ids.len() != len) {
            let found = ids.len();
            return Err(Error::argument(format!("segments: expected {len} elements, one a token, got {found}")));
        }
        if let Some(ends) = self.cu_seqlens {
            let ascending = ends.windows(2).all(|pair| pair[0] <= pair[1]);
            if !ascending || ends.first() != Some(&0) || ends.last() != Some(&u64_of(len)) {
                let message = format!("cu_seqlens: expected ascending offsets from 0 to {len}, got {}", shown(ends));
                return Err(Error::argument(message));
            }
        }
        Ok(())
    }

    /// Whether position `at` is padding.
    pub(super) fn is_padding(&self, at: usize) -> bool {
        self.ids.and_then(|ids| ids.get(at)).is_some_and(|&id| id < 0)
    }
}

fn shown(ends: &[u64]) -> String {
    match ends {
        [] => "an empty array".into(),
        [first, .., last] if ends.len() > 8 => format!("[{first}, …, {last}]"),
        _ => format!("{ends:?}"),
    }
}

//! Where look-back stops, and the division of a batch into lane-sized runs.

#![forbid(unsafe_code)]

use super::tokens::{Tokens, first};
use crate::ids::{u64_of, usize_of, usize_of_u64};
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

    /// Whether a segment starts at `at > 0`.
    fn starts(&self, tokens: &Tokens<'_>, at: usize) -> bool {
        self.width.is_some_and(|width| at.is_multiple_of(width))
            || self.ids.is_some_and(|ids| ids[at] != ids[at - 1])
            || self.eos.is_some_and(|eos| tokens.find(eos, at - 1..at).is_some())
            || self.cu_seqlens.is_some_and(|ends| ends.binary_search(&u64_of(at)).is_ok())
    }

    /// The first segment start in `from + 1..limit`, or `limit`.
    fn next_start(&self, tokens: &Tokens<'_>, from: usize, limit: usize) -> usize {
        let mut end = limit;
        if let Some(width) = self.width {
            end = end.min((from / width + 1) * width);
        }
        if let Some(ends) = self.cu_seqlens {
            let i = ends.partition_point(|&end| end <= u64_of(from));
            end = end.min(ends.get(i).map_or(end, |&end| usize_of_u64(end)));
        }
        if let Some(ids) = self.ids {
            let here = ids[from];
            end = first(&ids[from..end], |id| id != here).map_or(end, |n| from + n);
        }
        if let Some(eos) = self.eos {
            end = tokens.find(eos, from..end).map_or(end, |at| at + 1);
        }
        end.min(limit)
    }
}

fn shown(ends: &[u64]) -> String {
    match ends {
        [] => "an empty array".into(),
        [first, .., last] if ends.len() > 8 => format!("[{first}, …, {last}]"),
        _ => format!("{ends:?}"),
    }
}

/// A run for one lane: read `warm..start` without output, then answer `start..end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub warm: usize,
    pub start: usize,
    pub end: usize,
    /// Whether all of `start..end` is padding, which misses without being read.
    pub padding: bool,
}

/// Cuts `start..end` of a batch into runs that no segment start crosses.
#[derive(Debug)]
pub(super) struct Feeder<'a> {
    tokens: &'a Tokens<'a>,
    bounds: Bounds<'a>,
    at: usize,
    end: usize,
    chunk: usize,
    /// Where the segment of `at` starts, or `warmth` before `at` if that is later.
    reach: usize,
    segment_end: usize,
    warmth: usize,
}

impl<'a> Feeder<'a> {
    pub fn new(
        tokens: &'a Tokens<'a>,
        bounds: &Bounds<'a>,
        start: usize,
        end: usize,
        chunk: usize,
        max_order: u32,
    ) -> Self {
        let warmth = usize_of(max_order).saturating_sub(1);
        let earliest = start.saturating_sub(warmth);
        let reach = (earliest + 1..=start).rev().find(|&at| at < tokens.len() && bounds.starts(tokens, at));
        let reach = reach.unwrap_or(earliest);
        Self { tokens, bounds: *bounds, at: start, end, chunk, reach, segment_end: start, warmth }
    }

    /// Positions of the longest run.
    pub fn longest(&self) -> usize {
        self.warmth + self.chunk
    }
}

impl Iterator for Feeder<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        if self.at >= self.end {
            return None;
        }
        let start = self.at;
        if start == self.segment_end {
            // `segment_end` was only cut by the end of this part if there is nothing left to read.
            self.segment_end = self.bounds.next_start(self.tokens, start, self.end);
        }
        let end = self.segment_end.min(start + self.chunk);
        let warm = self.reach.max(start.saturating_sub(self.warmth));
        self.at = end;
        if end == self.segment_end {
            self.reach = end;
        }
        Some(Run { warm, start, end, padding: self.bounds.is_padding(start) })
    }
}

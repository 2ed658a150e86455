//! The division of a batch into lane-sized runs that no segment start crosses.

use super::bounds::Bounds;
use super::tokens::{Tokens, first};
use crate::ids::{u64_of, usize_of, usize_of_u64};

/// Whether a segment starts at `at > 0`.
pub(super) fn starts(bounds: &Bounds<'_>, tokens: &Tokens<'_>, at: usize) -> bool {
    bounds.width.is_some_and(|width| at.is_multiple_of(width))
        || bounds.ids.is_some_and(|ids| ids[at] != ids[at - 1])
        || bounds.eos.is_some_and(|eos| tokens.find(eos, at - 1..at).is_some())
        || bounds.cu_seqlens.is_some_and(|ends| ends.binary_search(&u64_of(at)).is_ok())
}

/// The first segment start in `from + 1..limit`, or `limit`.
fn next_start(bounds: &Bounds<'_>, tokens: &Tokens<'_>, from: usize, limit: usize) -> usize {
    let mut end = limit;
    if let Some(width) = bounds.width {
        end = end.min((from / width + 1) * width);
    }
    if let Some(ends) = bounds.cu_seqlens {
        let i = ends.partition_point(|&end| end <= u64_of(from));
        end = end.min(ends.get(i).map_or(end, |&end| usize_of_u64(end)));
    }
    if let Some(ids) = bounds.ids {
        let here = ids[from];
        end = first(&ids[from..end], |id| id != here).map_or(end, |n| from + n);
    }
    if let Some(eos) = bounds.eos {
        end = tokens.find(eos, from..end).map_or(end, |at| at + 1);
    }
    end.min(limit)
}

/// A run for one lane: read `warm..start` without output, then answer `start..end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LaneRun {
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
        let reach = (earliest + 1..=start).rev().find(|&at| at < tokens.len() && starts(bounds, tokens, at));
        let reach = reach.unwrap_or(earliest);
        Self { tokens, bounds: *bounds, at: start, end, chunk, reach, segment_end: start, warmth }
    }

    /// Positions of the longest run.
    pub fn longest(&self) -> usize {
        self.warmth + self.chunk
    }
}

impl Iterator for Feeder<'_> {
    type Item = LaneRun;

    fn next(&mut self) -> Option<LaneRun> {
        if self.at >= self.end {
            return None;
        }
        let start = self.at;
        if start == self.segment_end {
            // `segment_end` was only cut by the end of this part if there is nothing left to read.
            self.segment_end = next_start(&self.bounds, self.tokens, start, self.end);
        }
        let end = self.segment_end.min(start + self.chunk);
        let warm = self.reach.max(start.saturating_sub(self.warmth));
        self.at = end;
        if end == self.segment_end {
            self.reach = end;
        }
        Some(LaneRun { warm, start, end, padding: self.bounds.is_padding(start) })
    }
}

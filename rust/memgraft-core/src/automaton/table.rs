//! The transition table: 64-byte lines, the probe, the single step.

use super::probe::{Portable, Prober};
use super::view::{Edge, FAN, View};
use super::words::{LINE, root_lines};
use crate::format::Store;
use crate::ids::{MAX_ORDER, StateId, saturating_u32, usize_of};
use crate::{Error, Result};

/// A run of lines whose blocks all spread over `lines` home lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// First line.
    pub start: u32,
    /// Home lines of each block; 1 where a block fits one line or part of one.
    pub lines: u32,
}

/// What reading one token gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The state after the token.
    pub state: StateId,
    /// Row of the longest key that ends here, or [`NO_ROW`](super::NO_ROW).
    pub row: u32,
    /// Its order, or 0.
    pub order: u8,
}

/// The table: the root row, then the blocks.
#[derive(Debug, Clone)]
pub struct Table {
    words: Store<u32>,
    regions: Vec<Region>,
    fan: Box<[u32; FAN]>,
    edge: Box<Edge>,
    fan_shift: u32,
    vocab_size: u32,
    max_spill: u32,
}

impl Table {
    /// Checks the parts, of which `words` start at a multiple of 64 bytes, and derives what lookups need; O(regions).
    ///
    /// # Errors
    /// [`Error::Argument`] that says which part is wrong.
    pub fn new(
        words: Store<u32>,
        regions: Vec<Region>,
        fan_shift: u32,
        vocab_size: u32,
        max_spill: u32,
    ) -> Result<Self> {
        let bad = |what: &str| Err(Error::argument(format!("transition table: {what}")));
        let num_lines = words.len() / LINE;
        if !words.len().is_multiple_of(LINE) || num_lines < usize_of(root_lines(vocab_size)) || num_lines > 1 << 30 {
            return bad("its length is not that of a root row and whole lines");
        }
        if !words.as_ptr().addr().is_multiple_of(LINE * 4) {
            return bad("it does not start at a multiple of 64 bytes");
        }
        let num_lines = saturating_u32(num_lines);
        // A spill limit beyond the table would only let a damaged file run in circles for longer.
        if fan_shift > 20 || max_spill > 1 << 18 || max_spill >= num_lines {
            return bad("its parameters are out of range");
        }
        let granule = 1u32 << fan_shift;
        let ascending = regions.windows(2).all(|pair| pair[0].start < pair[1].start);
        let whole = regions.iter().all(|r| r.start.is_multiple_of(granule) && r.start <= num_lines && r.lines >= 1);
        if !ascending || !whole || regions.first().is_none_or(|r| r.start != 0) {
            return bad("its regions are out of order");
        }
        if usize_of(num_lines >> fan_shift) >= FAN {
            return bad("its region granule is too small for its length");
        }
        let mut fan = Box::new([1; FAN]);
        for region in &regions {
            fan[usize_of(region.start >> fan_shift)..].fill(region.lines);
        }
        let edge = Box::new(Edge::of(&words));
        Ok(Self { words, regions, fan, edge, fan_shift, vocab_size, max_spill })
    }

    /// The words, for writing.
    #[must_use]
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// The regions, for writing.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// `log2` of the lines per slot of the region map.
    #[must_use]
    pub fn fan_shift(&self) -> u32 {
        self.fan_shift
    }

    /// Most lines a probe goes past its home line.
    #[must_use]
    pub fn max_spill(&self) -> u32 {
        self.max_spill
    }

    /// Tokens are smaller than this.
    #[must_use]
    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    /// One past the largest state id.
    #[must_use]
    pub fn state_limit(&self) -> u64 {
        u64::from(self.view().last_unit) + 1
    }

    /// More probes than this for one token mean a damaged file.
    #[must_use]
    pub fn probe_limit(&self) -> u64 {
        (crate::ids::u64_of(MAX_ORDER) + 1) * (u64::from(self.max_spill) + 1)
    }

    /// The parts an inner loop needs.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        View::new(&self.words, &self.fan, &self.edge, self.fan_shift + 2, self.vocab_size)
    }

    /// Reads one token in `state`; `None` if the table is damaged and probes do not end.
    #[must_use]
    pub fn step(&self, state: StateId, token: u32) -> Option<Found> {
        let view = self.view();
        let token = view.admit(token);
        let mut place = view.locate(state.0, token);
        for _ in 0..self.probe_limit() {
            let probe = Portable.probe(view.part(place), token);
            if probe.hit {
                return Some(Found { state: StateId(probe.state), row: probe.row, order: probe.entry.order() });
            }
            place = view.go_on(probe.go_on, place, view.locate(probe.state, token));
        }
        None
    }
}

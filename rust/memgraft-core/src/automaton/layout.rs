//! Where each block goes: large blocks by size, then everything that fits one
//! line, hot blocks first, so that the lines a text visits most lie together.

use std::cmp::Reverse;

use super::table::Region;
use super::trie::Trie;
use super::view::FAN;
use super::words::{ENTRIES, LINE, NO_ROW, UNIT, root_lines};
use crate::ids::{saturating_u32, usize_of};
use crate::keyset::sort::by_descending_count;
use crate::{Error, Result};

/// Slots to aim at: half of what there are, since spill lines and padding can come close to doubling the estimate.
const FAN_SLOTS: u64 = crate::ids::u64_of(FAN) / 2;
/// Children per home line of a large block: a load of 0.8.
const PER_LINE: u32 = 4;

/// A state and its children.
#[derive(Debug, Clone, Copy)]
pub(super) struct StateBlock {
    /// Depth of the state, from 1.
    pub depth: u8,
    /// Place of the state among those of its level that have children.
    pub family: u32,
    /// First child in the level below.
    pub first: u32,
    /// Number of children.
    pub children: u32,
}

impl StateBlock {
    /// Home lines: 1 up to five children, else enough for a load of 0.8, rounded up to three significant bits.
    pub fn lines(&self) -> u32 {
        if usize_of(self.children) <= ENTRIES {
            return 1;
        }
        let wanted = self.children.div_ceil(PER_LINE);
        let step = 1 << (31 - wanted.leading_zeros()).saturating_sub(2);
        wanted.next_multiple_of(step)
    }

    fn units(&self) -> u32 {
        self.children.min(4)
    }
}

/// All blocks in the order of the table: large before small, then by heat, the occurrences of their children in the
/// corpus, then as the families come.
///
/// # Errors
/// [`crate::Error::Interrupted`] where the caller has asked the work to end.
pub(super) fn blocks(trie: &Trie, counts: &[u64]) -> Result<Vec<StateBlock>> {
    let mut blocks = Vec::new();
    let mut heat = Vec::new();
    for (depth, level) in trie.levels.iter().enumerate().skip(1) {
        // Rows lie anywhere: reading them is fast only many at a time, before anything branches on what was read.
        let of_node = |&row: &u32| if row == NO_ROW { 0 } else { counts[usize_of(row)] };
        let counts: Vec<u64> = level.row.iter().map(of_node).collect();
        for (family, nodes) in trie.families(depth).enumerate() {
            heat.push(counts[nodes.clone()].iter().fold(0, |sum: u64, &count| sum.saturating_add(count)));
            blocks.push(StateBlock {
                depth: crate::ids::low_u8(saturating_u32(depth)),
                family: saturating_u32(family),
                first: saturating_u32(nodes.start),
                children: saturating_u32(nodes.len()),
            });
        }
    }
    let mut order: Vec<u32> = (0..saturating_u32(blocks.len())).collect();
    by_descending_count(&mut order, |i| heat[usize_of(i)])?;
    drop(heat);
    // Few are large, and both sorts are stable.
    let large = |&i: &u32| blocks[usize_of(i)].lines() > 1;
    let mut sorted: Vec<u32> = order.iter().copied().filter(large).collect();
    sorted.sort_by_key(|&i| Reverse(blocks[usize_of(i)].lines()));
    Ok(sorted.iter().chain(order.iter().filter(|i| !large(i))).map(|&i| blocks[usize_of(i)]).collect())
}

/// Hands out lines and units, region by region.
#[derive(Debug)]
pub(super) struct Placer {
    pub regions: Vec<Region>,
    pub fan_shift: u32,
    next_line: u32,
    /// The line with exactly 1, 2 or 3 free units, if there is one.
    open: [Option<u32>; UNIT],
}

impl Placer {
    pub fn new(blocks: &[StateBlock], vocab_size: u32) -> Self {
        let estimate: u64 = blocks.iter().map(|b| u64::from(b.lines())).sum();
        let granules = (estimate + u64::from(root_lines(vocab_size))).div_ceil(FAN_SLOTS).max(1);
        let fan_shift = granules.next_power_of_two().trailing_zeros();
        let regions = vec![Region { start: 0, lines: 1 }];
        Self { regions, fan_shift, next_line: root_lines(vocab_size), open: [None; UNIT] }
    }

    /// Lines handed out so far.
    pub fn num_lines(&self) -> u32 {
        self.next_line
    }

    /// An upper bound of the lines that `blocks` will take.
    pub fn bound(&self, blocks: &[StateBlock]) -> usize {
        let spill = |b: &StateBlock| u64::from(b.children) / 5 + 2;
        let lines: u64 = blocks.iter().map(|b| u64::from(b.lines()) + if b.lines() > 1 { spill(b) } else { 0 }).sum();
        let padding = (1u64 << self.fan_shift) * 128;
        crate::ids::usize_of_u64(lines + padding) + usize_of(self.next_line)
    }

    /// The first line of a large block of `lines` home lines and `total` lines in all.
    pub fn large(&mut self, lines: u32, total: u32) -> Result<u32> {
        self.enter(lines)?;
        self.take(total)
    }

    /// The first unit of a block that fits one line.
    pub fn small(&mut self, block: &StateBlock) -> Result<u32> {
        self.enter(1)?;
        let units = block.units();
        let fitting = (usize_of(units)..UNIT).find(|&free| self.open[free].is_some());
        let (line, free) = match fitting.and_then(|free| Some((self.open[free].take()?, free))) {
            Some(found) => found,
            None => (self.take(1)?, UNIT),
        };
        let left = free - usize_of(units);
        if left > 0 && self.open[left].is_none() {
            self.open[left] = Some(line);
        }
        Ok(line * saturating_u32(UNIT) + saturating_u32(UNIT - free))
    }

    /// Starts a region of blocks with `lines` home lines, unless it is the current one.
    fn enter(&mut self, lines: u32) -> Result<()> {
        if self.regions.last().is_some_and(|region| region.lines != lines) {
            let granule = 1u32 << self.fan_shift;
            let start = self.next_line.checked_next_multiple_of(granule).ok_or_else(too_large)?;
            self.next_line = start;
            self.regions.push(Region { start, lines });
        }
        Ok(())
    }

    fn take(&mut self, lines: u32) -> Result<u32> {
        let first = self.next_line;
        self.next_line = first.checked_add(lines).filter(|&end| end <= 1 << 30).ok_or_else(too_large)?;
        Ok(first)
    }
}

fn too_large() -> Error {
    let bytes = (1u64 << 30) * crate::ids::u64_of(LINE * 4);
    Error::Limit {
        message: format!("the transition table would exceed {bytes} bytes; split the set into several banks"),
    }
}

//! The inner loop: walks of the automaton in turn, each prefetching the line
//! that its next turn reads.

use super::segments::{Feeder, Run};
use crate::automaton::{Prober, Table, View, prefetch};
use crate::ids::{low_u8, row_as_i32, u64_of, usize_of};

/// One walk in progress.
#[derive(Debug, Clone, Copy, Default)]
struct Lane {
    /// The unit to probe next.
    unit: u32,
    /// The token at `at`.
    token: u32,
    /// Position of the token being read.
    at: usize,
    /// First position to answer.
    start: usize,
    /// One past the last.
    end: usize,
}

/// The part of a batch that one thread answers.
pub(super) struct Walk<'a, 'o> {
    pub table: &'a Table,
    pub max_order: u32,
    /// None larger than the vocabulary size, which matches nothing.
    pub tokens: &'a [u32],
    /// Position of `rows[0]`.
    pub first: usize,
    pub rows: &'o mut [i32],
    pub orders: &'o mut [u8],
    pub feeder: Feeder<'a>,
}

impl Walk<'_, '_> {
    /// Answers everything the feeder gives; false if links run in circles, as only damaged ones do.
    #[inline(always)]
    pub fn run<P: Prober, const LANES: usize, const PREFETCH: bool>(&mut self, prober: P) -> bool {
        let view = self.table.view();
        let (tokens, first) = (self.tokens, self.first);
        let mut lanes = [Lane::default(); LANES];
        let mut active = 0;
        let mut budget = 0u64;
        while active < LANES
            && let Some(run) = self.feeder.next()
        {
            lanes[active] = self.enter(&view, run, &mut budget);
            active += 1;
        }
        while active > 0 {
            if budget == 0 {
                return false;
            }
            budget -= 1;
            let mut i = 0;
            while i < active {
                let lane = &mut lanes[i];
                // SAFETY: `unit` came out of `View::locate` or `View::next_line`, which cap it at the last unit.
                let line = unsafe { view.lines().get_unchecked(usize_of(lane.unit >> 2)) };
                let probe = prober.probe(line, lane.unit, lane.token);
                if lane.at >= lane.start {
                    // Written on a miss too, and then again: cheaper than a branch that cannot be predicted.
                    let out = lane.at - first;
                    debug_assert!(out < self.rows.len() && self.rows.len() == self.orders.len());
                    // SAFETY: the feeder's runs lie in `first..first + rows.len()`, both outputs have that length
                    // (`batch::lookup` cuts them alike), and `start <= at < end` holds for a lane in its run.
                    unsafe {
                        *self.rows.get_unchecked_mut(out) = row_as_i32(probe.row);
                        *self.orders.get_unchecked_mut(out) = low_u8(probe.order);
                    }
                }
                lane.at += usize::from(probe.hit);
                if lane.at == lane.end {
                    match self.feeder.next() {
                        Some(run) => lanes[i] = self.enter(&view, run, &mut budget),
                        None => {
                            active -= 1;
                            lanes[i] = lanes[active];
                            continue;
                        }
                    }
                } else {
                    debug_assert!(lane.at < tokens.len());
                    // SAFETY: `at < end`, and the feeder's runs end inside the tokens.
                    lane.token = unsafe { *tokens.get_unchecked(lane.at) };
                    let next = view.locate(probe.state, lane.token);
                    let spilt = view.next_line(lane.unit);
                    lane.unit = if probe.spill & !probe.hit { spilt } else { next };
                    if PREFETCH {
                        // SAFETY: as for the probe.
                        prefetch(unsafe { view.lines().get_unchecked(usize_of(lane.unit >> 2)) });
                    }
                }
                i += 1;
            }
        }
        true
    }

    fn enter(&self, view: &View<'_>, run: Run, budget: &mut u64) -> Lane {
        // A walk of n tokens makes at most 2n + max_order steps down and along links, each within the
        // spill limit; more, and the links of a damaged file run in circles.
        let steps = 2 * u64_of(run.end - run.warm) + u64::from(self.max_order) + 1;
        *budget = budget.saturating_add(steps.saturating_mul(u64::from(self.table.max_spill()) + 1));
        let token = self.tokens[run.warm];
        let unit = view.locate(0, token);
        prefetch(view.line(unit));
        Lane { unit, token, at: run.warm, start: run.start, end: run.end }
    }
}

//! The inner loop: up to 24 walks of the automaton in turn, each prefetching
//! the line that its next turn reads.

use super::Limits;
use super::segments::{Feeder, Run};
use crate::automaton::{Table, View};
use crate::ids::{low_u8, row_as_i32, u64_of};

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
    pub limits: Limits,
    pub tokens: &'a [u32],
    /// Position of `rows[0]`.
    pub first: usize,
    pub rows: &'o mut [i32],
    pub orders: &'o mut [u8],
    pub feeder: Feeder<'a>,
}

impl Walk<'_, '_> {
    /// Answers everything the feeder gives; false if the table is damaged.
    pub fn run<const LANES: usize, const PREFETCH: bool>(&mut self) -> bool {
        let view = self.table.view();
        let mut lanes = [Lane::default(); LANES];
        let mut active = 0;
        let mut budget = 0u64;
        let mut fine = true;
        while active < LANES
            && let Some(run) = self.feeder.next()
        {
            lanes[active] = self.enter(&view, run, &mut budget);
            active += 1;
        }
        // All lanes in turn while all have work, then the rest.
        while active > 0 {
            if budget == 0 {
                return false;
            }
            budget -= 1;
            let mut i = 0;
            while i < active {
                let lane = &mut lanes[i];
                let probe = view.probe(lane.unit, lane.token);
                if lane.at >= lane.start {
                    // Written on a miss too, and then again: cheaper than a branch that cannot be predicted.
                    let out = lane.at - self.first;
                    self.rows[out] = row_as_i32(probe.row);
                    self.orders[out] = low_u8(probe.order);
                }
                let row_fine = probe.row.wrapping_add(1) <= self.limits.num_keys;
                fine &= !probe.hit | (row_fine & (probe.order <= self.limits.max_order));
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
                    lane.token = view.admit(self.tokens[lane.at]);
                    let next = view.locate(probe.state, lane.token);
                    let spilt = view.next_line(lane.unit);
                    lane.unit = if probe.spill & !probe.hit { spilt } else { next };
                    if PREFETCH {
                        view.prefetch(lane.unit);
                    }
                }
                i += 1;
            }
        }
        fine
    }

    fn enter(&self, view: &View<'_>, run: Run, budget: &mut u64) -> Lane {
        // A walk of n tokens makes at most 2n + max_order steps down and along links, each within the
        // spill limit; more, and the links of a damaged file run in circles.
        let steps = 2 * u64_of(run.end - run.warm) + u64::from(self.limits.max_order) + 1;
        *budget = budget.saturating_add(steps.saturating_mul(u64::from(self.table.max_spill()) + 1));
        let token = view.admit(self.tokens[run.warm]);
        let unit = view.locate(0, token);
        view.prefetch(unit);
        Lane { unit, token, at: run.warm, start: run.start, end: run.end }
    }
}

//! The inner loop: walks of the automaton in turn, each prefetching the line
//! that its next turn reads.

use std::hint::select_unpredictable;
use std::slice::from_raw_parts;

use super::Limits;
use super::segments::Feeder;
use crate::automaton::{Prober, Table, View, prefetch, prefetch_at};
use crate::ids::{low_u8, row_as_i32, u64_of, usize_of};

/// Tokens ahead of each lane that are asked for.
const STREAM_AHEAD: usize = 32;

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
    /// None larger than the vocabulary size, which matches nothing.
    pub tokens: &'a [u32],
    /// Position of `rows[0]`.
    pub first: usize,
    pub rows: &'o mut [i32],
    pub orders: &'o mut [u8],
    pub feeder: Feeder<'a>,
}

impl Walk<'_, '_> {
    /// Answers everything the feeder gives; false if links run in circles or answers are impossible, as only damage does.
    #[inline(always)]
    pub fn run<P: Prober, const LANES: usize, const PREFETCH: bool>(&mut self, prober: P) -> bool {
        let view = self.table.view();
        let lines = view.lines();
        // Locals, so that no store through them makes the compiler read their pointers again.
        let (tokens, first) = (self.tokens, self.first);
        debug_assert!(self.rows.len() == self.orders.len());
        let (end, rows, orders) = (first + self.rows.len(), self.rows.as_mut_ptr(), self.orders.as_mut_ptr());
        // Where position 0 would be answered: one addition less in every step.
        let (rows, orders) = (rows.wrapping_sub(first), orders.wrapping_sub(first));
        let mut entrance = Entrance {
            view,
            feeder: &mut self.feeder,
            tokens,
            limits: self.limits,
            max_spill: self.table.max_spill(),
            rows,
            orders,
            budget: 0,
            sound: true,
        };
        let mut lanes = [Lane::default(); LANES];
        let mut active = 0;
        while active < LANES
            && let Some(lane) = entrance.next()
        {
            lanes[active] = lane;
            active += 1;
        }
        while active > 0 {
            if entrance.budget == 0 {
                return false;
            }
            entrance.budget -= 1;
            let mut i = 0;
            while i < active {
                // SAFETY: `i < active`, and `active` never grows past LANES.
                let lane = unsafe { lanes.get_unchecked_mut(i) };
                // SAFETY: `unit` came out of `View::locate` or `View::next_line`, which cap it at the last unit.
                let line = unsafe { lines.get_unchecked(usize_of(lane.unit >> 2)) };
                let probe = prober.probe(line, lane.unit, lane.token);
                if lane.at >= lane.start {
                    // Written on a miss too, and then again: cheaper than a branch that cannot be predicted.
                    debug_assert!(first <= lane.at && lane.at < end);
                    // SAFETY: the feeder's runs lie in `first..end`, which is what both outputs answer
                    // (`batch::lookup` cuts them alike), and `start <= at < end` holds for a lane in its run.
                    unsafe {
                        *rows.wrapping_add(lane.at) = row_as_i32(probe.row);
                        *orders.wrapping_add(lane.at) = low_u8(probe.order);
                    }
                }
                lane.at += usize::from(probe.hit);
                if lane.at == lane.end {
                    match entrance.swap(lane.start, lane.end) {
                        Some(fresh) => *lane = fresh,
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
                    if PREFETCH {
                        // One instruction a step; the lanes' streams are too many for the processor to foresee.
                        prefetch_at(tokens.as_ptr().wrapping_add(lane.at + STREAM_AHEAD));
                    }
                    let next = view.locate(probe.state, lane.token);
                    let spilt = view.next_line(lane.unit);
                    lane.unit = select_unpredictable(probe.spill & !probe.hit, spilt, next);
                    if PREFETCH {
                        // SAFETY: as for the probe.
                        prefetch(unsafe { lines.get_unchecked(usize_of(lane.unit >> 2)) });
                    }
                }
                i += 1;
            }
        }
        entrance.sound
    }
}

/// Where lanes get new work.
struct Entrance<'a, 'f> {
    view: View<'a>,
    feeder: &'f mut Feeder<'a>,
    tokens: &'a [u32],
    limits: Limits,
    max_spill: u32,
    /// Where position 0 would be answered.
    rows: *const i32,
    orders: *const u8,
    /// Rounds that the work handed out so far can take.
    budget: u64,
    /// Whether every answer so far is a possible one.
    sound: bool,
}

impl Entrance<'_, '_> {
    /// Looks over the answers to `start..end`, all written, while they are in the cache; then as [`Entrance::next`].
    #[cold]
    #[inline(never)]
    fn swap(&mut self, start: usize, end: usize) -> Option<Lane> {
        // SAFETY: the run lies in what `rows` and `orders` answer (see `Walk::run`), and no lane writes to it again.
        let (rows, orders) = unsafe {
            let rows = from_raw_parts(self.rows.wrapping_add(start), end - start);
            (rows, from_raw_parts(self.orders.wrapping_add(start), end - start))
        };
        self.sound &= self.limits.hold(rows, orders);
        self.next()
    }

    /// A lane at the start of the next run, its first line asked for; kept out of the inner loop.
    #[cold]
    #[inline(never)]
    fn next(&mut self) -> Option<Lane> {
        let run = self.feeder.next()?;
        // A walk of n tokens makes at most 2n + max_order steps down and along links, each within the
        // spill limit; more, and the links of a damaged file run in circles.
        let steps = 2 * u64_of(run.end - run.warm) + u64::from(self.limits.max_order) + 1;
        self.budget = self.budget.saturating_add(steps.saturating_mul(u64::from(self.max_spill) + 1));
        let token = self.tokens[run.warm];
        let unit = self.view.locate(0, token);
        prefetch(self.view.line(unit));
        Some(Lane { unit, token, at: run.warm, start: run.start, end: run.end })
    }
}

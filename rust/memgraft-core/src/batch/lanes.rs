//! The inner loop: walks of the automaton in turn, each prefetching the line
//! that its next turn reads.

use std::hint::select_unpredictable;

use super::segments::Feeder;
use super::{Limits, Tokens};
use crate::automaton::{Prober, Table, View, prefetch};
use crate::ids::{low_u8, row_as_i32, saturating_u32, u64_of, usize_of};

/// One walk in progress, in a part of the lanes' buffers that is its own.
#[derive(Debug, Clone, Copy, Default)]
struct Lane {
    /// The unit to probe next.
    unit: u32,
    /// The token at `at`.
    token: u32,
    /// Place in the buffers of the token being read.
    at: u32,
    /// One past the last place.
    end: u32,
    /// Place of the first position to answer; what lies before it was read for its context.
    start: u32,
    /// First place of this lane's part.
    part: u32,
    /// Position in the batch of `start`.
    position: usize,
}

/// The part of a batch that one thread answers.
pub(super) struct Walk<'a, 'o> {
    pub table: &'a Table,
    pub limits: Limits,
    pub tokens: &'a Tokens<'a>,
    /// Position of `rows[0]`.
    pub first: usize,
    pub rows: &'o mut [i32],
    pub orders: &'o mut [u8],
    pub feeder: Feeder<'a>,
}

/// Tokens that lanes read, and what they answer.
///
/// A lane's run is copied in when it begins and its answers are copied out when it ends. Two dozen runs read and
/// written where the caller has them would be more streams than a processor foresees, each store to a line that has
/// yet to come from memory; these buffers stay in the first caches.
struct Buffers {
    /// At each place the token, until it is answered; then the row.
    words: Vec<u32>,
    orders: Vec<u8>,
}

impl Walk<'_, '_> {
    /// Answers everything the feeder gives; false if links run in circles or answers are impossible, as only damage does.
    #[inline(always)]
    pub fn run<P: Prober, const LANES: usize, const PREFETCH: bool>(&mut self, prober: P) -> bool {
        let view = self.table.view();
        let lines = view.lines();
        let room = self.feeder.longest();
        let mut buffers = Buffers { words: vec![0; LANES * room], orders: vec![0; LANES * room] };
        let mut entrance = Entrance { view, walk: self, budget: 0, sound: true };
        let mut lanes = [Lane::default(); LANES];
        let mut active = 0;
        while active < LANES
            && let Some(lane) = entrance.next(saturating_u32(active * room), &mut buffers)
        {
            lanes[active] = lane;
            active += 1;
        }
        while active > 0 {
            if entrance.budget == 0 {
                return false;
            }
            entrance.budget -= 1;
            let (mut words, mut orders) = (buffers.words.as_mut_ptr(), buffers.orders.as_mut_ptr());
            let mut i = 0;
            while i < active {
                // SAFETY: `i < active`, and `active` never grows past LANES.
                let lane = unsafe { lanes.get_unchecked_mut(i) };
                // SAFETY: `unit` came out of `View::locate` or `View::next_line`, which cap it at the last unit.
                let line = unsafe { lines.get_unchecked(usize_of(lane.unit >> 2)) };
                let probe = prober.probe(line, lane.unit, lane.token);
                // Written on a miss too, and then again: cheaper than a branch that cannot be predicted.
                debug_assert!(lane.part <= lane.at && lane.at < lane.end);
                // SAFETY: `at < end`, and `Entrance::next` checked that `end` lies in the buffers.
                unsafe {
                    *words.add(usize_of(lane.at)) = probe.row;
                    *orders.add(usize_of(lane.at)) = low_u8(probe.order);
                }
                lane.at += u32::from(probe.hit);
                if lane.at == lane.end {
                    let fresh = entrance.swap(*lane, &mut buffers);
                    (words, orders) = (buffers.words.as_mut_ptr(), buffers.orders.as_mut_ptr());
                    match fresh {
                        Some(fresh) => *lane = fresh,
                        None => {
                            active -= 1;
                            lanes[i] = lanes[active];
                            continue;
                        }
                    }
                } else {
                    // SAFETY: as above.
                    let word = unsafe { *words.add(usize_of(lane.at)) };
                    // After a miss the row is there already.
                    lane.token = select_unpredictable(probe.hit, word, lane.token);
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

/// Where lanes get new work and leave what is done.
struct Entrance<'w, 'a, 'o> {
    view: View<'a>,
    walk: &'w mut Walk<'a, 'o>,
    /// Rounds that the work handed out so far can take.
    budget: u64,
    /// Whether every answer so far is a possible one.
    sound: bool,
}

impl Entrance<'_, '_, '_> {
    /// Hands over the answers of `done`, and gives its lane the next run.
    #[cold]
    #[inline(never)]
    fn swap(&mut self, done: Lane, buffers: &mut Buffers) -> Option<Lane> {
        let (places, first) = (usize_of(done.start)..usize_of(done.end), done.position - self.walk.first);
        let answers = first..first + places.len();
        let (words, orders) = (&buffers.words[places.clone()], &buffers.orders[places]);
        self.sound &= self.walk.limits.hold(words, orders);
        self.walk.rows[answers.clone()].iter_mut().zip(words).for_each(|(row, &word)| *row = row_as_i32(word));
        self.walk.orders[answers].copy_from_slice(orders);
        self.next(done.part, buffers)
    }

    /// A lane at the start of the next run, its tokens in the buffers from `part` on and its first line asked for.
    #[cold]
    #[inline(never)]
    fn next(&mut self, part: u32, buffers: &mut Buffers) -> Option<Lane> {
        let run = self.walk.feeder.next()?;
        // A walk of n tokens makes at most 2n + max_order steps down and along links, each within the
        // spill limit; more, and the links of a damaged file run in circles.
        let steps = 2 * u64_of(run.end - run.warm) + u64::from(self.walk.limits.max_order) + 1;
        self.budget = self.budget.saturating_add(steps.saturating_mul(u64::from(self.walk.table.max_spill()) + 1));
        let end = part + saturating_u32(run.end - run.warm);
        let words = &mut buffers.words[usize_of(part)..usize_of(end)];
        assert!(words.len() <= buffers.orders.len() - usize_of(part), "as many places for orders");
        self.walk.tokens.read(run.warm..run.end, words);
        let token = words[0];
        let unit = self.view.locate(0, token);
        prefetch(self.view.line(unit));
        let start = part + saturating_u32(run.start - run.warm);
        Some(Lane { unit, token, at: part, end, start, part, position: run.start })
    }
}

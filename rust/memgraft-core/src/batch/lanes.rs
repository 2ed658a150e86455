//! The inner loop: walks of the automaton in turn, each prefetching the line
//! that its next turn reads.

#![allow(unsafe_code)]

use std::hint::select_unpredictable;

use super::layer::merge;
use super::limits::Limits;
use super::segments::Feeder;
use super::tokens::Tokens;
use crate::automaton::{NO_ROW, Place, Prober, Table, TokenWord, View};
use crate::ids::{row_as_i32, saturating_u32, usize_of};

/// One walk in progress, in a part of the lanes' buffers that is its own.
#[derive(Debug, Clone, Copy, Default)]
struct Lane {
    /// Where to look for `token`.
    place: Place,
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
    /// The first row of this layer where it lies above others: [`merge`] then puts its answers over theirs. None at the lowest.
    pub over: Option<i32>,
    pub feeder: Feeder<'a>,
}

/// The tokens that lanes read and the answers that they write, one part for each lane.
///
/// [`Entrance::next`] copies a run of tokens in, and [`Entrance::leave`] copies its answers out. Lanes do not read and write
/// the caller's memory, because 64 and more streams there are more than a processor prefetches: each store would wait for
/// its line. These buffers stay in the first caches.
struct Buffers {
    /// A place holds the token until a lane has read it, and its row from then on.
    words: Vec<u32>,
    /// A place holds the token word that answered, which has the order, once a lane has read the place.
    entries: Vec<TokenWord>,
}

/// Probes for a lane's token, writes the answer, and on a hit moves the lane on to its next token; gives the probe.
///
/// A macro, because the same lines as an inlined function cost 25 instructions a token more.
macro_rules! read {
    ($lane:ident, $view:ident, $prober:ident, $words:ident, $entries:ident) => {{
        let (at, token) = ($lane.at, $lane.token);
        debug_assert!($lane.part <= at && at < $lane.end);
        let probe = $prober.probe($view.part($lane.place), token);
        // The lane writes on a miss too, and writes again at the next probe: a branch that cannot be predicted would cost
        // more. Only a hit moves `at`, so that the hit's answer is the last one written.
        // SAFETY: `at < end`, and `Entrance::next` checked that `end` lies in the buffers.
        let following = unsafe {
            let following = *$words.add(usize_of(at) + 1);
            *$words.add(usize_of(at)) = probe.row;
            *$entries.add(usize_of(at)) = probe.entry;
            following
        };
        $lane.token = select_unpredictable(probe.hit, following, token);
        $lane.at = at + u32::from(probe.hit);
        probe
    }};
}

impl Walk<'_, '_> {
    /// Answers everything the feeder gives; false if links run in circles or answers are impossible, as only damage does.
    #[inline(always)]
    pub fn run<P: Prober, const LANES: usize, const PREFETCH: bool>(&mut self, prober: P) -> bool {
        if LANES == 1 {
            return self.run_alone::<P, PREFETCH>(prober);
        }
        let view = self.table.view();
        let room = self.feeder.longest();
        // A lane probes once a round, and no token takes more probes than this. So after as many rounds a lane that stands
        // where it stood before walks in a circle.
        let patience = self.table.probe_limit();
        // One place more: the loop reads the token after a run's last too, and does not use it.
        let mut buffers =
            Buffers { words: vec![0; LANES * room + 1], entries: vec![TokenWord::default(); LANES * room + 1] };
        let mut entrance = Entrance { view, walk: self, sound: true, above: Vec::new() };
        let mut lanes = [Lane::default(); LANES];
        let mut active = 0;
        while active < LANES
            && let Some(lane) = entrance.next(saturating_u32(active * room), &mut buffers)
        {
            lanes[active] = lane;
            active += 1;
        }
        let (mut rounds, mut seen) = (patience, [(usize::MAX, 0); LANES]);
        while active > 0 {
            if rounds == 0 {
                if lanes[..active].iter().zip(&seen).any(|(lane, &seen)| seen == (lane.position, lane.at)) {
                    return false;
                }
                seen = lanes.map(|lane| (lane.position, lane.at));
                rounds = patience;
            }
            rounds -= 1;
            let mut ended = false;
            // Read again once a round, the pointers take no registers between rounds.
            let (mut words, mut entries) = (buffers.words.as_mut_ptr(), buffers.entries.as_mut_ptr());
            for lane in &mut lanes[..active] {
                let probe = read!(lane, view, prober, words, entries);
                if lane.at == lane.end {
                    match entrance.swap(*lane, &mut buffers) {
                        Some(fresh) => *lane = fresh,
                        None => ended = true,
                    }
                    (words, entries) = (buffers.words.as_mut_ptr(), buffers.entries.as_mut_ptr());
                    continue;
                }
                lane.place = view.go_on(probe.go_on, lane.place, view.locate(probe.state, lane.token));
                if PREFETCH {
                    view.expect(lane.place);
                }
            }
            if ended {
                let (mut left, mut i) = (active, 0);
                while i < left {
                    if lanes[i].at == lanes[i].end {
                        left -= 1;
                        lanes[i] = lanes[left];
                    } else {
                        i += 1;
                    }
                }
                active = left;
            }
        }
        entrance.sound
    }

    /// [`Walk::run`] with one lane. The compiler keeps it in registers, because no array of lanes is indexed between turns.
    #[inline(always)]
    fn run_alone<P: Prober, const PREFETCH: bool>(&mut self, prober: P) -> bool {
        let view = self.table.view();
        let room = self.feeder.longest();
        let patience = self.table.probe_limit();
        let mut buffers = Buffers { words: vec![0; room + 1], entries: vec![TokenWord::default(); room + 1] };
        let mut entrance = Entrance { view, walk: self, sound: true, above: Vec::new() };
        while let Some(mut lane) = entrance.next(0, &mut buffers) {
            let (words, entries) = (buffers.words.as_mut_ptr(), buffers.entries.as_mut_ptr());
            let (mut probes, mut seen) = (patience, u32::MAX);
            loop {
                let probe = read!(lane, view, prober, words, entries);
                if lane.at == lane.end {
                    break;
                }
                lane.place = view.go_on(probe.go_on, lane.place, view.locate(probe.state, lane.token));
                if PREFETCH {
                    view.expect(lane.place);
                }
                probes -= 1;
                if probes == 0 {
                    if lane.at == seen {
                        return false;
                    }
                    (probes, seen) = (patience, lane.at);
                }
            }
            entrance.leave(lane, &buffers);
        }
        entrance.sound
    }
}

/// Where lanes get new work and leave what is done.
struct Entrance<'w, 'a, 'o> {
    view: View<'a>,
    walk: &'w mut Walk<'a, 'o>,
    /// Whether every answer so far is a possible one.
    sound: bool,
    /// Room for the orders of a run that goes over what is there.
    above: Vec<u8>,
}

impl Entrance<'_, '_, '_> {
    /// Hands over the answers of `done`, and gives its lane the next run.
    #[cold]
    #[inline(never)]
    fn swap(&mut self, done: Lane, buffers: &mut Buffers) -> Option<Lane> {
        self.leave(done, buffers);
        self.next(done.part, buffers)
    }

    /// Hands over the answers of `done`.
    fn leave(&mut self, done: Lane, buffers: &Buffers) {
        let (places, first) = (usize_of(done.start)..usize_of(done.end), done.position - self.walk.first);
        let answers = first..first + places.len();
        let (words, entries) = (&buffers.words[places.clone()], &buffers.entries[places]);
        let (rows, orders) = (&mut self.walk.rows[answers.clone()], &mut self.walk.orders[answers]);
        if let Some(first_row) = self.walk.over {
            self.above.clear();
            self.above.extend(entries.iter().map(|entry| entry.order()));
            self.sound &= self.walk.limits.hold(words, &self.above);
            let above = words.iter().zip(&self.above);
            merge(rows, orders, above.map(|(&word, &order)| (row_as_i32(word), order)), first_row);
        } else {
            rows.iter_mut().zip(words).for_each(|(row, &word)| *row = row_as_i32(word));
            orders.iter_mut().zip(entries).for_each(|(found, &entry)| *found = entry.order());
            self.sound &= self.walk.limits.hold(words, orders);
        }
    }

    /// A lane at the start of the next run, its tokens in the buffers from `part` on and its first line asked for.
    #[cold]
    #[inline(never)]
    fn next(&mut self, part: u32, buffers: &mut Buffers) -> Option<Lane> {
        let run = loop {
            let run = self.walk.feeder.next()?;
            if !run.padding {
                break run;
            }
            if self.walk.over.is_some() {
                continue;
            }
            let answers = run.start - self.walk.first..run.end - self.walk.first;
            self.walk.rows[answers.clone()].fill(row_as_i32(NO_ROW));
            self.walk.orders[answers].fill(0);
        };
        let end = part + saturating_u32(run.end - run.warm);
        assert!(usize_of(end) < buffers.words.len().min(buffers.entries.len()), "expected a place after each run");
        let words = &mut buffers.words[usize_of(part)..usize_of(end)];
        self.walk.tokens.read(run.warm..run.end, words);
        let token = words[0];
        let place = self.view.locate(0, token);
        self.view.expect(place);
        let start = part + saturating_u32(run.start - run.warm);
        Some(Lane { place, token, at: part, end, start, part, position: run.start })
    }
}

#[cfg(test)]
mod tests {
    use crate::automaton::{Region, Table};
    use crate::batch::{Bounds, Layer, Limits, Options, Tokens, Unknown, lookup};
    use crate::format::{HugeBuffer, Store};

    /// All links lead to the start, which has no tokens: no walk gets on, however many lines a search may go past its
    /// home line.
    #[test]
    fn walks_that_do_not_get_on_end() {
        let lines = 2000;
        let map = HugeBuffer::zeroed(lines * 64).unwrap().freeze().unwrap();
        let words = Store::mapped(map.into(), 0..lines * 64).unwrap();
        let table = Table::new(words, vec![Region { start: 0, lines: 1 }], 0, 100, 1000).unwrap();
        let tokens: Vec<u32> = (0..100_000).map(|i| i % 100).collect();
        let checked = Tokens::check(&tokens[..], 100, &Bounds::default(), Unknown::Error).unwrap();
        let limits = Limits { num_keys: 5, max_order: 4 };
        let (mut rows, mut orders) = (vec![0; tokens.len()], vec![0; tokens.len()]);
        for lanes in [1, 32] {
            let options = Options { lanes, threads: 2, ..Options::default() };
            let layers = [Layer { table: &table, limits, first_row: 0 }];
            let damaged = lookup(&layers, None, &checked, &Bounds::default(), &mut rows, &mut orders, options).unwrap();
            assert_eq!(damaged, Some(0));
        }
        assert!(table.step(crate::ids::StateId::START, 7).is_none());
    }
}

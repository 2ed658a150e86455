//! The inner loop's view of a table: it turns a state and a token into a place, and a place into words.
//!
//! A state is the unit in which its block begins, and state 0 is the start, whose children are the root row: one unit for
//! each token. Blocks of equally many lines lie together in a region, so that a state's number tells over how many lines its
//! block spreads. The token chooses one of these lines, its home ([`super::words`]), and the search begins there.
//!
//! `locate` and `go_on` compute places without a check, because a state in a damaged table may be any number. `part`
//! checks instead: a place before the last two lines is read in the table, every other one in `Edge`, a copy of these
//! lines with room after them. So no word of a table leads outside of it.

#![allow(unsafe_code)]

use std::hint::select_unpredictable;

use super::prefetch::prefetch;
use super::probe::{Part, REACH};
use super::words::{LINE, UNIT, home};
use crate::ids::{StateId, saturating_u32, usize_of};

/// Lines at the end of a table from which a probe could read past the end, if the words there were wrong.
const EDGE_LINES: usize = 2;
const UNIT_BYTES: usize = UNIT * 4;
const LINE_BYTES: usize = LINE * 4;

/// Slots of the map from states to the lines of their blocks.
pub(super) const FAN: usize = 4096;

/// A copy of a table's last lines with room after them.
#[derive(Debug, Clone)]
#[repr(align(64))]
pub(super) struct Edge([u32; EDGE_LINES * LINE + REACH]);

impl Edge {
    pub fn of(words: &[u32]) -> Self {
        let mut copy = Self([0; _]);
        let words = &words[start_of_edge(words) / 4..];
        copy.0[..words.len()].copy_from_slice(words);
        copy
    }
}

/// Byte offset of the first of the last lines.
fn start_of_edge(words: &[u32]) -> usize {
    (words.len() / LINE).saturating_sub(EDGE_LINES) * LINE_BYTES
}

/// Where a part of a block may lie: the byte offset of a unit.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Place(usize);

/// Borrowed parts of a [`Table`](super::Table).
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    words: &'a [u32],
    fan: &'a [u32; FAN],
    edge: &'a Edge,
    /// [`start_of_edge`].
    edge_start: usize,
    /// `log2` of the units per slot of `fan`.
    unit_shift: u32,
    pub(super) last_unit: u32,
    vocab_size: u32,
}

impl<'a> View<'a> {
    /// Borrows the parts; `edge` is [`Edge::of`] the same `words`. `part` relies on `edge_start`, which is made here.
    pub(super) fn new(words: &'a [u32], fan: &'a [u32; FAN], edge: &'a Edge, unit_shift: u32, vocab_size: u32) -> Self {
        let last_unit = saturating_u32((words.len() / UNIT).saturating_sub(1));
        Self { words, fan, edge, edge_start: start_of_edge(words), unit_shift, last_unit, vocab_size }
    }

    /// The token itself, or the one past the vocabulary, which matches nothing.
    #[inline(always)]
    pub(crate) fn admit(&self, token: u32) -> u32 {
        token.min(self.vocab_size)
    }

    /// Whether `state` can belong to this table.
    #[must_use]
    #[inline(always)]
    pub fn owns(&self, state: StateId) -> bool {
        state.0 == 0 || (state.0 > self.vocab_size && state.0 <= self.last_unit)
    }

    /// Where to look for `token` in `state`.
    #[inline(always)]
    pub(crate) fn locate(&self, state: u32, token: u32) -> Place {
        let lines = self.fan[usize_of(state >> self.unit_shift) & (FAN - 1)];
        let unit = state.wrapping_add(home(token, lines) << 2);
        Place(usize_of(select_unpredictable(state == 0, token, unit)) * UNIT_BYTES)
    }

    /// The line after `place` if the block goes on there, else `next`.
    #[inline(always)]
    pub(crate) fn go_on(&self, go_on: bool, place: Place, next: Place) -> Place {
        Place(select_unpredictable(go_on, place.0.wrapping_add(LINE_BYTES), next.0))
    }

    /// Asks for the line at `place`.
    #[inline(always)]
    pub(crate) fn expect(&self, place: Place) {
        prefetch(self.words.as_ptr().wrapping_byte_add(place.0));
    }

    /// The words at `place`. Where `place` lies past the end, as only a damaged table's do, the words of the last unit.
    #[inline(always)]
    pub(crate) fn part(&self, place: Place) -> &'a Part {
        if place.0 < self.edge_start {
            debug_assert!(place.0.is_multiple_of(UNIT_BYTES), "places are made of units");
            // SAFETY: places are multiples of 16 bytes, so the words are aligned. This one lies before the edge, which is two
            // whole lines long: from `place` on the table has at least `REACH` words (asserted below).
            unsafe { &*self.words.as_ptr().byte_add(place.0).cast::<Part>() }
        } else {
            self.part_of_edge(place)
        }
    }

    #[cold]
    fn part_of_edge(&self, place: Place) -> &'a Part {
        let place = place.0.min(usize_of(self.last_unit) * UNIT_BYTES);
        let first = (place - self.edge_start) / 4;
        self.edge.0[first..].first_chunk().expect("expected room after the last unit")
    }
}

const _: () = assert!(REACH <= UNIT + EDGE_LINES * LINE, "parts before the edge end inside the table");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_the_words_of_the_table_and_of_its_last_unit_past_the_end() {
        for num_lines in 1..7 {
            let words: Vec<u32> = (1..=num_lines * LINE as u32).collect();
            let (fan, edge) = ([1; FAN], Edge::of(&words));
            let view = View::new(&words, &fan, &edge, 2, 3);
            for unit in 0..num_lines as usize * 4 + 70 {
                let first = unit.min(num_lines as usize * 4 - 1) * UNIT;
                let inside = &words[first..words.len().min(first + REACH)];
                assert_eq!(&view.part(Place(unit * UNIT_BYTES))[..inside.len()], inside);
            }
            assert_eq!(view.part(Place(usize::MAX - 15))[..UNIT], words[words.len() - UNIT..]);
        }
    }
}

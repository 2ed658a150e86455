//! Answers of an overlay at the positions that its sieve lets through, one by one; the index has the last word.

#![forbid(unsafe_code)]

use super::bounds::Bounds;
use super::layer::Layer;
use super::segments::starts;
use super::sieve::{BLOCK, LEAD, Room, Sieve};
use super::tokens::Tokens;
use crate::ids::{StateId, row_as_i32, usize_of};

/// Where one position in so many may end a key, walking over all is faster: alone, a key's tokens wait for memory one by one.
const DENSE: usize = 64;

/// How a stretch of positions was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sifted {
    /// In full.
    Done,
    /// So many positions passed that walking over all is faster; answers so far are right, and are the same again.
    Dense,
    /// The table is damaged.
    Damaged,
}

/// Sifts and weighs the first `num` places of a block, whatever the processor: number of places left in the room.
pub(super) type Test<'t> = &'t dyn Fn(&Sieve, &mut Room, usize, &[u8]) -> usize;

impl Layer<'_> {
    /// Puts this overlay's answers over those in `rows` and `orders`, for the positions from `start` on.
    pub(super) fn sifted(
        &self,
        (sieve, room): (&Sieve, &mut Room),
        test: Test<'_>,
        (tokens, bounds): (&Tokens<'_>, &Bounds<'_>),
        start: usize,
        rows: &mut [i32],
        orders: &mut [u8],
    ) -> Sifted {
        let (all, mut read, mut passed) = (rows.len(), 0, 0);
        for (rows, orders) in rows.chunks_mut(BLOCK).zip(orders.chunks_mut(BLOCK)) {
            let (first, num) = (start + read, rows.len());
            let lead = first.min(LEAD);
            // What stands before the batch is in no key that ends in it: the walk below stops at the start.
            tokens.read(first - lead..first + num, &mut room.words[LEAD - lead..LEAD + num]);
            let left = test(sieve, room, num, orders);
            read += num;
            passed += left;
            // A crowd of keys in one place makes no dense text.
            if passed * DENSE > read.max(all / 4) {
                return Sifted::Dense;
            }
            for (&place, &longest) in room.places[..left].iter().zip(&room.longest) {
                let at = usize_of(place);
                if bounds.is_padding(first + at) {
                    continue;
                }
                let reach = reach(bounds, tokens, first + at, usize_of(longest));
                let mut state = StateId::START;
                let mut answer = (0, 0);
                for &token in &room.words[LEAD + at + 1 - reach..=LEAD + at] {
                    let Some(found) = self.table.step(state, token).filter(|&found| self.limits.allow(found)) else {
                        return Sifted::Damaged;
                    };
                    state = found.state;
                    answer = (found.row, found.order);
                }
                if answer.1 >= orders[at].max(1) {
                    (rows[at], orders[at]) = (row_as_i32(answer.0) + self.first_row, answer.1);
                }
            }
        }
        Sifted::Done
    }
}

/// Tokens of the segment of `at` that end there, at most `longest`.
fn reach(bounds: &Bounds<'_>, tokens: &Tokens<'_>, at: usize, longest: usize) -> usize {
    let earliest = (at + 1).saturating_sub(longest);
    let first = (earliest + 1..=at).rev().find(|&at| starts(bounds, tokens, at)).unwrap_or(earliest);
    at + 1 - first
}

//! The keys of overlays over the answers of the indexes below, block by block while those are in the first caches.

use super::bounds::Bounds;
use super::extensions::{END, Extensions, StepHash};
use super::segments::starts;
use super::tokens::Tokens;
use crate::automaton::NO_ROW;
use crate::ids::{MAX_ORDER, row_as_i32, usize_of};

/// Positions answered at once; what they need stays in the first cache.
const BLOCK: usize = 1 << 10;
/// Tokens before a block that its keys may have.
const LEAD: usize = MAX_ORDER - 1;

/// Room to answer a block in.
#[derive(Debug)]
pub(super) struct Room {
    /// Tokens of the block, those before it first.
    words: [u32; LEAD + BLOCK],
    codes: [u32; BLOCK],
    /// Places in the block whose answer below may begin a step, then those whose next step may be there.
    places: [u32; BLOCK],
    /// Where each of these stands: a node, the tokens read so far, and the hash of its next step.
    nodes: [u32; BLOCK],
    read: [u8; BLOCK],
    hashes: [StepHash; BLOCK],
}

impl Default for Room {
    fn default() -> Self {
        Self {
            words: [0; LEAD + BLOCK],
            codes: [0; BLOCK],
            places: [0; BLOCK],
            nodes: [0; BLOCK],
            read: [0; BLOCK],
            hashes: [StepHash::default(); BLOCK],
        }
    }
}

/// Writes into the room where steps begin from the answers below, and returns at how many places.
pub(super) type Pick<'p> = &'p dyn Fn(&Extensions, &mut Room, &[i32], &[u8]) -> usize;

/// The loops of [`Pick`], for any processor.
#[inline(always)]
pub(super) fn pick(extensions: &Extensions, room: &mut Room, rows: &[i32], orders: &[u8]) -> usize {
    // One small loop after the other: each keeps what it needs in registers, and the first computes with vectors. No
    // branch: a place that is not taken is written over.
    let Room { words, codes, places, .. } = room;
    let codes = &mut codes[..rows.len()];
    for (((code, &row), &last), &previous) in codes.iter_mut().zip(rows).zip(&words[LEAD..]).zip(&words[LEAD - 1..]) {
        *code = extensions.code(row, last, previous);
    }
    let mut found = 0;
    for (at, &code) in (0..).zip(&*codes) {
        places[found & (BLOCK - 1)] = at;
        found += usize_of(extensions.begins(code));
    }
    for candidate in 0..found {
        let at = usize_of(room.places[candidate]);
        (room.nodes[candidate], room.read[candidate]) = (rows[at].cast_unsigned(), orders[at]);
    }
    found
}

impl Room {
    /// Keeps those of the first `num` places whose next step may be there, and asks for their lines; returns how many.
    #[inline(always)]
    fn look(&mut self, extensions: &Extensions, num: usize) -> usize {
        let Self { words, places, nodes, read, hashes, .. } = self;
        let mut left = 0;
        for candidate in 0..num {
            let (place, node, order) = (places[candidate], nodes[candidate], read[candidate]);
            let token = words[LEAD + usize_of(place) - usize::from(order).min(LEAD)];
            let (hash, known) = extensions.knows(node, token);
            (places[left], nodes[left], read[left], hashes[left]) = (place, node, order, hash);
            // A key as long as keys get has no next step.
            left += usize_of(known) & usize::from(usize::from(order) <= LEAD);
        }
        hashes[..left].iter().for_each(|&hash| extensions.expect(hash));
        left
    }
}

impl Extensions {
    /// Puts the answers of the overlays over those in `rows` and `orders`, for the positions from `start` on.
    pub(super) fn extend(
        &self,
        room: &mut Room,
        pick: Pick<'_>,
        (tokens, bounds): (&Tokens<'_>, &Bounds<'_>),
        start: usize,
        rows: &mut [i32],
        orders: &mut [u8],
    ) {
        for (block, (rows, orders)) in rows.chunks_mut(BLOCK).zip(orders.chunks_mut(BLOCK)).enumerate() {
            let first = start + block * BLOCK;
            let lead = first.min(LEAD);
            // What stands before the batch belongs to no segment of it.
            tokens.read(first - lead..first + rows.len(), &mut room.words[LEAD - lead..LEAD + rows.len()]);
            let picked = pick(self, room, rows, orders);
            for &place in &room.places[..picked] {
                let at = usize_of(place);
                rows[at] = self.same(rows[at]).map_or(rows[at], row_as_i32);
            }
            // All places take a step before one takes the next, so that their lines come at once.
            let mut going = room.look(self, picked);
            while going > 0 {
                let mut left = 0;
                for candidate in 0..going {
                    let (place, node, order) = (room.places[candidate], room.nodes[candidate], room.read[candidate]);
                    let (at, read) = (usize_of(place), usize::from(order));
                    let here = first + at;
                    let Some(step) = self.step(room.hashes[candidate], node, room.words[LEAD + at - read]) else {
                        continue;
                    };
                    // The token is one of the position's segment.
                    let reaches = match read {
                        0 => !bounds.is_padding(here),
                        _ => read <= here && !starts(bounds, tokens, here + 1 - read),
                    };
                    if !reaches {
                        continue;
                    }
                    if step.row != NO_ROW {
                        (rows[at], orders[at]) = (row_as_i32(step.row), order + 1);
                    }
                    if step.next != END {
                        (room.places[left], room.nodes[left], room.read[left]) = (place, step.next, order + 1);
                        left += 1;
                    }
                }
                going = room.look(self, left);
            }
        }
    }
}

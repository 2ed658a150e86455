//! Keys of overlays as what they add to the answers of the indexes below, read from there to the left.
//!
//! Where a key of an overlay is at least as long as the answer below, that answer is the longest key below that ends the
//! overlay's key, whatever else stands before. So every key has one answer below from which it is reached: by the tokens
//! before that, the nearest first, or by none where both are equally long. One table holds these steps for all overlays: a
//! node (at first a row of the indexes below, or their miss) and a token lead to the next node, and to the row of the key
//! that is whole there. A position whose answer below begins no step, as nearly all do of a text that the overlays are not
//! for, is told by a bit.

use std::hint::select_unpredictable;

use crate::automaton::{NO_ROW, prefetch};
use crate::ids::{low_u32, u64_of, usize_of, usize_of_u64};

/// More keys of overlays than this are walked: they would take 50 bytes each here, 100 MB.
pub(crate) const MAX_EXTENSIONS: usize = 1 << 21;
/// What nodes are counted from that are no rows; the last number of all is the node of a miss.
const FIRST_NODE: u32 = 1 << 31;
/// In place of a token: the overlay's key is the one below.
const SAME: u32 = u32::MAX - 1;
/// The token of a slot without a step.
const EMPTY: u32 = u32::MAX;
/// The next node where no key goes on.
pub(super) const END: u32 = u32::MAX;
/// Odd multipliers: fractional parts of square roots of primes.
const ROW: u32 = 0x6A09_E667;
const LAST: u32 = 0xBB67_AE85;
const PREVIOUS: u32 = 0x3C6E_F373;
const STEP: u64 = 0x510E_527F_9B05_688D;

/// From a node by a token.
#[derive(Debug, Clone, Copy)]
#[repr(align(16))]
struct Slot {
    node: u32,
    token: u32,
    /// The row of the key that is whole here, counted through all indexes, or [`NO_ROW`].
    row: u32,
    /// The node here, or [`END`].
    next: u32,
}

const FREE: Slot = Slot { node: 0, token: EMPTY, row: NO_ROW, next: END };

/// The steps, by the hash of node and token; at least half of the slots are free.
#[derive(Debug)]
struct Steps {
    slots: Vec<Slot>,
    used: usize,
}

/// Where a step leads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    /// The row of the key that is whole here, or [`NO_ROW`].
    pub row: u32,
    /// The next node, or [`END`].
    pub next: u32,
}

/// The hash of a step: where its search begins, and its bit.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct StepHash(u64);

impl StepHash {
    #[inline(always)]
    fn of(node: u32, token: u32) -> Self {
        let sum = (u64::from(node) << 32 | u64::from(token)).wrapping_mul(STEP);
        Self((sum ^ (sum >> 32)).wrapping_mul(STEP))
    }
}

impl Steps {
    fn with_slots(num: usize) -> Self {
        Self { slots: vec![FREE; num.max(2)], used: 0 }
    }

    #[inline(always)]
    fn home(&self, hash: StepHash) -> usize {
        usize_of_u64(((hash.0 >> 32) * u64_of(self.slots.len())) >> 32)
    }

    /// The slot of a step, or the free one where it would be.
    #[inline(always)]
    fn place(&self, hash: StepHash, node: u32, token: u32) -> usize {
        let mut at = self.home(hash);
        loop {
            let slot = self.slots[at];
            if (slot.node == node && slot.token == token) || slot.token == EMPTY {
                return at;
            }
            at += 1;
            if at == self.slots.len() {
                at = 0;
            }
        }
    }

    /// The slot of a step, made where there is none.
    fn enter(&mut self, node: u32, token: u32) -> &mut Slot {
        if 2 * self.used >= self.slots.len() {
            self.resize(2 * self.slots.len());
        }
        let at = self.place(StepHash::of(node, token), node, token);
        let slot = &mut self.slots[at];
        if slot.token == EMPTY {
            *slot = Slot { node, token, ..FREE };
            self.used += 1;
        }
        slot
    }

    fn resize(&mut self, num: usize) {
        let mut larger = Self::with_slots(num);
        for &slot in self.slots.iter().filter(|slot| slot.token != EMPTY) {
            let at = larger.place(StepHash::of(slot.node, slot.token), slot.node, slot.token);
            larger.slots[at] = slot;
        }
        larger.used = self.used;
        *self = larger;
    }
}

/// Words for `num` hashes, 16 bits or more for each, and by how much a hash is shifted to choose one.
fn bits(num: usize) -> (Box<[u32]>, u32) {
    let num_words = (num / 2).clamp(1 << 5, 1 << 21).next_power_of_two();
    (vec![0; num_words].into(), 32 - num_words.trailing_zeros())
}

/// What overlays add to the answers below them.
#[derive(Debug)]
pub(crate) struct Extensions {
    steps: Steps,
    nodes: u32,
    /// A bit by the hash of an answer below that a step begins with.
    begins: Box<[u32]>,
    begins_shift: u32,
    /// A bit by the hash of a step.
    known: Box<[u32]>,
    known_shift: u32,
    /// What the token before the last counts for in the hash of a miss: nothing where a key is one token.
    previous: u32,
    /// Whether some key is one below too.
    any_same: bool,
}

impl Extensions {
    /// Room for `num_keys` keys; `any_single` says whether one of them is a single token.
    pub fn new(num_keys: usize, any_single: bool) -> Self {
        let (begins, begins_shift) = bits(num_keys);
        Self {
            steps: Steps::with_slots(2 * num_keys),
            nodes: FIRST_NODE,
            begins,
            begins_shift,
            known: Box::default(),
            known_shift: 0,
            previous: if any_single { 0 } else { PREVIOUS },
            any_same: false,
        }
    }

    /// Adds `key` with the row `row`, in place of an equal one added before; `below` is the row (negative at a miss) and
    /// the order of the longest key below that ends it.
    pub fn add(&mut self, key: &[u32], below: (i32, u8), row: u32) {
        let Some((&last, before)) = key.split_last() else { return };
        let (node, order) = (below.0.cast_unsigned(), usize::from(below.1));
        let code = self.code(below.0, last, before.last().copied().unwrap_or(0));
        self.begins[usize_of(code >> self.begins_shift)] |= 1 << (code & 31);
        let Some((&first, between)) = key[..key.len().saturating_sub(order)].split_first() else {
            self.any_same = true;
            self.steps.enter(node, SAME).row = row;
            return;
        };
        let mut node = node;
        for &token in between.iter().rev() {
            let nodes = self.nodes;
            let slot = self.steps.enter(node, token);
            if slot.next == END {
                slot.next = nodes;
                self.nodes += 1;
            }
            node = slot.next;
        }
        self.steps.enter(node, first).row = row;
    }

    /// Ends the making: gives room back, and sets the bits of all steps.
    pub fn finish(mut self) -> Self {
        self.steps.resize(2 * self.steps.used);
        (self.known, self.known_shift) = bits(self.steps.used);
        for slot in self.steps.slots.iter().filter(|slot| slot.token != EMPTY) {
            let code = low_u32(StepHash::of(slot.node, slot.token).0);
            self.known[usize_of(code >> self.known_shift)] |= 1 << (code & 31);
        }
        self
    }

    /// The hash of an answer below: of its row, at a miss of the last two tokens.
    #[inline(always)]
    pub(super) fn code(&self, row: i32, last: u32, previous: u32) -> u32 {
        let of_miss = last.wrapping_mul(LAST).wrapping_add(previous.wrapping_mul(self.previous));
        select_unpredictable(row < 0, of_miss, row.cast_unsigned().wrapping_mul(ROW))
    }

    /// 1 where an answer of this hash may begin a step, else 0.
    #[inline(always)]
    pub(super) fn begins(&self, code: u32) -> u32 {
        self.begins[usize_of(code >> self.begins_shift)] >> (code & 31) & 1
    }

    /// The hash of a step from `node` by `token`, and 1 where the step may be there, else 0.
    #[inline(always)]
    pub(super) fn knows(&self, node: u32, token: u32) -> (StepHash, u32) {
        let hash = StepHash::of(node, token);
        let code = low_u32(hash.0);
        (hash, self.known[usize_of(code >> self.known_shift)] >> (code & 31) & 1)
    }

    /// Asks for the line where the step's search begins.
    #[inline(always)]
    pub(super) fn expect(&self, hash: StepHash) {
        prefetch(&raw const self.steps.slots[self.steps.home(hash)]);
    }

    /// Where the step from `node` by `token` leads, if it is there.
    #[inline(always)]
    pub(super) fn step(&self, hash: StepHash, node: u32, token: u32) -> Option<Step> {
        let slot = self.steps.slots[self.steps.place(hash, node, token)];
        (slot.token != EMPTY).then_some(Step { row: slot.row, next: slot.next })
    }

    /// The row of the key that is the one of `row` below, if there is one.
    #[inline(always)]
    pub(super) fn same(&self, row: i32) -> Option<u32> {
        if !self.any_same || row < 0 {
            return None;
        }
        let (hash, known) = self.knows(row.cast_unsigned(), SAME);
        if known == 0 {
            return None;
        }
        self.step(hash, row.cast_unsigned(), SAME).map(|step| step.row)
    }
}

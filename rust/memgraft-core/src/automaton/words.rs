//! The table's words, bit by bit; the one place that knows them.
//!
//! The table is an array of 32-bit words: four words are a unit, four units a
//! line of 64 bytes. A part of a block is one line or some units of one, and
//! with `n` entries (5 at most) it is
//!
//! ```text
//! word     0 .. n-1       n .. 2n-1      2n .. 3n-1     3n
//!        +--------------+--------------+--------------+------+
//!        | token words  | states       | rows         | link |
//!        +--------------+--------------+--------------+------+
//!          t0  t1  ...    s0  s1  ...    r0  r1  ...
//! ```
//!
//! The line of a block with five children, `n = 5`, is full:
//!
//! ```text
//! unit   |       0       |       1       |       2       |       3       |
//! word   |  0   1   2   3|  4   5   6   7|  8   9  10  11| 12  13  14  15|
//!        | t0  t1  t2  t3| t4  s0  s1  s2| s3  s4  r0  r1| r2  r3  r4  ln|
//! ```
//!
//! A token word, from the highest bit:
//!
//! ```text
//! bit     31 30   29      28 27 26   25 ... 21   20 ... 0
//!        +-----+--------+----------+-----------+---------+
//!        | 0 0 | spills | len = n  | order     | token   |
//!        +-----+--------+----------+-----------+---------+
//! ```
//!
//! `len` and `spills` are set in the first token word of a part alone. `spills`
//! says that the block goes on in the next line. `order` is the length of the
//! key in the entry's row, 0 where the row is [`NO_ROW`].
//!
//! The table begins with the root row, one unit for each token: a part with one
//! entry and the link 0.

use crate::ids::{low_u8, low_u32, saturating_u32, u32_of};

/// The row word of a transition without output; -1 as an `i32`.
pub const NO_ROW: u32 = u32::MAX;
/// Words of a line.
pub(super) const LINE: usize = 16;
/// Words of a unit.
pub(super) const UNIT: usize = 4;
/// Most entries of a part.
pub(super) const ENTRIES: usize = 5;

const _: () = assert!(UNIT * 4 == LINE && ENTRIES * 3 < LINE, "a line is four units and holds a part of five entries");

const LEN_SHIFT: u32 = 26;
const LEN_MASK: u32 = 7;
const SPILLS: u32 = 1 << 29;
const ORDER_SHIFT: u32 = 21;
const ORDER_MASK: u32 = 31;

/// A token word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct TokenWord(u32);

impl TokenWord {
    /// The bits of the token.
    pub const TOKEN: u32 = (1 << ORDER_SHIFT) - 1;
    /// A token that no text holds. It fills a line of a large block that got no child, and the units after the root row.
    pub const EMPTY: u32 = Self::TOKEN;

    /// The word as it lies in the table.
    #[inline(always)]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// What the table holds.
    #[inline(always)]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The token.
    #[inline(always)]
    pub const fn token(self) -> u32 {
        self.0 & Self::TOKEN
    }

    /// The order of the key in the entry's row.
    #[inline(always)]
    pub const fn order(self) -> u8 {
        low_u8(self.0 >> ORDER_SHIFT) & low_u8(ORDER_MASK)
    }

    /// Entries of the part that begins with this word: 0 to 7, whatever the word holds.
    #[inline(always)]
    pub const fn len(self) -> u32 {
        self.0 >> LEN_SHIFT & LEN_MASK
    }

    /// Whether the block goes on in the next line.
    #[inline(always)]
    pub const fn spills(self) -> bool {
        self.0 & SPILLS != 0
    }

    /// Whether the block goes on in the next line and the part has `len` entries, in one comparison; false where a bit is
    /// set that no table sets.
    #[inline(always)]
    pub const fn spills_after(self, len: u32) -> bool {
        self.0 >> LEN_SHIFT == len + (SPILLS >> LEN_SHIFT)
    }

    /// The word as the first one of a part of `len` entries.
    pub const fn begin(self, len: u32, spills: bool) -> Self {
        Self(self.0 | len << LEN_SHIFT | if spills { SPILLS } else { 0 })
    }

    /// The word with an order, which it had none of.
    pub const fn with_order(self, order: u8) -> Self {
        Self(self.0 | u32_of(order) << ORDER_SHIFT)
    }
}

/// The home line of `token` among `lines` of a large block; fixed by the format.
#[inline(always)]
pub(super) fn home(token: u32, lines: u32) -> u32 {
    low_u32((u64::from(token.wrapping_mul(0x9E37_79B1)) * u64::from(lines)) >> 32)
}

/// Lines of the root row: a unit for each token and one for the token past the vocabulary.
pub(super) fn root_lines(vocab_size: u32) -> u32 {
    (vocab_size + 1).div_ceil(saturating_u32(UNIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_and_do_not_touch() {
        for token in [0, 1, 77, TokenWord::EMPTY] {
            for order in [0, 1, 16, 31] {
                for len in [0, 1, 5, 7] {
                    for spills in [false, true] {
                        let word = TokenWord::from_bits(token).begin(len, spills).with_order(order);
                        assert_eq!(
                            (word.token(), word.order(), word.len(), word.spills()),
                            (token, order, len, spills)
                        );
                        assert_eq!(word.spills_after(len), spills);
                        assert!(!word.spills_after(len ^ 1));
                        assert_eq!(word.bits() >> 30, 0);
                    }
                }
            }
        }
        // As docs/FORMAT.md has it.
        assert_eq!(TokenWord::from_bits(3).begin(5, true).with_order(2).bits(), 3 | 2 << 21 | 5 << 26 | 1 << 29);
    }
}

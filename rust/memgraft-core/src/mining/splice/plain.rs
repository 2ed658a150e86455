//! A look at records whose tags are orders and whose counts take a byte, nearly all: plain ones.

use super::ahead::{Code, Head, ONE, Place, WINDOW};
use super::shape::Shape;
use crate::ids::{low_u8, low_u32, u64_of, usize_of_u64};
use crate::mining::window::Packing;

/// Bytes in which a key and its tag lie, and what is noted with them: from any byte that a first one may name.
pub(super) const KEY: usize = 128 + 64;
/// More than the count of a plain record.
pub(super) const PLAIN_COUNT: u64 = 0x80;
pub(super) type Key = [u8; KEY];

/// What plain records are.
pub(super) struct Ends {
    /// The way to the next from one that shares nothing and gives its count.
    most: u64,
    by_head: [End; 256],
}

/// What a plain record with a given first byte is.
#[derive(Debug, Clone, Copy)]
struct End {
    /// Its last two bytes are an order and a small count, or anything and an order, if neither they nor their sum with
    /// `bias` have a bit of `large`.
    bias: u16,
    large: u16,
    /// The bits in which the first byte of its code differs.
    turn: u32,
}

impl Ends {
    pub(super) fn of(packing: &Packing) -> Self {
        let shape = Shape::of(packing);
        let end = |head: usize| {
            let (shared, one) = (head & 0x7f, head >= 0x80);
            if shared > shape.num || shared < shape.token_bytes {
                // One that may have another first token, or is none: of two bytes, or one less, some bit is always set.
                return End { bias: u16::MAX, large: u16::MAX, turn: 0 };
            }
            // A tag of more than the longest order is that of a long document. Counts of zero, and of one, which is never
            // given, have the high bit when two less.
            let tag = 0x7f - low_u8(low_u32(u64_of(packing.max_order())));
            let (bias, large) = if one { ([0, tag], [0, 0x80]) } else { ([tag, 0xfe], [0x80; 2]) };
            let turn = low_u32(u64_of(head ^ (shape.num - shared)));
            End { bias: u16::from_le_bytes(bias), large: u16::from_le_bytes(large), turn }
        };
        Self { most: Place::step(1 + u64_of(shape.num) + 2), by_head: std::array::from_fn(end) }
    }
}

impl End {
    /// Whether a record that ends so is not plain, or may have another first token than the one before.
    #[inline]
    fn is_other(&self, end: [u8; 2]) -> bool {
        let end = u16::from_le_bytes(end);
        (end | end.wrapping_add(self.bias)) & self.large != 0
    }
}

/// Looks at plain records from `place` on, which moves behind them, until `bytes` holds no window more, `heads` is full or
/// another record comes; returns their number.
///
/// A loop of its own, in which all that it needs stays in registers.
#[inline(never)]
pub(super) fn look<const C: usize>(
    bytes: &[u8],
    place: &mut Place,
    heads: &mut [Head],
    key: &mut Key,
    ends: &Ends,
) -> usize {
    let mut now = *place;
    for record in heads {
        let at = now.at();
        let Some(window) = bytes.get(at..at + WINDOW).and_then(<[u8]>::first_chunk::<WINDOW>) else { break };
        let head = window[0];
        let shared = head & !ONE;
        let step = ends.most.wrapping_sub(u64::from(shared + (head >> 7)));
        let end = usize_of_u64(step.wrapping_sub(2) & 63);
        let expected = &ends.by_head[usize::from(head)];
        // A key that is shared as a whole has its tag behind it.
        if expected.is_other([window[end], window[end + 1]]) || window[1] <= key[usize::from(shared)] {
            break;
        }
        note::<C>(window, key);
        let code = Code(Shape::word(window, 0) ^ u64::from(expected.turn));
        *record = Head { code, place: now.of(head) };
        now.0 += step;
    }
    let found = now.number().wrapping_sub(place.number());
    *place = now;
    found
}

/// Notes the key of the record that `window` starts with.
#[inline]
pub(super) fn note<const C: usize>(window: &[u8; WINDOW], key: &mut Key) {
    let fresh = key[usize::from(window[0] & !ONE)..].first_chunk_mut::<64>().expect("expected room behind a key");
    fresh.as_chunks_mut::<16>().0[..C].copy_from_slice(&window[1..65].as_chunks::<16>().0[..C]);
}

//! Which of two records comes first, and its bytes.

use std::hint::select_unpredictable;

use super::ahead::{Ahead, Code, FEWEST, Head, Place, WINDOW};
use super::shape::Shape;
use crate::ids::{low_u8, low_u32, u64_of};
use crate::wire::{put_leb128, read_leb128};

/// Writes the records of both sides into `room` in order of key and tag, equal ones joined, until one side is used up.
/// Returns the bytes, and how many pairs were joined; `None` where counts are too large.
///
/// Which side comes first cannot be foretold, and a wrong guess costs a processor more than the rest of a record: so it
/// does not matter here which of two heads is whose, and they change places without a jump.
#[inline(never)]
pub(super) fn pick<const C: usize>(
    bytes: &[u8],
    ahead: &Ahead,
    num: usize,
    heads: &mut [Head; 2],
    room: &mut [u8],
) -> Option<(usize, u64)> {
    let [mut a, mut b] = *heads;
    let (mut at, mut joined) = (0, 0);
    // Of one that shares a whole key.
    let whole = FEWEST - u64_of(num);
    while !a.code.is_end() && !b.code.is_end() {
        let swap = b.code < a.code;
        let differ = a.code.0 ^ b.code.0;
        let first = Head {
            code: select_unpredictable(swap, b.code, a.code),
            place: select_unpredictable(swap, b.place, a.place),
        };
        let later = Head {
            code: select_unpredictable(swap, a.code, b.code),
            place: select_unpredictable(swap, a.place, b.place),
        };
        // Equal bytes of the key that the codes hold. Counted from below: code for any x86-64 processor has no quick way to
        // count zeros from above. The lowest bit is set so that there is one.
        let equal = u64::from(((differ | 1).swap_bytes().trailing_zeros() / 8).max(1) - 1);
        let fewer = later.code.fewer().wrapping_sub(equal);
        if fewer <= whole || differ == 0 {
            // Equal keys, or all bytes that codes hold.
            let tied = tie(bytes, ahead, num, first, later, &mut room[at..])?;
            joined += u64::from(tied.joined);
            at += tied.written;
            [a, b] = tied.heads;
            continue;
        }
        let next = ahead.next(first.place);
        let from: &[u8; WINDOW] = bytes[first.place.at()..].first_chunk()?;
        let to: &mut [u8; WINDOW] = room[at..].first_chunk_mut()?;
        to.as_chunks_mut::<16>().0[..C].copy_from_slice(&from.as_chunks::<16>().0[..C]);
        to[0] = first.first_byte();
        let len = next.place.at() - first.place.at();
        if len > 16 * C {
            to.copy_from_slice(from);
            to[0] = first.first_byte();
        }
        at += len;
        let place = Place(later.place.0 + equal);
        a = next;
        b = Head { code: Code::new(Shape::word(bytes, place.at()), fewer), place };
    }
    *heads = if a.place.number() < b.place.number() { [a, b] } else { [b, a] };
    Some((at, joined))
}

struct Tied {
    heads: [Head; 2],
    joined: bool,
    written: usize,
}

/// Two records of equal codes or equal keys: writes the first of them, or both as one.
#[cold]
#[inline(never)]
fn tie(bytes: &[u8], ahead: &Ahead, num: usize, a: Head, b: Head, room: &mut [u8]) -> Option<Tied> {
    let shared = a.code.shared();
    let rest = num - shared;
    let from = |head: Head| bytes[head.place.at()..].first_chunk::<WINDOW>();
    let (from_a, from_b) = (from(a)?, from(b)?);
    // Codes hold seven bytes: with no more to come, the keys are equal.
    let equal = if rest <= 7 {
        rest
    } else {
        from_a[1..=rest].iter().zip(&from_b[1..=rest]).take_while(|(a, b)| a == b).count()
    };
    let to: &mut [u8; WINDOW] = room.first_chunk_mut()?;
    let a_first = if equal < rest {
        from_a[1 + equal] < from_b[1 + equal]
    } else {
        let read = |from: &[u8; WINDOW], head: Head| {
            let mut at = 1 + rest;
            let tag = read_leb128(from, &mut at)?;
            Some((tag, if head.place.one() == 0 { read_leb128(from, &mut at)? } else { 1 }))
        };
        let ((tag_a, count_a), (tag_b, count_b)) = (read(from_a, a)?, read(from_b, b)?);
        if tag_a == tag_b {
            *to = *from_a;
            to[0] = low_u8(low_u32(u64_of(shared)));
            let mut written = 1 + rest;
            put_leb128(to, &mut written, tag_a);
            put_leb128(to, &mut written, count_a.checked_add(count_b)?);
            return Some(Tied { heads: [ahead.next(a.place), ahead.next(b.place)], joined: true, written });
        }
        tag_a < tag_b
    };
    let (first, later, record) = if a_first { (a, b, from_a) } else { (b, a, from_b) };
    let next = ahead.next(first.place);
    *to = *record;
    to[0] = first.first_byte();
    let place = Place(later.place.0 + u64_of(equal));
    let code = Code::new(Shape::word(bytes, place.at()), FEWEST - u64_of(shared + equal));
    Some(Tied { heads: [next, Head { code, place }], joined: false, written: next.place.at() - first.place.at() })
}

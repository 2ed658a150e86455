//! Which of two records comes first, and its bytes.

use std::hint::select_unpredictable;

use super::ahead::{Ahead, BOTH, Both, Code, Head, MOST_BYTES, Place, WINDOW};
use super::shape::Shape;
use crate::ids::{low_u8, low_u32, u64_of, usize_of, usize_of_u64};
use crate::wire::{put_leb128, read_leb128};

/// Writes the records of both sides into `room` in order of key and tag, equal ones joined, until one side is used up.
/// Returns the bytes, and how many pairs were joined; `None` where counts are too large.
///
/// Which side comes first cannot be foretold, and a wrong guess costs a processor more than the rest of a record: so it
/// does not matter here which of two heads is whose, and they change places without a jump.
#[inline(never)]
pub(super) fn pick<const C: usize>(
    bytes: &Both,
    ahead: &Ahead,
    num: usize,
    heads: &mut [Head; 2],
    room: &mut [u8],
) -> Option<(usize, u64)> {
    let room: &mut [u8; MOST_BYTES] = room.first_chunk_mut().expect("expected room for all records");
    let [mut a, mut b] = *heads;
    let (mut at, mut joined) = (0u32, 0);
    while !a.code.is_end() && !b.code.is_end() {
        let swap = b.code.is_before(a.code);
        let first = Head {
            code: select_unpredictable(swap, b.code, a.code),
            place: select_unpredictable(swap, b.place, a.place),
        };
        let later = Head {
            code: select_unpredictable(swap, a.code, b.code),
            place: select_unpredictable(swap, a.place, b.place),
        };
        let Some(equal) = a.code.equal(b.code).filter(|&equal| later.code.given() > equal) else {
            // Equal keys, or all bytes that codes hold.
            let tied = tie(bytes, ahead, num, first, later, &mut room[usize_of(at)..])?;
            joined += u64::from(tied.joined);
            at += low_u32(u64_of(tied.written));
            [a, b] = tied.heads;
            continue;
        };
        let next = ahead.next(first.place);
        let from = window(bytes, first.place);
        let end = usize_of(at);
        let to: &mut [u8; WINDOW] = room.get_mut(end..end + WINDOW)?.first_chunk_mut()?;
        to.as_chunks_mut::<16>().0[..C].copy_from_slice(&from.as_chunks::<16>().0[..C]);
        to[0] = first.first_byte();
        let len = next.place.low().wrapping_sub(first.place.low());
        if usize_of(len) > 16 * C {
            to.copy_from_slice(from);
            to[0] = first.first_byte();
        }
        at += len;
        let place = Place(later.place.0 + equal);
        a = next;
        let word = Shape::word(window(bytes, later.place), 1 + usize_of_u64(equal));
        b = Head { code: Code::new(word, later.code.given() - equal), place };
    }
    *heads = if a.place.number() < b.place.number() { [a, b] } else { [b, a] };
    Some((usize_of(at), joined))
}

/// The bytes from `place` on.
#[inline]
fn window(bytes: &Both, place: Place) -> &[u8; WINDOW] {
    bytes[place.at() % BOTH..].first_chunk().expect("as many lie behind all places")
}

struct Tied {
    heads: [Head; 2],
    joined: bool,
    written: usize,
}

/// Two records of equal codes or equal keys: writes the first of them, or both as one.
#[cold]
#[inline(never)]
fn tie(bytes: &Both, ahead: &Ahead, num: usize, a: Head, b: Head, room: &mut [u8]) -> Option<Tied> {
    let rest = usize_of_u64(a.code.given());
    let shared = num - rest;
    let (from_a, from_b) = (window(bytes, a.place), window(bytes, b.place));
    let to: &mut [u8; WINDOW] = room.first_chunk_mut()?;
    // Codes hold seven bytes: with no more to come, the keys are equal.
    let equal = if rest <= 7 {
        let end =
            |from: &[u8; WINDOW], head: Head| (from[1 + rest], if head.place.is_one() { 1 } else { from[2 + rest] });
        let ((tag_a, count_a), (tag_b, count_b)) = (end(from_a, a), end(from_b, b));
        let count = count_a.wrapping_add(count_b);
        if tag_a == tag_b && (tag_a | count_a | count_b | count) < 0x80 {
            // Nearly all that are joined.
            to.as_chunks_mut::<16>().0[0] = from_a.as_chunks::<16>().0[0];
            to[0] = low_u8(low_u32(u64_of(shared)));
            to[2 + rest] = count;
            return Some(Tied { heads: [ahead.next(a.place), ahead.next(b.place)], joined: true, written: 3 + rest });
        }
        rest
    } else {
        from_a[1..=rest].iter().zip(&from_b[1..=rest]).take_while(|(a, b)| a == b).count()
    };
    let a_first = if equal < rest {
        from_a[1 + equal] < from_b[1 + equal]
    } else {
        let read = |from: &[u8; WINDOW], head: Head| {
            let mut at = 1 + rest;
            let tag = read_leb128(from, &mut at)?;
            Some((tag, if head.place.is_one() { 1 } else { read_leb128(from, &mut at)? }))
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
    let code = Code::new(Shape::word(window(bytes, place), 1), u64_of(rest - equal));
    Some(Tied { heads: [next, Head { code, place }], joined: false, written: next.place.at() - first.place.at() })
}

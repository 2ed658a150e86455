//! Numbers as they lie in files: little-endian at a byte, and LEB128, which is seven bits a byte, low bits first, the
//! eighth bit set in all bytes but the last.

use crate::ids::{low_u8, low_u32};

/// Most bytes of one LEB128 number.
pub(crate) const MAX_LEB128: usize = 10;

/// The `N` bytes at `at`, which the caller has bounded.
#[inline]
pub(crate) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}

/// The number at byte `at`, which the caller has bounded.
#[inline]
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

/// The number at byte `at`, which the caller has bounded.
#[inline]
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

/// The number at byte `at`, which the caller has bounded.
#[inline]
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

/// Appends `value` as LEB128.
#[inline]
pub(crate) fn push_leb128(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(low_u8(low_u32(value)) | 0x80);
        value >>= 7;
    }
    out.push(low_u8(low_u32(value)));
}

/// Writes `value` as LEB128 at `at`, which moves past it and which the caller has bounded.
#[inline]
pub(crate) fn put_leb128(out: &mut [u8], at: &mut usize, mut value: u64) {
    while value >= 0x80 {
        out[*at] = low_u8(low_u32(value)) | 0x80;
        value >>= 7;
        *at += 1;
    }
    out[*at] = low_u8(low_u32(value));
    *at += 1;
}

/// The LEB128 number that `next` hands out byte by byte; `None` where the bytes end or go on past ten.
#[inline]
pub(crate) fn leb128(mut next: impl FnMut() -> Option<u8>) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = next()?;
        value |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// The LEB128 number at `at`, which moves past it.
#[inline]
pub(crate) fn read_leb128(bytes: &[u8], at: &mut usize) -> Option<u64> {
    leb128(|| {
        let byte = *bytes.get(*at)?;
        *at += 1;
        Some(byte)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_and_endless_ones_do_not() {
        for value in [0, 1, 127, 128, 1 << 14, u64::from(u32::MAX), u64::MAX] {
            let mut bytes = vec![0xAA];
            push_leb128(&mut bytes, value);
            assert!(bytes.len() <= 1 + MAX_LEB128);
            let (mut put, mut at) = (vec![0xAA; bytes.len()], 1);
            put_leb128(&mut put, &mut at, value);
            assert_eq!((&put, at), (&bytes, bytes.len()));
            at = 1;
            assert_eq!((read_leb128(&bytes, &mut at), at), (Some(value), bytes.len()));
            bytes.pop();
            assert_eq!(read_leb128(&bytes, &mut 1), None);
        }
        assert_eq!(read_leb128(&[0xFF; 11], &mut 0), None);
    }

    #[test]
    fn low_bytes_come_first() {
        let bytes = [9, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!((u16_at(&bytes, 1), u32_at(&bytes, 1)), (0x0201, 0x0403_0201));
        assert_eq!((u64_at(&bytes, 1), array_at(&bytes, 7)), (0x0807_0605_0403_0201, [7, 8]));
    }
}

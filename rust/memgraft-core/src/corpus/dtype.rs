//! How tokens are stored on disk: fixed-width little-endian integers.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use crate::{Error, Result};

/// The stored integer type of a token file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenType {
    /// Unsigned 8-bit.
    U8,
    /// Signed 8-bit.
    I8,
    /// Unsigned 16-bit.
    U16,
    /// Signed 16-bit.
    I16,
    /// Unsigned 32-bit.
    U32,
    /// Signed 32-bit.
    I32,
    /// Unsigned 64-bit.
    U64,
    /// Signed 64-bit.
    I64,
}

/// Every stored type with its numpy name.
const NAMES: [(TokenType, &str); 8] = [
    (TokenType::U8, "uint8"),
    (TokenType::I8, "int8"),
    (TokenType::U16, "uint16"),
    (TokenType::I16, "int16"),
    (TokenType::U32, "uint32"),
    (TokenType::I32, "int32"),
    (TokenType::U64, "uint64"),
    (TokenType::I64, "int64"),
];

impl fmt::Display for TokenType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for TokenType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        NAMES.iter().find(|(_, name)| *name == text).map(|(found, _)| *found).ok_or_else(|| {
            let known: Vec<_> = NAMES.iter().map(|(_, name)| *name).collect();
            Error::argument(format!("dtype: expected one of {}, got {text:?}", known.join(", ")))
        })
    }
}

/// Widens one fixed-width type into `u32`; the index of the first value that does not fit, if any.
macro_rules! widen {
    ($kind:ty, $bytes:expr, $out:expr) => {{
        let mut fits = true;
        let words = $bytes.as_chunks::<{ size_of::<$kind>() }>().0;
        for (slot, word) in $out.iter_mut().zip(words) {
            let value = <$kind>::from_le_bytes(*word);
            let narrow = u32::try_from(value);
            fits &= narrow.is_ok();
            *slot = narrow.unwrap_or(u32::MAX);
        }
        if fits {
            None
        } else {
            words.iter().enumerate().find_map(|(at, word)| {
                let value = <$kind>::from_le_bytes(*word);
                u32::try_from(value).is_err().then(|| (at, i128::from(value)))
            })
        }
    }};
}

impl TokenType {
    /// Bytes per token.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 => 4,
            Self::U64 | Self::I64 => 8,
        }
    }

    /// The numpy name, such as `uint16`.
    #[must_use]
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }

    /// The type of a numpy descriptor such as `<u2`; big-endian and other kinds have none.
    #[must_use]
    pub fn from_descr(descr: &str) -> Option<Self> {
        Some(match descr {
            "|u1" | "<u1" | "u1" => Self::U8,
            "|i1" | "<i1" | "i1" => Self::I8,
            "<u2" => Self::U16,
            "<i2" => Self::I16,
            "<u4" => Self::U32,
            "<i4" => Self::I32,
            "<u8" => Self::U64,
            "<i8" => Self::I64,
            _ => return None,
        })
    }

    /// Refuses another type that the caller gave; `place` is where the file says this one, such as " in the header".
    ///
    /// # Errors
    /// [`Error::Corpus`].
    pub(super) fn refuse_other(self, given: Option<Self>, path: &Path, place: &str) -> Result<()> {
        match given.filter(|&given| given != self) {
            None => Ok(()),
            Some(given) => {
                let message = format!("expected {given} as dtype= says, found {self}{place}; leave dtype out");
                Err(Error::corpus(path, message))
            }
        }
    }

    /// Decodes `out.len()` tokens from `bytes`, which holds exactly that many.
    /// The first one that no `u32` holds comes back as (index, value).
    pub(super) fn decode(self, bytes: &[u8], out: &mut [u32]) -> Option<(usize, i128)> {
        debug_assert_eq!(bytes.len(), out.len() * self.size());
        match self {
            Self::U8 => widen!(u8, bytes, out),
            Self::I8 => widen!(i8, bytes, out),
            Self::U16 => widen!(u16, bytes, out),
            Self::I16 => widen!(i16, bytes, out),
            Self::U32 => widen!(u32, bytes, out),
            Self::I32 => widen!(i32, bytes, out),
            Self::U64 => widen!(u64, bytes, out),
            Self::I64 => widen!(i64, bytes, out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_decodes_its_own_bytes() {
        for (kind, name) in NAMES {
            assert_eq!(name.parse::<TokenType>().unwrap(), kind);
            let bytes: Vec<u8> =
                [0u64, 1, 100, 127].iter().flat_map(|v| v.to_le_bytes()[..kind.size()].to_vec()).collect();
            let mut out = [9; 4];
            assert_eq!(kind.decode(&bytes, &mut out), None, "{name}");
            assert_eq!(out, [0, 1, 100, 127], "{name}");
        }
        assert!("float32".parse::<TokenType>().is_err());
    }

    #[test]
    fn values_outside_u32_are_reported_where_they_are() {
        let mut out = [0; 2];
        assert_eq!(TokenType::I32.decode(&[1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], &mut out), Some((1, -1)));
        assert_eq!(TokenType::I8.decode(&[0x80, 1], &mut out), Some((0, -128)));
        let big: Vec<u8> = [7u64, 1 << 33].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(TokenType::U64.decode(&big, &mut out), Some((1, 1 << 33)));
    }
}

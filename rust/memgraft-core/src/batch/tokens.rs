//! The ids of a batch, checked once.

#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::ops::BitOr;

use super::Unknown;
use crate::{Error, Result};

/// Ids that are checked while they are still in the cache.
const BLOCK: usize = 2048;
const TOP: u32 = 1 << 31;

/// An integer that callers hold token ids in.
pub trait Id: Copy + Default + BitOr<Output = Self> + TryInto<u32> + TryInto<i64> {
    /// The low 32 bits.
    fn low(self) -> u32;
}

macro_rules! ids {
    ($($kind:ty),*) => {$(
        impl Id for $kind {
            #[inline(always)]
            #[allow(clippy::cast_sign_loss, clippy::cast_possible_truncation, trivial_numeric_casts)]
            fn low(self) -> u32 {
                self as u32
            }
        }
    )*};
}
ids!(i64, i32, u32, u16, u8, i16, u64);

/// Checked ids: each inside the vocabulary, or the one token past it, which matches nothing.
#[derive(Debug, Clone)]
pub struct Tokens<'a> {
    ids: Cow<'a, [u32]>,
    vocab_size: u32,
}

impl<'a> Tokens<'a> {
    /// Checks `ids` where they are; a copy is made only where [`Unknown::Miss`] changes one.
    ///
    /// # Errors
    /// [`Error::Token`] for an id outside the vocabulary, with its position (row and column with a `width`).
    pub fn check(ids: &'a [u32], vocab_size: u32, width: Option<usize>, unknown: Unknown) -> Result<Self> {
        let ids = match outside(ids, vocab_size) {
            true => Cow::Owned(mended(ids, vocab_size, width, unknown)?),
            false => Cow::Borrowed(ids),
        };
        Ok(Self { ids, vocab_size })
    }

    /// Copies ids of another integer type, checking them on the way.
    ///
    /// # Errors
    /// As [`Tokens::check`].
    pub fn copy<T: Id>(ids: &[T], vocab_size: u32, width: Option<usize>, unknown: Unknown) -> Result<Self> {
        let mut low = Vec::with_capacity(ids.len());
        let mut wrong = false;
        for block in ids.chunks(BLOCK) {
            let at = low.len();
            low.extend(block.iter().map(|id| id.low()));
            // An id that is negative or wider than 31 bits shows in the or of all; what the low bits alone say is
            // then of no interest.
            let every: Option<u32> = block.iter().fold(T::default(), |all, &id| all | id).try_into().ok();
            wrong |= every.is_none_or(|every| every >= TOP) || outside(&low[at..], vocab_size);
        }
        if wrong {
            low = mended(ids, vocab_size, width, unknown)?;
        }
        Ok(Self { ids: Cow::Owned(low), vocab_size })
    }

    /// Each smaller than [`Tokens::vocab_size`], or equal to it.
    #[must_use]
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// [`Tokens::ids`], borrowed from where they were checked, or copied.
    pub(crate) fn into_ids(self) -> Cow<'a, [u32]> {
        self.ids
    }

    /// The vocabulary that they were checked against.
    #[must_use]
    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }
}

/// Whether an id lies outside the vocabulary (of at most 2^31 ids).
///
/// Without a comparison, which vectors of unsigned numbers lack on plain x86-64: the top bit of `last - id` or of `id`
/// itself is set where `id > last`.
fn outside(ids: &[u32], vocab_size: u32) -> bool {
    let last = vocab_size.wrapping_sub(1);
    ids.iter().fold(0, |bits, &id| bits | id | last.wrapping_sub(id)) >= TOP
}

/// What `unknown` makes of ids of which one lies outside.
fn mended<T: Id>(ids: &[T], vocab_size: u32, width: Option<usize>, unknown: Unknown) -> Result<Vec<u32>> {
    let inside = |id: T| id.try_into().ok().filter(|&id: &u32| id < vocab_size);
    if unknown == Unknown::Error
        && let Some(at) = ids.iter().position(|&id| inside(id).is_none())
    {
        return Err(error(at, ids[at].try_into().unwrap_or(i64::MAX), vocab_size, width));
    }
    Ok(ids.iter().map(|&id| inside(id).unwrap_or(vocab_size)).collect())
}

/// The error for `token` at flat position `at`.
fn error(at: usize, token: i64, vocab_size: u32, width: Option<usize>) -> Error {
    let place = match width.filter(|&width| width > 0) {
        Some(width) => format!("[{}, {}]", at / width, at % width),
        None => format!("[{at}]"),
    };
    let message = format!(
        "tokens{place}: {token} lies outside the vocabulary of {vocab_size}; \
         use the tokenizer the keys were mined with, or unknown=\"miss\" to let such tokens match nothing"
    );
    Error::Token { message }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One id at a time, in numbers wide enough for all.
    fn plainly(ids: &[i128], vocab_size: u32, unknown: Unknown) -> std::result::Result<Vec<u32>, usize> {
        let inside = |&id: &i128| u32::try_from(id).ok().filter(|&id| id < vocab_size);
        match ids.iter().position(|id| inside(id).is_none()) {
            Some(at) if unknown == Unknown::Error => Err(at),
            _ => Ok(ids.iter().map(|id| inside(id).unwrap_or(vocab_size)).collect()),
        }
    }

    fn agree<T: Id + Into<i128>>(ids: &[T], vocab_size: u32) {
        let wide: Vec<i128> = ids.iter().map(|&id| id.into()).collect();
        for unknown in [Unknown::Error, Unknown::Miss] {
            let found = Tokens::copy(ids, vocab_size, None, unknown);
            match plainly(&wide, vocab_size, unknown) {
                Ok(want) => assert_eq!(found.unwrap().ids(), want),
                Err(at) => {
                    let message = found.unwrap_err().to_string();
                    let shown = i64::try_from(wide[at]).unwrap_or(i64::MAX);
                    assert!(message.contains(&format!("tokens[{at}]: {shown} lies outside")), "{message}");
                }
            }
        }
    }

    /// Mostly ids of a vocabulary, now and then one at a limit of some type.
    fn ids(vocab_size: u32) -> impl Strategy<Value = Vec<i64>> {
        let limits = [0, -1, 1 << 31, (1 << 31) - 1, u32::MAX.into(), 1 << 32, (1 << 32) + 5, i64::MAX, i64::MIN];
        let id = prop_oneof![
            2000 => 0..i64::from(vocab_size),
            1 => prop::sample::select(limits.to_vec()),
            1 => Just(i64::from(vocab_size)),
        ];
        prop::collection::vec(id, 0..BLOCK + 99)
    }

    proptest! {
        #[test]
        fn copies_equal_a_plain_loop(
            (vocab_size, ids) in prop_oneof![Just(1u32), 2..70_000u32, Just(1 << 20)].prop_flat_map(|v| (Just(v), ids(v)))
        ) {
            agree(&ids, vocab_size);
            agree(&ids.iter().map(|&id| id as u64).collect::<Vec<_>>(), vocab_size);
            agree(&ids.iter().map(|&id| id as i32).collect::<Vec<_>>(), vocab_size);
            agree(&ids.iter().map(|&id| id as u32).collect::<Vec<_>>(), vocab_size);
            agree(&ids.iter().map(|&id| id as u16).collect::<Vec<_>>(), vocab_size);
            let narrow: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
            for unknown in [Unknown::Error, Unknown::Miss] {
                let (there, copied) =
                    (Tokens::check(&narrow, vocab_size, Some(7), unknown), Tokens::copy(&narrow, vocab_size, Some(7), unknown));
                match (there, copied) {
                    (Ok(there), Ok(copied)) => prop_assert_eq!(there.ids(), copied.ids()),
                    (there, copied) => prop_assert_eq!(
                        there.err().map(|error| error.to_string()),
                        copied.err().map(|error| error.to_string())
                    ),
                }
            }
        }
    }
}

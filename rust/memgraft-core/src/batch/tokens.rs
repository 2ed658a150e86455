//! The ids of a batch, checked once.

use std::ops::{BitOr, Range};

use super::bounds::Bounds;
use super::options::Unknown;
use crate::ids::LowBits;
use crate::{Error, Result};

const TOP: u32 = 1 << 31;

/// An integer that callers hold token ids in.
trait Id: LowBits + Default + PartialEq + BitOr<Output = Self> + TryFrom<u32> + TryInto<u32> + TryInto<i64> {}

macro_rules! ids {
    ($($variant:ident $kind:ty),*) => {
        /// Token ids as callers hold them, for [`Tokens::check`].
        #[derive(Debug, Clone, Copy)]
        pub enum Ids<'a> {
            $(#[doc = concat!("`", stringify!($kind), "`")] $variant(&'a [$kind])),*
        }

        $(
            impl Id for $kind {}

            impl<'a> From<&'a [$kind]> for Ids<'a> {
                fn from(ids: &'a [$kind]) -> Self {
                    Self::$variant(ids)
                }
            }
        )*

        /// Runs a generic expression on whichever slice it is.
        macro_rules! each {
            ($ids:expr, $slice:ident => $body:expr) => {
                match $ids {
                    $(Ids::$variant($slice) => $body),*
                }
            };
        }
    };
}

ids!(I64 i64, I32 i32, U32 u32, U16 u16, U8 u8, I16 i16, U64 u64);

/// Checked ids, where the caller has them: each inside the vocabulary, or to be read as the one token past it, which
/// matches nothing.
#[derive(Debug, Clone, Copy)]
pub struct Tokens<'a> {
    ids: Ids<'a>,
    vocab_size: u32,
    /// Whether some lie outside.
    wild: bool,
}

impl<'a> Tokens<'a> {
    /// Checks `ids` in one pass.
    ///
    /// # Errors
    /// [`Error::Token`] for an id outside the vocabulary, with its position (row and column with a width), unless
    /// `unknown` lets it miss or `bounds` call its position padding.
    pub fn check(ids: impl Into<Ids<'a>>, vocab_size: u32, bounds: &Bounds<'_>, unknown: Unknown) -> Result<Self> {
        let ids = ids.into();
        let wild = each!(ids, ids => outside(ids, vocab_size));
        if wild
            && unknown == Unknown::Error
            && let Some((at, id)) = each!(ids, ids => first_outside(ids, vocab_size, bounds))
        {
            return Err(error(at, id, vocab_size, bounds.width));
        }
        Ok(Self { ids, vocab_size, wild })
    }

    /// Number of positions.
    pub(crate) fn len(&self) -> usize {
        each!(self.ids, ids => ids.len())
    }

    /// Refuses tokens that were checked against another vocabulary.
    ///
    /// # Errors
    /// [`Error::Argument`].
    pub(crate) fn check_vocab_size(&self, want: u32) -> Result<()> {
        if self.vocab_size == want {
            return Ok(());
        }
        let found = self.vocab_size;
        Err(Error::argument(format!("tokens: expected ids checked against the vocabulary of {want}, got {found}")))
    }

    /// Refuses lengths, by the names of their arguments, that are not one element a token.
    ///
    /// # Errors
    /// [`Error::Argument`].
    pub(crate) fn check_lengths<const N: usize>(&self, lengths: [(&str, usize); N]) -> Result<()> {
        let want = self.len();
        match lengths.into_iter().find(|&(_, len)| len != want) {
            None => Ok(()),
            Some((name, len)) => {
                Err(Error::argument(format!("{name}: expected {want} elements, one a token, got {len}")))
            }
        }
    }

    /// The tokens of `at`, each at most the vocabulary size, to `out` of the same length.
    pub(crate) fn read(&self, at: Range<usize>, out: &mut [u32]) {
        each!(self.ids, ids => {
            let ids = &ids[at];
            if self.wild {
                out.iter_mut().zip(ids).for_each(|(out, &id)| *out = inside(id, self.vocab_size).unwrap_or(self.vocab_size));
            } else {
                out.iter_mut().zip(ids).for_each(|(out, id)| *out = id.low());
            }
        });
    }

    /// Where `token` first occurs in `at`.
    pub(super) fn find(&self, token: u32, at: Range<usize>) -> Option<usize> {
        let start = at.start;
        each!(self.ids, ids => position(&ids[at], token)).map(|n| start + n)
    }
}

fn position<T: Id>(ids: &[T], token: u32) -> Option<usize> {
    let token = T::try_from(token).ok()?;
    first(ids, |id| id == token)
}

/// Where `is` first holds; looks at many items at a time, since few do.
pub(super) fn first<T: Copy>(items: &[T], is: impl Fn(T) -> bool) -> Option<usize> {
    const MANY: usize = 64;
    let any = |items: &[T]| items.iter().fold(false, |any, &item| any | is(item));
    let start = items.chunks(MANY).position(any)? * MANY;
    Some(start + items[start..].iter().position(|&item| is(item))?)
}

/// `id` as a token of the vocabulary.
#[inline(always)]
fn inside<T: Id>(id: T, vocab_size: u32) -> Option<u32> {
    id.try_into().ok().filter(|&id: &u32| id < vocab_size)
}

/// Whether an id lies outside the vocabulary (of at most 2^31 ids).
///
/// Without a comparison, which vectors of unsigned numbers lack on plain x86-64: the top bit of `last - id` or of `id`
/// itself is set where `id > last`; and an id that is negative or wider than 31 bits shows in the or of all.
fn outside<T: Id>(ids: &[T], vocab_size: u32) -> bool {
    let last = vocab_size.wrapping_sub(1);
    let (every, bits) =
        ids.iter().fold((T::default(), 0), |(every, bits), &id| (every | id, bits | last.wrapping_sub(id.low())));
    let every: Option<u32> = every.try_into().ok();
    !ids.is_empty() && (every.is_none_or(|every| every >= TOP) || bits >= TOP)
}

/// The first id outside that is not padding, as an error shows it.
fn first_outside<T: Id>(ids: &[T], vocab_size: u32, bounds: &Bounds<'_>) -> Option<(usize, i64)> {
    let outside = |at: usize| inside(ids[at], vocab_size).is_none() && !bounds.is_padding(at);
    let at = (0..ids.len()).find(|&at| outside(at))?;
    Some((at, ids[at].try_into().unwrap_or(i64::MAX)))
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

    fn agree<'a, T: Id + Into<i128>>(ids: &'a [T], vocab_size: u32)
    where
        Ids<'a>: From<&'a [T]>,
    {
        let wide: Vec<i128> = ids.iter().map(|&id| id.into()).collect();
        for unknown in [Unknown::Error, Unknown::Miss] {
            let found = Tokens::check(ids, vocab_size, &Bounds::default(), unknown);
            match plainly(&wide, vocab_size, unknown) {
                Ok(want) => {
                    let found = found.unwrap();
                    let mut read = vec![0; found.len()];
                    found.read(0..want.len(), &mut read);
                    assert_eq!(read, want);
                    for token in [0, want.len() as u32 / 2, vocab_size - 1] {
                        let start = want.len() / 3;
                        let at = wide[start..].iter().position(|&id| id == token.into()).map(|n| start + n);
                        assert_eq!(found.find(token, start..want.len()), at);
                    }
                }
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
        prop::collection::vec(id, 0..2000)
    }

    proptest! {
        #[test]
        fn checks_equal_a_plain_loop(
            (vocab_size, ids) in prop_oneof![Just(1u32), 2..70_000u32, Just(1 << 20)].prop_flat_map(|v| (Just(v), ids(v)))
        ) {
            agree(&ids, vocab_size);
            agree(&ids.iter().map(|&id| id as u64).collect::<Vec<_>>(), vocab_size);
            agree(&ids.iter().map(|&id| id as i32).collect::<Vec<_>>(), vocab_size);
            agree(&ids.iter().map(|&id| id as u32).collect::<Vec<_>>(), vocab_size);
            agree(&ids.iter().map(|&id| id as u16).collect::<Vec<_>>(), vocab_size);
            agree(&ids.iter().map(|&id| id as u8).collect::<Vec<_>>(), vocab_size);
            agree(&ids.iter().map(|&id| id as i16).collect::<Vec<_>>(), vocab_size);
        }
    }
}

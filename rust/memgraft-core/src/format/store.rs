//! Arrays that are owned or lie in a mapping, behind one type.

#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ops::{Deref, Range};
use std::sync::Arc;

use super::Map;

mod sealed {
    pub trait Sealed {}
    impl Sealed for u8 {}
    impl Sealed for u32 {}
    impl Sealed for u64 {}
}

/// Plain little-endian integers: every bit pattern is a value.
pub trait Pod: sealed::Sealed + Copy + Send + Sync + 'static {}
impl Pod for u8 {}
impl Pod for u32 {}
impl Pod for u64 {}

const _: () = assert!(cfg!(target_endian = "little"), "memgraft files are little-endian and read in place");

/// The bytes of a slice of plain integers.
#[must_use]
pub fn bytes_of<T: Pod>(values: &[T]) -> &[u8] {
    // SAFETY: `Pod` types have no padding, and u8 has no alignment or validity demands.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// An immutable array, owned or mapped.
#[derive(Debug, Clone)]
pub struct Store<T: Pod>(Inner<T>);

#[derive(Debug, Clone)]
enum Inner<T> {
    Owned(Arc<Vec<T>>),
    Mapped { map: Arc<Map>, range: Range<usize>, kind: PhantomData<T> },
}

impl<T: Pod> From<Vec<T>> for Store<T> {
    fn from(values: Vec<T>) -> Self {
        Self(Inner::Owned(Arc::new(values)))
    }
}

impl<T: Pod> Store<T> {
    /// The bytes `range` of `map` as an array; `None` if out of bounds, misaligned or of broken length.
    #[must_use]
    pub fn mapped(map: Arc<Map>, range: Range<usize>) -> Option<Self> {
        let bytes = map.bytes().get(range.clone())?;
        let whole = bytes.len().is_multiple_of(size_of::<T>());
        let aligned = bytes.as_ptr().cast::<T>().is_aligned();
        (whole && aligned).then(|| Self(Inner::Mapped { map, range, kind: PhantomData }))
    }
}

impl<T: Pod> Deref for Store<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        match &self.0 {
            Inner::Owned(values) => values,
            Inner::Mapped { map, range, .. } => {
                let bytes = &map.bytes()[range.clone()];
                // SAFETY: `mapped` checked bounds, alignment and length; the map is immutable
                // and lives as long as `self`; every bit pattern is a `T`.
                unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<T>()) }
            }
        }
    }
}

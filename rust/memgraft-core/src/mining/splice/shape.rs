//! What is the same of all records of a merge.

use crate::ids::usize_of;
use crate::mining::codec::KeyBytes;
use crate::mining::window::Packing;

/// How keys and tags lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// Bytes of a key.
    pub(super) num: usize,
    /// Bits of a first token, and bytes in which they lie.
    pub(super) token_bits: u32,
    pub(super) token_bytes: usize,
}

impl Shape {
    pub(super) fn of(packing: &Packing) -> Self {
        Self {
            num: KeyBytes::of(packing).num,
            token_bits: packing.token_bits(),
            token_bytes: usize_of(packing.token_bits().div_ceil(8)),
        }
    }

    /// The first token, plus one, of a key that starts with `bytes`.
    pub(super) fn slot(&self, bytes: [u8; 8]) -> u64 {
        u64::from_be_bytes(bytes) >> (u64::BITS - self.token_bits)
    }

    /// The word at `at`, its first byte the lowest.
    #[inline]
    pub(super) fn word(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(*bytes[at..].first_chunk().expect("expected room behind the records"))
    }

    /// The bytes that keys with first token `slot` - 1 start with, but for bits of other tokens.
    pub(super) fn bytes(&self, slot: u64) -> [u8; 8] {
        (slot << (u64::BITS - self.token_bits)).to_be_bytes()
    }
}

//! Run files: a sorted run under a name, which says what it holds and whence; `docs/FORMAT.md` has the layout.

mod facts;
mod file;
mod journal;
mod read;
mod sections;
mod write;

pub(super) use facts::add_piece;
pub use facts::{Facts, Shard};
pub use file::RunSet;
pub(super) use read::{MAX_COUNT, SetReader};
pub(super) use sections::Sections;
pub(super) use write::RunWriter;

use crate::fingerprint::Fingerprint;

/// First bytes of a run file.
pub const MAGIC: [u8; 8] = *b"MEMGRUNS";
/// Bytes before the first record.
pub const HEAD_LEN: usize = 64;
/// Bytes of an entry of the table of sections.
pub const SECTION_LEN: usize = 56;
/// Format version (major, minor).
pub const VERSION: (u16, u16) = (1, 1);
const ENDIAN: u32 = 0x0102_0304;

/// A section ends at the next first token once it has so many bytes; part of the format.
const SECTION_BYTES: u64 = if cfg!(test) { 64 } else { 1 << 20 };

/// The records of some first tokens: readable, and checked, apart from the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RunSection {
    /// Its first record starts with this token; no later section has it.
    pub(super) token: u32,
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) checksum: Fingerprint,
}

impl RunSection {
    fn encode(&self) -> [u8; SECTION_LEN] {
        let mut out = [0; SECTION_LEN];
        out[..4].copy_from_slice(&self.token.to_le_bytes());
        out[8..16].copy_from_slice(&self.offset.to_le_bytes());
        out[16..24].copy_from_slice(&self.length.to_le_bytes());
        out[24..].copy_from_slice(&self.checksum.0);
        out
    }

    fn decode(bytes: &[u8; SECTION_LEN]) -> Self {
        let mut checksum = [0; 32];
        checksum.copy_from_slice(&bytes[24..]);
        Self {
            token: crate::wire::u32_at(bytes, 0),
            offset: crate::wire::u64_at(bytes, 8),
            length: crate::wire::u64_at(bytes, 16),
            checksum: Fingerprint(checksum),
        }
    }
}

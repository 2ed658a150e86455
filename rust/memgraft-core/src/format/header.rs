//! The 4 KiB header: encode, decode, check. Offsets are those of `docs/FORMAT.md`.

use std::path::Path;

use crate::fingerprint::Fingerprint;
use crate::ids::{MAX_KEYS, MAX_ORDER, check_vocab_size, u64_of, usize_of};
use crate::wire::{array_at, u16_at, u32_at, u64_at};
use crate::{Error, Result};

/// Bytes of the header.
pub const HEADER_LEN: usize = 4096;
/// Where the header's own BLAKE3 lies; it covers every byte before it.
pub const CHECKSUM_OFFSET: usize = HEADER_LEN - 32;
/// Most sections of one file.
pub const MAX_SECTIONS: usize = (CHECKSUM_OFFSET - TABLE) / ENTRY;
/// What writes files: the tool and its version.
pub const CREATOR: &str = concat!("memgraft ", env!("CARGO_PKG_VERSION"));
/// Format version (major, minor): files of this major version up to this minor one are read.
pub const VERSION: (u16, u16) = (1, 1);

const MAGIC: [u8; 8] = *b"MEMGRAFT";
const ENDIAN: u32 = 0x0102_0304;
const TABLE: usize = 512;
const ENTRY: usize = 64;

/// What a container holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `keys.mgk`.
    Keys,
    /// `index.mgi`.
    Index,
}

impl Kind {
    const fn code(self) -> u32 {
        match self {
            Self::Keys => 1,
            Self::Index => 2,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Keys => "a key set (keys.mgk)",
            Self::Index => "an index (index.mgi)",
        }
    }
}

/// One row of the section table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SectionEntry {
    /// What the section holds; numbered per file kind.
    pub tag: u32,
    /// Alignment of `offset`, a power of two.
    pub alignment: u32,
    /// First byte in the file.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// BLAKE3 of the bytes.
    pub checksum: Fingerprint,
}

/// The decoded header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// What the file holds.
    pub kind: Kind,
    /// The least minor version whose readers understand the file.
    pub minor: u16,
    /// Kind-specific bits.
    pub flags: u32,
    /// Tokens are smaller than this.
    pub vocab_size: u32,
    /// Longest key present, 0 for the empty set.
    pub max_order: u32,
    /// Number of keys.
    pub num_keys: u64,
    /// Keys of order 1..=16.
    pub keys_by_order: [u64; MAX_ORDER],
    /// Content fingerprint of this file.
    pub fingerprint: Fingerprint,
    /// Content fingerprint of the key set it derives from.
    pub keyset_fingerprint: Fingerprint,
    /// Tool that wrote the file.
    pub creator: String,
    /// Kind-specific numbers.
    pub parameters: [u64; 16],
    /// Sections in file order.
    pub sections: Vec<SectionEntry>,
}

impl Header {
    /// The header's 4096 bytes, checksum included.
    ///
    /// # Errors
    /// [`Error::Limit`] with more than [`MAX_SECTIONS`] sections.
    pub fn encode(&self, file_length: u64) -> Result<Vec<u8>> {
        if self.sections.len() > MAX_SECTIONS {
            let message = format!("sections: at most {MAX_SECTIONS}, got {}", self.sections.len());
            return Err(Error::Limit { message });
        }
        let mut out = vec![0u8; HEADER_LEN];
        let mut put = |offset: usize, bytes: &[u8]| out[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(8, &ENDIAN.to_le_bytes());
        put(12, &VERSION.0.to_le_bytes());
        put(14, &self.minor.to_le_bytes());
        put(16, &crate::ids::saturating_u32(HEADER_LEN).to_le_bytes());
        put(20, &self.kind.code().to_le_bytes());
        put(24, &self.flags.to_le_bytes());
        put(28, &crate::ids::saturating_u32(self.sections.len()).to_le_bytes());
        put(32, &file_length.to_le_bytes());
        put(40, &self.vocab_size.to_le_bytes());
        put(44, &self.max_order.to_le_bytes());
        put(48, &self.num_keys.to_le_bytes());
        for (i, n) in self.keys_by_order.iter().enumerate() {
            put(64 + 8 * i, &n.to_le_bytes());
        }
        put(192, &self.fingerprint.0);
        put(224, &self.keyset_fingerprint.0);
        let creator = self.creator.as_bytes();
        put(256, &creator[..creator.len().min(63)]);
        for (i, n) in self.parameters.iter().enumerate() {
            put(320 + 8 * i, &n.to_le_bytes());
        }
        for (i, section) in self.sections.iter().enumerate() {
            let at = TABLE + ENTRY * i;
            put(at, &section.tag.to_le_bytes());
            put(at + 4, &section.alignment.to_le_bytes());
            put(at + 8, &section.offset.to_le_bytes());
            put(at + 16, &section.length.to_le_bytes());
            put(at + 32, &section.checksum.0);
        }
        let checksum = blake3::hash(&out[..CHECKSUM_OFFSET]);
        out[CHECKSUM_OFFSET..].copy_from_slice(checksum.as_bytes());
        Ok(out)
    }

    /// Decodes and checks the header of a file of `kind` and of the length of `file` at `path`.
    ///
    /// # Errors
    /// [`Error::Format`] that says what was expected, what was found, and the way out.
    pub fn decode(file: &[u8], kind: Kind, path: &Path) -> Result<Self> {
        let bad = |message: String| Error::format(path, message);
        if file.len() < HEADER_LEN {
            let n = file.len();
            return Err(bad(format!("expected {} of at least {HEADER_LEN} bytes, got {n} bytes", kind.name())));
        }
        let bytes = &file[..HEADER_LEN];
        if bytes[..8] != MAGIC {
            return Err(bad(format!("expected {} that starts with MEMGRAFT, got {:02x?}", kind.name(), &bytes[..8])));
        }
        if u32_at(bytes, 8) != ENDIAN {
            return Err(bad("expected a little-endian file; rebuild it on a little-endian machine".into()));
        }
        let (major, minor) = (u16_at(bytes, 12), u16_at(bytes, 14));
        if major != VERSION.0 || minor > VERSION.1 {
            let (want, newest) = VERSION;
            let message = format!("expected format {want}.0 to {want}.{newest}, got {major}.{minor}");
            return Err(bad(message + "; rebuild it or update memgraft"));
        }
        if blake3::hash(&bytes[..CHECKSUM_OFFSET]).as_bytes() != &bytes[CHECKSUM_OFFSET..] {
            return Err(
                bad("the header's checksum does not match: the file is damaged; copy or build it again".into()),
            );
        }
        if u32_at(bytes, 20) != kind.code() {
            return Err(bad(format!("expected {}, got file kind {}", kind.name(), u32_at(bytes, 20))));
        }
        if usize_of(u32_at(bytes, 16)) != HEADER_LEN {
            return Err(bad(format!("expected a header of {HEADER_LEN} bytes, got {}", u32_at(bytes, 16))));
        }
        let file_length = u64_at(bytes, 32);
        if file_length != u64_of(file.len()) {
            let found = file.len();
            return Err(bad(format!(
                "expected {file_length} bytes, got {found}: truncated or overgrown; copy it again"
            )));
        }
        let num_sections = usize_of(u32_at(bytes, 28));
        if num_sections > MAX_SECTIONS {
            return Err(bad(format!("expected at most {MAX_SECTIONS} sections, got {num_sections}")));
        }
        let sections = (0..num_sections).map(|i| section_at(bytes, i, path, file.len())).collect::<Result<Vec<_>>>()?;
        let creator = &bytes[256..320];
        let creator = &creator[..creator.iter().position(|&b| b == 0).unwrap_or(creator.len())];
        let header = Self {
            kind,
            minor,
            flags: u32_at(bytes, 24),
            vocab_size: u32_at(bytes, 40),
            max_order: u32_at(bytes, 44),
            num_keys: u64_at(bytes, 48),
            keys_by_order: std::array::from_fn(|i| u64_at(bytes, 64 + 8 * i)),
            fingerprint: Fingerprint(array_at(bytes, 192)),
            keyset_fingerprint: Fingerprint(array_at(bytes, 224)),
            creator: String::from_utf8_lossy(creator).into_owned(),
            parameters: std::array::from_fn(|i| u64_at(bytes, 320 + 8 * i)),
            sections,
        };
        check_vocab_size(header.vocab_size).map_err(|e| bad(e.to_string()))?;
        let total: u64 = header.keys_by_order.iter().fold(0, |a, &b| a.saturating_add(b));
        let longest = header.keys_by_order.iter().rposition(|&n| n > 0).map_or(0, |i| i + 1);
        if header.num_keys > MAX_KEYS || total != header.num_keys || longest != usize_of(header.max_order) {
            return Err(bad(format!(
                "the header contradicts itself: {} keys, {total} by order, longest order {longest} or {}",
                header.num_keys, header.max_order
            )));
        }
        Ok(header)
    }
}

fn section_at(bytes: &[u8], i: usize, path: &Path, file_length: usize) -> Result<SectionEntry> {
    let at = TABLE + ENTRY * i;
    let entry = SectionEntry {
        tag: u32_at(bytes, at),
        alignment: u32_at(bytes, at + 4),
        offset: u64_at(bytes, at + 8),
        length: u64_at(bytes, at + 16),
        checksum: Fingerprint(array_at(bytes, at + 32)),
    };
    let end = entry.offset.checked_add(entry.length);
    let fits = entry.offset >= u64_of(HEADER_LEN) && end.is_some_and(|end| end <= u64_of(file_length));
    let aligned = entry.alignment.is_power_of_two() && entry.offset.is_multiple_of(u64::from(entry.alignment));
    if !fits || !aligned {
        let (tag, offset, length) = (entry.tag, entry.offset, entry.length);
        let message =
            format!("section {tag} ({length} bytes at {offset}) does not fit the file of {file_length} bytes");
        return Err(Error::format(path, message));
    }
    Ok(entry)
}

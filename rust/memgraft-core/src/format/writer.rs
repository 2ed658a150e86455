//! Lays sections out, hashes them, writes the container.

use std::path::Path;

use super::{AtomicFile, HEADER_LEN, Header, SectionEntry};
use crate::Result;
use crate::fingerprint::digest;
use crate::ids::u64_of;

/// A section to write.
#[derive(Debug, Clone, Copy)]
pub struct Section<'a> {
    /// What it holds.
    pub tag: u32,
    /// Alignment in the file, a power of two.
    pub alignment: u32,
    /// Its bytes.
    pub bytes: &'a [u8],
}

/// Where a section of `length` bytes that follows the byte `end` starts, and where it ends.
fn place(end: u64, alignment: u32, length: u64) -> (u64, u64) {
    let offset = end.next_multiple_of(u64::from(alignment));
    (offset, offset + length)
}

/// Bytes of a file with sections of these alignments and lengths.
#[must_use]
pub fn container_bytes(sections: impl IntoIterator<Item = (u32, u64)>) -> u64 {
    sections.into_iter().fold(u64_of(HEADER_LEN), |end, (alignment, length)| place(end, alignment, length).1)
}

/// Writes `sections` under `header` (whose section table is filled in here) to `path`.
///
/// # Errors
/// Limits of the header, the system's refusal, or [`crate::Error::Interrupted`]; the old file at `path` then stays.
pub fn write_container(path: &Path, mut header: Header, sections: &[Section<'_>], threads: usize) -> Result<()> {
    let mut end = u64_of(HEADER_LEN);
    header.sections.clear();
    for section in sections {
        let offset;
        (offset, end) = place(end, section.alignment, u64_of(section.bytes.len()));
        header.sections.push(SectionEntry {
            tag: section.tag,
            alignment: section.alignment,
            offset,
            length: u64_of(section.bytes.len()),
            checksum: digest(section.bytes, threads)?,
        });
    }
    let mut file = AtomicFile::create(path)?;
    file.write_all(&header.encode(end)?)?;
    for (section, entry) in sections.iter().zip(&header.sections) {
        if !section.bytes.is_empty() {
            file.seek(entry.offset)?;
            file.write_all(section.bytes)?;
        }
    }
    // A trailing empty section with a large alignment would leave the file short of `end`.
    file.set_len(end)?;
    file.commit()
}

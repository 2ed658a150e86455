//! An index in a file: its two forms, saving, opening, verifying.

use std::path::Path;

use super::{Index, content_fingerprint};
use crate::automaton::{Region, Table};
use crate::canon::{self, Canon};
use crate::format::{
    CREATOR, Container, Header, Kind, Load, Section, Store, bytes_of, container_bytes, write_container,
};
use crate::ids::{low_u32, saturating_u32, u64_of, usize_of};
use crate::threads::default_threads;
use crate::{Error, Result};

const TABLE: u32 = 16;
const REGIONS: u32 = 17;
const NODES: u32 = 18;
/// Flag of the archive form.
const ARCHIVE: u32 = 1;
/// Alignment in the file of a table that fills a huge page, and of a smaller one.
const TABLE_ALIGNMENT: (u32, u32) = (2 << 20, 4096);

/// What a file holds beside the canonical sections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// The transition table too: opens in no time.
    #[default]
    Fast,
    /// Nothing else: about a fifth of the size; opening builds the table again.
    Archive,
}

fn table_alignment(bytes: usize) -> u32 {
    let (huge, page) = TABLE_ALIGNMENT;
    if bytes >= usize_of(huge) { huge } else { page }
}

impl Index {
    /// Writes the index to `path`, beside it first.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Interrupted`]; the old file at `path` then stays.
    pub fn save(&self, path: impl AsRef<Path>, form: Form) -> Result<()> {
        let mut parameters = [0u64; 16];
        parameters[0] = self.canon.base();
        parameters[1] = u64::from(self.table.fan_shift());
        parameters[2] = u64::from(self.table.max_spill());
        let header = Header {
            kind: Kind::Index,
            // Packed sections came with format 1.1.
            minor: u16::from(form == Form::Archive),
            flags: if form == Form::Archive { ARCHIVE } else { 0 },
            vocab_size: self.vocab_size,
            max_order: saturating_u32(self.max_order()),
            num_keys: u64_of(self.num_keys()),
            keys_by_order: self.keys_by_order,
            fingerprint: self.fingerprint(),
            keyset_fingerprint: self.keyset_fingerprint,
            creator: CREATOR.into(),
            parameters,
            sections: Vec::new(),
        };
        let regions: Vec<u32> = self.table.regions().iter().flat_map(|r| [r.start, r.lines]).collect();
        let packed = match form {
            Form::Fast => Vec::new(),
            Form::Archive => self
                .canon
                .packed_sections(default_threads())
                .map_err(|e| Error::io(path.as_ref(), "cannot compress the archive", e))?,
        };
        let mut sections = match form {
            Form::Fast => self.canon.sections(),
            Form::Archive => vec![self.canon.reserved_section()],
        };
        sections.extend(packed.iter().map(|(tag, bytes)| Section { tag: *tag, alignment: 64, bytes }));
        if form == Form::Fast {
            sections.push(Section { tag: NODES, alignment: 64, bytes: bytes_of(&self.nodes) });
            sections.push(Section { tag: REGIONS, alignment: 64, bytes: bytes_of(&regions) });
            let bytes = bytes_of(self.table.words());
            sections.push(Section { tag: TABLE, alignment: table_alignment(bytes.len()), bytes });
        }
        write_container(path.as_ref(), header, &sections, default_threads())
    }

    /// Bytes of the file that [`Index::save`] writes in the fast form.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        let table = size_of_val(self.table.words());
        let canonical = self.canon.sections();
        let lengths = canonical.iter().map(|section| (section.alignment, u64_of(section.bytes.len())));
        container_bytes(lengths.chain([
            (64, u64_of(size_of_val(&*self.nodes))),
            (64, u64_of(self.table.regions().len() * 8)),
            (table_alignment(table), u64_of(table)),
        ]))
    }

    /// Opens the index at `path`: O(header) for the fast form with [`Load::Map`]; the archive form is expanded in memory.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Format`].
    pub fn open(path: impl AsRef<Path>, load: Load) -> Result<Self> {
        let path = path.as_ref();
        let container = Container::open(path, Kind::Index, load)?;
        let Header { parameters, vocab_size, keys_by_order, keyset_fingerprint, num_keys, .. } = container.header;
        if container.header.fingerprint != content_fingerprint(keyset_fingerprint) {
            return Err(Error::format(path, "its fingerprint is not that of its key set; build the index again"));
        }
        if let Some(keys) = canon::unpack(&container, parameters[0])? {
            return Ok(Self { container: Some(container), ..Self::build(&keys)? });
        }
        let canon = Canon::open(&container, parameters[0])?;
        if container.header.flags & ARCHIVE != 0 {
            let keys = canon.key_set(keyset_fingerprint, path)?;
            return Ok(Self { container: Some(container), ..Self::build(&keys)? });
        }
        let regions: Store<u32> = container.section(REGIONS, "regions")?;
        let regions = regions.chunks_exact(2).map(|pair| Region { start: pair[0], lines: pair[1] }).collect();
        let words = container.section(TABLE, "table")?;
        let table = Table::new(words, regions, low_u32(parameters[1]), vocab_size, low_u32(parameters[2]))
            .map_err(|e| Error::format(path, e.to_string()))?;
        let nodes = container.section_of(NODES, "nodes", num_keys)?;
        Ok(Self { canon, table, nodes, keys_by_order, vocab_size, keyset_fingerprint, container: Some(container) })
    }

    /// Whether the file it was opened from is the archive form.
    #[must_use]
    pub fn is_archive(&self) -> bool {
        self.container.as_ref().is_some_and(|container| container.header.flags & ARCHIVE != 0)
    }

    /// Checks every byte of the file it was opened from; an index in memory has nothing to check.
    ///
    /// # Errors
    /// [`Error::Format`] that names what is damaged.
    pub fn verify(&self, threads: usize) -> Result<()> {
        self.container.as_ref().map_or(Ok(()), |container| container.verify(threads))
    }
}

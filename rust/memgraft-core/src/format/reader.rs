//! An opened container: checked header, mapped sections, full verification.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{HEADER_LEN, Header, Kind, Load, Map, Pod, SectionEntry, Store, map_file};
use crate::fingerprint::digest;
use crate::ids::usize_of_u64;
use crate::memory::read_file;
use crate::{Error, Result};

/// An opened file whose header has been checked and whose sections have not been read yet.
#[derive(Debug, Clone)]
pub struct Container {
    /// Where it was opened.
    pub path: PathBuf,
    /// Its header.
    pub header: Header,
    map: Arc<Map>,
}

impl Container {
    /// Opens `path` and checks its header; O(header) with [`Load::Map`].
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Format`].
    pub fn open(path: &Path, kind: Kind, load: Load) -> Result<Self> {
        let map = match load {
            Load::Map => map_file(path)?,
            Load::Ram => read_file(path)?,
        };
        let header = Header::decode(map.bytes(), kind, path)?;
        Ok(Self { path: path.to_path_buf(), header, map: Arc::new(map) })
    }

    /// The entry of the section `tag`, if the file has one.
    #[must_use]
    pub fn entry(&self, tag: u32) -> Option<&SectionEntry> {
        self.header.sections.iter().find(|entry| entry.tag == tag)
    }

    /// The section `tag` as an array of any length.
    ///
    /// # Errors
    /// [`Error::Format`] if it is missing or is not an array of `T`.
    pub fn section<T: Pod>(&self, tag: u32, name: &str) -> Result<Store<T>> {
        let Some(entry) = self.entry(tag) else {
            return Err(Error::format(&self.path, format!("section {name} ({tag}) is missing; build the file again")));
        };
        let start = usize_of_u64(entry.offset);
        Store::mapped(self.map.clone(), start..start + usize_of_u64(entry.length)).ok_or_else(|| {
            let message = format!("section {name} ({tag}) is not an array of {}-byte integers", size_of::<T>());
            Error::format(&self.path, message)
        })
    }

    /// The section `tag` as an array of exactly `len` elements.
    ///
    /// # Errors
    /// As [`Container::section`], or [`Error::Format`] when the length differs.
    pub fn section_of<T: Pod>(&self, tag: u32, name: &str, len: u64) -> Result<Store<T>> {
        let store = self.section(tag, name)?;
        if crate::ids::u64_of(store.len()) != len {
            let found = store.len();
            return Err(Error::format(&self.path, format!("section {name}: expected {len} elements, got {found}")));
        }
        Ok(store)
    }

    /// Hashes every section, in parallel, and checks that the gaps between them are zero.
    ///
    /// # Errors
    /// [`Error::Format`] that names the damaged section.
    pub fn verify(&self, threads: usize) -> Result<()> {
        self.map.populate();
        let bytes = self.map.bytes();
        let mut end = HEADER_LEN;
        for entry in &self.header.sections {
            let start = usize_of_u64(entry.offset);
            if start < end || bytes[end..start].iter().any(|&b| b != 0) {
                let message = format!("the padding before section {} is not zero: the file is damaged", entry.tag);
                return Err(Error::format(&self.path, message));
            }
            end = start + usize_of_u64(entry.length);
            let found = digest(&bytes[start..end], threads)?;
            if found != entry.checksum {
                let message = format!(
                    "section {}: expected BLAKE3 {}, got {found}: the file is damaged; copy or build it again",
                    entry.tag, entry.checksum
                );
                return Err(Error::format(&self.path, message));
            }
        }
        if bytes[end..].is_empty() {
            return Ok(());
        }
        Err(Error::format(&self.path, format!("{} bytes follow the last section", bytes.len() - end)))
    }
}

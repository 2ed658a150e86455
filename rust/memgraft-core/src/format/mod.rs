//! Bytes on disk: the container shared by `keys.mgk` and `index.mgi`, its
//! mapping, and the one way an artifact is written. `docs/FORMAT.md` is the
//! specification.

mod atomic;
mod header;
mod reader;
mod store;
mod writer;

pub use crate::memory::{HugeBuffer, Load, Map, map_file};
pub use atomic::AtomicFile;
pub(crate) use atomic::sync_parent;
pub use header::{CHECKSUM_OFFSET, CREATOR, HEADER_LEN, Header, Kind, MAX_SECTIONS, SectionEntry, VERSION};
pub use reader::Container;
pub use store::{Pod, Store, bytes_of};
pub use writer::{Section, container_bytes, write_container};

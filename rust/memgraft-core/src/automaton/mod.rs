//! The row-preserving suffix automaton of a key set: states, transitions,
//! suffix links, outputs. No files, no threads. `docs/DESIGN.md` says why it
//! looks like this; `docs/FORMAT.md` gives the words bit by bit.
//!
//! A state is a prefix of a key that has children. Its **block** lists them:
//! token, continuation (the longest suffix of the child, itself included, that
//! has children) and output (row and order of the longest key that ends
//! there). A block of up to five children fits one 64-byte line together with
//! its suffix link, so one line answers a probe whether it hits or misses.

mod builder;
mod layout;
mod prefetch;
mod probe;
mod table;
mod trie;
mod view;
mod words;

pub(crate) use builder::build;
pub(crate) use prefetch::prefetch;
#[cfg(target_arch = "x86_64")]
pub(crate) use probe::Avx2;
pub(crate) use probe::{Portable, Prober};
pub use table::{Found, Region, Table};
pub(crate) use trie::Trie;
pub(crate) use view::Place;
pub use view::View;
pub use words::NO_ROW;
pub(crate) use words::TokenWord;

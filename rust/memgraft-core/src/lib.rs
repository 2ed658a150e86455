//! The core of memgraft: key sets mined from token corpora, the exact
//! longest-match index over them, and the gather of their value rows.
//!
//! Imports flow one way: `index batch > mining > values automaton > keyset
//! corpus > format > fingerprint ids error`.

pub mod error;

pub use error::{Error, Result};

//! The core of memgraft: key sets mined from token corpora, the exact
//! longest-match index over them, and the gather of their value rows.
//!
//! Imports flow one way: `stack > index > batch > mining > values automaton > keyset
//! corpus > format > fingerprint ids error`.

pub mod automaton;
pub mod batch;
pub(crate) mod canon;
pub mod corpus;
pub mod error;
pub mod fingerprint;
pub mod format;
pub mod ids;
pub mod index;
pub mod keyset;
pub mod mining;
pub mod stack;
mod threads;
pub mod values;

pub use error::{Error, Result};

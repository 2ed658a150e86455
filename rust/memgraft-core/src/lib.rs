//! The core of memgraft: key sets mined from token corpora, the exact
//! longest-match index over them, and the gather of their value rows.
//!
//! [`mining`] reads a [`corpus`] and makes a [`keyset`]; [`index`] is built from
//! one and looks tokens up; [`stack`] does so with several indexes; [`values`]
//! copies the rows that a lookup found. `docs/DESIGN.md` states which module may
//! call which, and a test holds the files to it.

#![cfg_attr(test, allow(clippy::as_conversions, reason = "tests compute expected values in any type"))]

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
mod memory;
pub mod mining;
pub mod stack;
pub mod stop;
pub mod threads;
pub mod values;
mod wire;

pub use error::{Error, Result};

//! Longest matches at every position of a batch: interleaved lanes, threads
//! per call, caller-owned output.

mod bounds;
mod lanes;
mod limits;
mod lookup;
mod options;
mod segments;
mod tokens;

pub use bounds::Bounds;
pub(crate) use limits::Limits;
pub(crate) use lookup::{Layer, lookup, merge};
pub use options::{Instructions, Options, Unknown};
pub use tokens::{Ids, Tokens};

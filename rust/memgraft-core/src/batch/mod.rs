//! Longest matches at every position of a batch: interleaved lanes, threads
//! per call, caller-owned output.

mod bounds;
mod extending;
mod extensions;
mod lanes;
mod layer;
mod limits;
mod lookup;
mod options;
mod segments;
mod tokens;

pub use bounds::Bounds;
pub(crate) use extensions::{Extensions, MAX_EXTENSIONS};
pub(crate) use layer::{Layer, merge};
pub(crate) use limits::Limits;
pub(crate) use lookup::lookup;
pub use options::{Instructions, Options, Unknown};
pub use tokens::{Ids, Tokens};

//! Finds at every position of a batch the longest key that ends there, and writes its row and order into the caller's arrays.
//!
//! Threads share the positions of a call; lanes of a thread walk the automaton in turn, so that one's memory arrives while
//! the others work.

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

//! Value tables: frozen rows on disk, gathered into memory that the caller owns.
//!
//! A table is `[rows, taps, value_dim]` in one of five dtypes, split over
//! safetensors shards whose data starts on a page. [`ValueTable::stage`] turns
//! row ids into distinct rows, an inverse, and the rows' bytes.

mod bounded;
mod cold;
pub mod dedup;
pub mod dtype;
mod file;
mod gather;
mod header;
mod kernel;
mod reads;
mod resident;
mod rows;
mod shard;
mod sys;
pub mod table;
#[cfg(target_os = "linux")]
mod uring;
pub mod verify;

pub use bounded::Distinct;
pub use cold::ColdReader;
pub use dtype::ValueDtype;
pub use gather::GatherFacts;
pub use shard::Shard;
pub use table::{Staged, ValueTable};

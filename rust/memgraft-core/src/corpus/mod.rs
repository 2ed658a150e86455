//! Token corpora: one reader over the formats that training code writes.
//!
//! A [`Corpus`] is a stream of tokens cut into documents, whatever the files
//! are: several shards follow one another in the order given, documents keep
//! their order, and any window can be read. Nothing is copied at opening.

mod boundaries;
pub(crate) mod content;
mod detect;
mod dtype;
mod flat;
mod hashes;
mod indexed;
mod layout;
mod numpy;
mod shard;
mod split;
mod stream;

pub use detect::Format;
pub use dtype::TokenType;
pub use hashes::{Hashes, Runs, hash_documents};
pub(crate) use stream::BLOCK;
pub use stream::{Corpus, OpenOptions, Split};

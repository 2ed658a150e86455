//! Mining: the frequent n-grams of a corpus, with exact counts and document
//! frequencies of every order, within a memory budget.
//!
//! One sort serves all orders. A record for every position holds the longest
//! n-gram that starts there (cut at the document's end and at reserved
//! tokens), packed so that integers sort like tuples; see [`block`] for how
//! document frequency comes out of the same sort. Blocks of whole documents
//! are sorted by threads and kept, or spilled where the corpus is larger than
//! the memory; then ranges of first tokens are merged and counted apart. Every
//! number is a sum over documents, so that neither threads nor memory nor the
//! cut into blocks can change the result.
//!
//! A [`RunSet`] is the cut between the two halves: [`part::mine_part`] leaves
//! the sorted run of some documents in a file, [`merge_parts`] and [`select_parts`] merge and count
//! such files, wherever they were made.

mod block;
mod buckets;
mod choice;
mod codec;
mod control;
mod count;
mod gathered;
mod group;
mod join;
mod kin;
mod left;
mod merge;
mod options;
mod part;
mod parts;
mod plan;
mod record;
mod resolve;
mod runs;
mod scan;
mod select;
mod sketch;
mod spill;
mod splice;
mod stream;
mod stretch;
mod task;
mod window;

pub use choice::{Batch, Choice, Filter, Rank};
pub use control::Report;
pub use join::{merge_parts, most_parts, range_bytes, select_parts};
pub use options::{MIN_MEMORY, Means, MineOptions, Mined};
pub use part::{PartOptions, mine_part};
pub use parts::MergedFacts;
pub use runs::{Facts, HEAD_LEN, MAGIC, RunSet, Shard};
pub use task::{Estimate, estimate, mine};

/// Reads settings of a part.
///
/// # Errors
/// [`crate::Error::Argument`] where `text` is not JSON.
pub fn parse_settings(text: &str) -> crate::Result<serde_json::Value> {
    serde_json::from_str(text).map_err(|e| crate::Error::argument(format!("settings: expected JSON, found: {e}")))
}

#[cfg(test)]
mod kin_tests;
#[cfg(test)]
mod part_tests;
#[cfg(test)]
mod run_tests;
#[cfg(test)]
mod sketch_tests;
#[cfg(test)]
mod tests;

//! Holding documents out: two views on the same files.

use super::hashes::{GAMMA, scramble};
use super::stream::{Corpus, Split};
use crate::ids::{share_of, u64_of};
use crate::{Error, Result};

/// splitmix64's output function: the order in which documents are held out is fixed by the format of a split,
/// never by a library.
fn mix(value: u64) -> u64 {
    scramble(value.wrapping_add(GAMMA))
}

/// The rank by which document `index` is chosen.
fn rank(seed: u64, index: usize) -> (u64, usize) {
    (mix(mix(seed) ^ u64_of(index)), index)
}

impl Corpus {
    /// Splits documents into (training part, held-out part); both keep the order of documents.
    ///
    /// `round(fraction * documents)` documents, one at least, are held out: those whose hash of seed and index is smallest.
    /// A larger fraction holds out a superset.
    ///
    /// # Errors
    /// [`Error::Argument`] for a fraction outside (0, 1), [`Error::Corpus`] where a part would be without tokens.
    pub fn split(&self, fraction: f64, seed: u64, threads: usize) -> Result<(Self, Self)> {
        if !(fraction > 0.0 && fraction < 1.0) {
            return Err(Error::argument(format!("held_out: expected a share between 0 and 1, got {fraction}")));
        }
        let documents = self.num_documents();
        let count = share_of(fraction, documents).max(1);
        let path = self.paths().next().unwrap_or_else(|| std::path::Path::new("corpus")).to_path_buf();
        if count >= documents {
            return Err(Error::corpus(
                path,
                format!(
                    "expected at least 2 documents with some left to train on, found {documents} of which {count} would be \
                     held out; give eos_id= so that documents are told apart, or more text"
                ),
            ));
        }
        let mut order: Vec<usize> = (0..documents).collect();
        order.select_nth_unstable_by_key(count - 1, |&index| rank(seed, index));
        let mut chosen = vec![false; documents];
        order[..count].iter().for_each(|&index| chosen[index] = true);
        let facts = Split {
            held_out: false,
            fraction,
            seed,
            of: self.fingerprint(threads)?,
            num_documents: u64_of(documents),
            num_held_out: u64_of(count),
        };
        let part = |held_out: bool| {
            let layout = self.layout.select((0..documents).filter(|&index| chosen[index] == held_out));
            if layout.num_tokens() == 0 {
                let name = if held_out { "held-out" } else { "training" };
                return Err(Error::corpus(
                    &path,
                    format!("expected tokens in the {name} part, found none; try another seed="),
                ));
            }
            Ok(self.with_layout(layout, Some(Split { held_out, ..facts.clone() })))
        };
        Ok((part(false)?, part(true)?))
    }
}

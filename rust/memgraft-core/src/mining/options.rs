//! What is asked of mining, and what comes back.

use std::path::PathBuf;

use super::choice::Choice;
use super::stretch::{MIN_READ_BUFFER, STREAM_BYTES};
use super::window::Orders;
use crate::corpus::Corpus;
use crate::ids::{check_vocab_size, u64_of, usize_of_u64};
use crate::keyset::KeySet;
use crate::{Error, Result};

/// The least memory that mining works in.
pub const MIN_MEMORY: u64 = 1 << 20;

/// Run files open at a time.
pub(super) const MAX_FILES: usize = 256;

/// With what means to work; they never change the result.
#[derive(Debug, Clone)]
pub struct Means {
    /// Bytes of working memory, the result included.
    pub memory: u64,
    /// Folder for spilled runs.
    pub temporary: PathBuf,
    /// Threads.
    pub threads: usize,
    /// Leaves out what a first pass over a sketch has seen once, where the corpus outgrows the memory.
    pub sketch: bool,
    /// Forces spilling with blocks of so many positions; for tests.
    #[doc(hidden)]
    pub block_size: Option<u64>,
    /// Forces merging of so many runs at a time; for tests.
    #[doc(hidden)]
    pub max_fan_in: Option<usize>,
}

impl Means {
    /// Bytes of buffers for each thread that merges.
    pub(super) fn buffers(&self) -> u64 {
        self.memory / 8 / u64_of(self.threads)
    }

    /// How many runs one merge may read.
    pub(super) fn fan_in(&self) -> usize {
        let fits = || usize_of_u64(self.buffers() / u64_of(MIN_READ_BUFFER + STREAM_BYTES)).max(2);
        self.max_fan_in.unwrap_or_else(fits)
    }
}

/// What to mine and with what means.
#[derive(Clone)]
pub struct MineOptions<'a> {
    /// Which n-grams become keys.
    pub choice: Choice<'a>,
    /// Every token is smaller than this.
    pub vocab_size: u32,
    /// Tokens that are in no key and end every n-gram.
    pub reserved: Vec<u32>,
    /// Evaluation text: no key from the given order up occurs in it.
    pub excluded: Option<(Corpus, usize)>,
    /// Memory, threads, disk.
    pub means: Means,
}

/// Mined keys and what was counted.
#[derive(Debug, Clone)]
pub struct Mined {
    /// The keys, without metadata.
    pub keys: KeySet,
    /// Per order: positions where an n-gram fits, all of them counted.
    pub positions: Orders,
    /// Per order: distinct n-grams.
    pub distinct: Orders,
    /// Per order: n-grams of at least the minimum count and number of documents.
    pub frequent: Orders,
    /// Per order: of these, those in the excluded text.
    pub excluded: Orders,
    /// Sorted runs before merging.
    pub num_runs: u64,
    /// Bytes written to the temporary folder.
    pub spilled_bytes: u64,
}

impl MineOptions<'_> {
    pub(super) fn check(&self) -> Result<()> {
        check(self.vocab_size, &self.reserved, &self.means)?;
        self.choice.check(self.vocab_size, &self.reserved)
    }
}

/// Checks what every kind of mining is told.
pub(super) fn check(vocab_size: u32, reserved: &[u32], means: &Means) -> Result<()> {
    check_vocab_size(vocab_size)?;
    if let Some(token) = reserved.iter().find(|&&token| token >= vocab_size) {
        return Err(Error::argument(format!(
            "reserved: expected tokens below vocab_size {vocab_size}, got {token}; give the tokenizer's full size"
        )));
    }
    if means.threads == 0 {
        return Err(Error::argument("expected threads of 1 and more, got 0"));
    }
    // Per thread: a histogram of tokens, twice.
    let least = MIN_MEMORY + u64::from(vocab_size) * 16 * u64_of(means.threads);
    if means.memory < least {
        return Err(Error::argument(format!(
            "memory: expected at least {least} bytes for {vocab_size} tokens of vocabulary and {} threads, got {}",
            means.threads, means.memory
        )));
    }
    Ok(())
}

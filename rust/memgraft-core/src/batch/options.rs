//! How a lookup runs, and what unknown tokens do.

/// How to run a lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Threads at most; small batches run on the calling thread alone.
    pub threads: usize,
    /// Lanes per thread: 1, 8, 16 or 32; other numbers are rounded up, more than 32 are 32. Without `prefetch` 1 or 16.
    pub lanes: usize,
    /// Whether lanes prefetch.
    pub prefetch: bool,
    /// What of the processor to use.
    pub instructions: Instructions,
}

impl Default for Options {
    fn default() -> Self {
        Self { threads: 1, lanes: 32, prefetch: true, instructions: Instructions::Best }
    }
}

/// Instruction sets; the answers are the same, but for a damaged table's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Instructions {
    /// Those of every processor of the architecture.
    Portable,
    /// AVX2 where there is one.
    #[default]
    Best,
}

/// What a token outside the vocabulary does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unknown {
    /// An error that names its position.
    #[default]
    Error,
    /// It matches nothing, and nothing matches across it.
    Miss,
}

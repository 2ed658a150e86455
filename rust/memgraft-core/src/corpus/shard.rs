//! One token file: a mapped run of fixed-width integers.

use std::path::{Path, PathBuf};

use super::dtype::TokenType;
use crate::format::{Map, map_file};
use crate::ids::{MAX_VOCAB_SIZE, u64_of};
use crate::{Error, Result};

/// Tokens looked at when a file is opened, to catch a wrong dtype early.
const SAMPLE: usize = 4096;

/// The tokens of one file, between a header and the file's end.
pub(super) struct Shard {
    path: PathBuf,
    map: Map,
    offset: usize,
    len: usize,
    dtype: TokenType,
}

/// Maps `path` whole; an empty or missing file is an error that names it.
pub(super) fn map_tokens(path: &Path) -> Result<Map> {
    let size = std::fs::metadata(path).map_err(|e| Error::io(path, "opening a token file", e))?;
    if !size.is_file() {
        return Err(Error::corpus(path, "expected a token file, found something else"));
    }
    if size.len() == 0 {
        return Err(Error::corpus(path, "expected tokens, found an empty file; tokenise some text first"));
    }
    map_file(path)
}

impl Shard {
    /// Takes the bytes of `map` from `offset` on as tokens.
    pub(super) fn new(path: &Path, map: Map, offset: usize, dtype: TokenType) -> Result<Self> {
        let bytes = map.bytes().len() - offset;
        if !bytes.is_multiple_of(dtype.size()) {
            return Err(Error::corpus(
                path,
                format!(
                    "expected a multiple of {} bytes ({dtype} tokens), found {bytes}; the file is truncated, or give the \
                     dtype it was written with (dtype=)",
                    dtype.size()
                ),
            ));
        }
        let shard = Self { path: path.to_path_buf(), map, offset, len: bytes / dtype.size(), dtype };
        shard.sample()?;
        Ok(shard)
    }

    /// Refuses a file whose first tokens no vocabulary holds: the dtype is wrong.
    fn sample(&self) -> Result<()> {
        let mut head = vec![0; self.len.min(SAMPLE)];
        self.read(0, &mut head)?;
        match head.iter().position(|&token| token >= MAX_VOCAB_SIZE) {
            None => Ok(()),
            Some(at) => Err(Error::corpus(
                &self.path,
                format!(
                    "expected {} token ids below {MAX_VOCAB_SIZE}, found {} at position {at}; give the dtype the file was \
                     written with (dtype=)",
                    self.dtype, head[at]
                ),
            )),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn len(&self) -> u64 {
        u64_of(self.len)
    }

    pub(super) fn dtype(&self) -> TokenType {
        self.dtype
    }

    /// Reads tokens `start..start + out.len()`, which the caller has checked to exist.
    pub(super) fn read(&self, start: usize, out: &mut [u32]) -> Result<()> {
        let from = self.offset + start * self.dtype.size();
        let bytes = &self.map.bytes()[from..from + out.len() * self.dtype.size()];
        match self.dtype.decode(bytes, out) {
            None => Ok(()),
            Some((at, value)) => Err(Error::corpus(
                &self.path,
                format!(
                    "expected token ids of 0 and more that fit 32 bits, found {value} at position {}; give the dtype the \
                     file was written with (dtype=)",
                    start + at
                ),
            )),
        }
    }
}

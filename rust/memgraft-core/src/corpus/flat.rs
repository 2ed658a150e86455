//! Token files without an index: nanoGPT `.bin`, headerless arrays, llm.c `.bin`.

use std::path::Path;

use super::dtype::TokenType;
use super::shard::{Shard, map_tokens};
use crate::wire::u32_at;
use crate::{Error, Result};

/// llm.c: 256 `i32`, of which magic, version and token count are used.
const LLMC_HEADER: usize = 1024;
/// (magic, version, stored type) of the two kinds llm.c writes.
const LLMC_KINDS: [(i32, i32, TokenType); 2] = [(20240520, 1, TokenType::U16), (20240801, 7, TokenType::U32)];
/// llm.c's multiple-choice files, which are no token stream.
const LLMC_EVAL_MAGIC: i32 = 20240522;

/// Words of a raw file that are looked at before it is taken for `uint16`.
const GUESS_WORDS: usize = 4096;
/// Fewer words than this prove nothing.
const MIN_GUESS_WORDS: usize = 64;

fn word(bytes: &[u8], index: usize) -> Option<i32> {
    (index * 4 + 4 <= bytes.len()).then(|| u32_at(bytes, index * 4).cast_signed())
}

/// Whether the first bytes are an llm.c magic.
pub(super) fn is_llmc(bytes: &[u8]) -> bool {
    word(bytes, 0).is_some_and(|magic| magic == LLMC_EVAL_MAGIC || LLMC_KINDS.iter().any(|kind| kind.0 == magic))
}

/// A file of bare tokens. Without `dtype` it is nanoGPT's `uint16`, unless the content speaks for `uint32`.
pub(super) fn open_raw(path: &Path, dtype: Option<TokenType>) -> Result<Shard> {
    let map = map_tokens(path)?;
    if dtype.is_none() && looks_like_u32(map.bytes()) {
        return Err(Error::corpus(
            path,
            "expected uint16 tokens, found every other one below 16, as in a uint32 file; give dtype=\"uint32\" or \
             dtype=\"uint16\"",
        ));
    }
    Shard::new(path, map, 0, dtype.unwrap_or(TokenType::U16))
}

/// Every 32-bit word is a possible token: `uint16` text would need each second token to be below 16.
fn looks_like_u32(bytes: &[u8]) -> bool {
    let words = (bytes.len() / 4).min(GUESS_WORDS);
    bytes.len().is_multiple_of(4)
        && words >= MIN_GUESS_WORDS
        && bytes.chunks_exact(4).take(words).all(|chunk| chunk[3] == 0 && chunk[2] < 16)
}

/// llm.c's `.bin`, by its header.
pub(super) fn open_llmc(path: &Path, dtype: Option<TokenType>) -> Result<Shard> {
    let map = map_tokens(path)?;
    let bytes = map.bytes();
    let (Some(magic), Some(version), Some(count)) = (word(bytes, 0), word(bytes, 1), word(bytes, 2)) else {
        return Err(Error::corpus(
            path,
            format!("expected an llm.c header of {LLMC_HEADER} bytes, found {}", bytes.len()),
        ));
    };
    if magic == LLMC_EVAL_MAGIC {
        return Err(Error::corpus(
            path,
            "expected an llm.c token file, found its multiple-choice evaluation format, which is no token stream",
        ));
    }
    let Some(&(_, known, stored)) = LLMC_KINDS.iter().find(|kind| kind.0 == magic) else {
        return Err(Error::corpus(
            path,
            format!(
                "expected an llm.c magic (20240520 or 20240801), found {magic}; for bare tokens give format=\"nanogpt\""
            ),
        ));
    };
    if version != known {
        return Err(Error::corpus(path, format!("expected version {known} of llm.c magic {magic}, found {version}")));
    }
    stored.refuse_other(dtype, path, " in the header")?;
    let want = usize::try_from(count).ok().map(|count| LLMC_HEADER + count * stored.size());
    if want != Some(bytes.len()) {
        return Err(Error::corpus(
            path,
            format!(
                "expected {count} {stored} tokens after a header of {LLMC_HEADER} bytes, found a file of {} bytes; it is \
                 truncated, or bare tokens (then give format=\"nanogpt\")",
                bytes.len()
            ),
        ));
    }
    if count == 0 {
        return Err(Error::corpus(path, "expected tokens, found a header that says 0; tokenise some text first"));
    }
    Shard::new(path, map, LLMC_HEADER, stored)
}

//! numpy's `.npy`, versions 1 to 3: one dimension of little-endian integers.

use std::path::Path;

use super::dtype::TokenType;
use super::shard::{Shard, map_tokens};
use crate::ids::usize_of;
use crate::wire::{u16_at, u32_at};
use crate::{Error, Result};

const MAGIC: &[u8] = b"\x93NUMPY";

/// Whether the first bytes are numpy's magic.
pub(super) fn is_numpy(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Opens a `.npy` with its header.
pub(super) fn open_numpy(path: &Path, dtype: Option<TokenType>) -> Result<Shard> {
    let map = map_tokens(path)?;
    let bytes = map.bytes();
    let header = parse(bytes).map_err(|found| Error::corpus(path, format!("expected a .npy header, {found}")))?;
    let Some(stored) = TokenType::from_descr(&header.descr) else {
        return Err(Error::corpus(
            path,
            format!(
                "expected little-endian integers of 1 to 8 bytes, found descr {:?}; save the array with \
                 .astype(\"<u4\")",
                header.descr
            ),
        ));
    };
    stored.refuse_other(dtype, path, " in the header")?;
    let [len] = header.shape[..] else {
        return Err(Error::corpus(
            path,
            format!("expected one dimension, found shape {:?}; save array.reshape(-1)", header.shape),
        ));
    };
    if len == 0 {
        return Err(Error::corpus(path, "expected tokens, found an array of length 0; tokenise some text first"));
    }
    let found = bytes.len() - header.end;
    if len.checked_mul(stored.size()) != Some(found) {
        return Err(Error::corpus(
            path,
            format!("expected {len} {stored} tokens after the header, found {found} bytes; copy the file again"),
        ));
    }
    Shard::new(path, map, header.end, stored)
}

struct NpyHeader {
    descr: String,
    shape: Vec<usize>,
    end: usize,
}

/// Reads the header, or says what was found instead.
fn parse(bytes: &[u8]) -> std::result::Result<NpyHeader, String> {
    if !is_numpy(bytes) || bytes.len() < 12 {
        return Err(format!(
            "found none in {} bytes; for a headerless array give format=\"raw\" and dtype=",
            bytes.len()
        ));
    }
    let (start, len) = match bytes[6] {
        1 => (10, usize::from(u16_at(bytes, 8))),
        2 | 3 => (12, usize_of(u32_at(bytes, 8))),
        version => return Err(format!("found version {version}; versions 1 to 3 are known")),
    };
    let end = start + len;
    let text =
        bytes.get(start..end).ok_or_else(|| format!("found a file of {} bytes, too short for it", bytes.len()))?;
    let text = std::str::from_utf8(text).map_err(|_| "found bytes that are no text in it".to_string())?;
    let bad = |what: &str| format!("found no valid {what} in {:?}", text.trim_end());
    let descr = field(text, "descr").and_then(quoted).ok_or_else(|| bad("descr"))?;
    let shape = field(text, "shape").and_then(tuple).ok_or_else(|| bad("shape"))?;
    Ok(NpyHeader { descr, shape, end })
}

/// The text after `'name':`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("'{name}'"))?;
    rest.trim_start().strip_prefix(':').map(str::trim_start)
}

fn quoted(text: &str) -> Option<String> {
    let rest = text.strip_prefix('\'')?;
    rest.split_once('\'').map(|(inside, _)| inside.to_string())
}

fn tuple(text: &str) -> Option<Vec<usize>> {
    let (inside, _) = text.strip_prefix('(')?.split_once(')')?;
    inside.split(',').map(str::trim).filter(|part| !part.is_empty()).map(|part| part.parse().ok()).collect()
}

//! Token files beside an index of documents: Megatron `.bin`/`.idx`, datatrove `.ds`/`.ds.index`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::dtype::TokenType;
use super::layout::Layout;
use super::shard::{Shard, map_tokens};
use crate::ids::{u64_of, usize_of_u64};
use crate::wire::{u32_at, u64_at};
use crate::{Error, Result};

const MEGATRON_MAGIC: &[u8] = b"MMIDIDX\0\0";
/// Magic, u64 version, u8 dtype code, u64 sequences, u64 length of the document index.
const MEGATRON_HEADER: usize = 34;

/// `path` with `suffix` appended to its whole name.
fn appended(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

fn i64_at(bytes: &[u8], at: usize) -> i64 {
    u64_at(bytes, at).cast_signed()
}

fn i32_at(bytes: &[u8], at: usize) -> i32 {
    u32_at(bytes, at).cast_signed()
}

/// Megatron's pair; the layout's sources count from the start of this file.
pub(super) fn open_megatron(path: &Path, dtype: Option<TokenType>) -> Result<(Shard, Layout)> {
    let idx = path.with_extension("idx");
    if !idx.exists() {
        return Err(Error::corpus(
            &idx,
            "expected the document index of a Megatron .bin, found no such file; for bare tokens give format=\"nanogpt\"",
        ));
    }
    let map = map_tokens(&idx)?;
    let bytes = map.bytes();
    let bad = |message: String| Error::corpus(&idx, message);
    if bytes.len() < MEGATRON_HEADER || !bytes.starts_with(MEGATRON_MAGIC) {
        return Err(bad(
            "expected a Megatron index (MMIDIDX), found something else; for a .bin of bare tokens beside an \
                        unrelated .idx give format=\"nanogpt\""
                .into(),
        ));
    }
    let version = u64_at(bytes, 9);
    if version != 1 {
        return Err(bad(format!("expected Megatron index version 1, found {version}")));
    }
    let stored = match bytes[17] {
        1 => TokenType::U8,
        2 => TokenType::I8,
        3 => TokenType::I16,
        4 => TokenType::I32,
        5 => TokenType::I64,
        8 => TokenType::U16,
        code => return Err(bad(format!("expected an integer dtype code (1, 2, 3, 4, 5 or 8), found {code}"))),
    };
    stored.refuse_other(dtype, &idx, " in the index")?;
    let (sequences, entries) = (u64_at(bytes, 18), u64_at(bytes, 26));
    let want = sequences
        .checked_mul(12)
        .and_then(|size| size.checked_add(entries.checked_mul(8)?))
        .and_then(|size| size.checked_add(u64_of(MEGATRON_HEADER)));
    let found = u64_of(bytes.len());
    // A multimodal writer appends one mode byte per sequence.
    if want != Some(found) && want.and_then(|want| want.checked_add(sequences)) != Some(found) {
        return Err(bad(format!(
            "expected {sequences} sequences and {entries} document entries to fill the file, found {found} bytes; it is \
             truncated or damaged, copy or write it again"
        )));
    }
    let (sequences, entries) = (usize_of_u64(sequences), usize_of_u64(entries));
    let pointers_at = MEGATRON_HEADER + sequences * 4;
    let documents_at = pointers_at + sequences * 8;
    let tokens = map_tokens(path)?;
    let size = u64_of(tokens.bytes().len());
    let width = u64_of(stored.size());

    let mut layout = Layout::default();
    let push = |layout: &mut Layout, s: usize| {
        let (len, pointer) = (i32_at(bytes, MEGATRON_HEADER + s * 4), i64_at(bytes, pointers_at + s * 8));
        let span = u64::try_from(len).ok().zip(u64::try_from(pointer).ok()).filter(|&(len, pointer)| {
            pointer.is_multiple_of(width) && pointer.checked_add(len * width).is_some_and(|end| end <= size)
        });
        let Some((len, pointer)) = span else {
            return Err(bad(format!(
                "expected sequence {s} to lie inside the {size} bytes of {}, found byte offset {pointer} and {len} \
                 {stored} tokens; the two files do not belong together, or one is truncated",
                path.display()
            )));
        };
        layout.push(pointer / width, len);
        Ok(())
    };
    let mut sequence = 0;
    for entry in 0..entries {
        let value = i64_at(bytes, documents_at + entry * 8);
        let next = usize::try_from(value).ok().filter(|&next| next <= sequences && next >= sequence);
        let Some(next) = next.filter(|&next| entry > 0 || next == 0) else {
            return Err(bad(format!(
                "expected document index entries that start at 0, never fall and stay at or below {sequences} sequences, \
                 found {value} at entry {entry}"
            )));
        };
        if entry == 0 {
            continue;
        }
        for s in sequence..next {
            push(&mut layout, s)?;
        }
        layout.end_document();
        sequence = next;
    }
    // Tools that merge files leave the document index as it was. A sequence past its end is taken as a document of its
    // own, because no key may cross into another document.
    for s in sequence..sequences {
        push(&mut layout, s)?;
        layout.end_document();
    }
    if layout.num_tokens() * width != size {
        return Err(Error::corpus(
            path,
            format!(
                "expected the {} {stored} tokens that {} lists, found {size} bytes; the two files do not belong together",
                layout.num_tokens(),
                idx.display()
            ),
        ));
    }
    Ok((Shard::new(path, tokens, 0, stored)?, layout))
}

/// datatrove's pair. The width follows from the last document end and the file's size.
pub(super) fn open_datatrove(path: &Path, dtype: Option<TokenType>) -> Result<(Shard, Layout)> {
    let index = appended(path, ".index");
    if !index.exists() {
        return Err(Error::corpus(
            &index,
            "expected the document ends of a datatrove .ds, found no such file; to find documents by their end token give \
             format=\"raw\", dtype= and eos_id=",
        ));
    }
    let map = map_tokens(&index)?;
    let bytes = map.bytes();
    if !bytes.len().is_multiple_of(8) {
        return Err(Error::corpus(
            &index,
            format!("expected u64 document ends, found {} bytes; it is truncated", bytes.len()),
        ));
    }
    let tokens = map_tokens(path)?;
    let size = u64_of(tokens.bytes().len());
    let mut layout = Layout::default();
    let mut start = 0;
    for (document, chunk) in bytes.chunks_exact(8).enumerate() {
        let end = u64_at(chunk, 0);
        if end < start || end > size {
            return Err(Error::corpus(
                &index,
                format!(
                    "expected document ends that never fall and stay inside {} ({size} bytes), found {end} after {start} at \
                     document {document}",
                    path.display()
                ),
            ));
        }
        layout.push(start, end - start);
        layout.end_document();
        start = end;
    }
    let stored = match (start > 0 && size.is_multiple_of(start)).then(|| size / start) {
        Some(2) => TokenType::U16,
        Some(4) => TokenType::U32,
        _ => {
            return Err(Error::corpus(
                path,
                format!(
                    "expected {start} tokens of 2 or 4 bytes as {} says, found {size} bytes; the two files do not belong \
                     together, or one is truncated",
                    index.display()
                ),
            ));
        }
    };
    if dtype.is_some_and(|dtype| dtype.size() != stored.size()) {
        let dtype = dtype.unwrap_or(stored);
        return Err(Error::corpus(path, format!("expected {dtype} as dtype= says, found {stored}; leave dtype out")));
    }
    Ok((Shard::new(path, tokens, 0, dtype.unwrap_or(stored))?, layout))
}

//! OLMo's document boundaries: `<name>.csv.gz` beside `<name>.npy`, as dolma's tokenizer writes them.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use super::dtype::TokenType;
use super::layout::Layout;
use crate::ids::u64_of;
use crate::{Error, Result};

/// Where the boundaries of a token file lie, whether they do or not.
pub(super) fn path_beside(tokens: &Path) -> PathBuf {
    tokens.with_extension("csv.gz")
}

/// The document ends in the boundaries beside `tokens`; `None` where there is no such file.
///
/// Rows are `start,end,id,source,place` without a header. Documents follow one another from 0.
pub(super) fn read(tokens: &Path) -> Result<Option<Vec<u64>>> {
    let path = path_beside(tokens);
    let file = match File::open(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|e| Error::io(&path, "opening document boundaries", e))?,
    };
    let mut rows = BufReader::new(MultiGzDecoder::new(BufReader::new(file)));
    let mut ends: Vec<u64> = Vec::new();
    let mut row = Vec::new();
    while next_row(&mut rows, &mut row, &path)? {
        let number = |field: &[u8]| std::str::from_utf8(field).ok().and_then(|text| text.trim().parse::<u64>().ok());
        let mut fields = row.split(|&byte| byte == b',');
        let (start, end) = (fields.next().and_then(number), fields.next().and_then(number));
        let at = ends.last().copied().unwrap_or(0);
        let Some(end) = end.filter(|&end| start == Some(at) && end >= at) else {
            let found: Vec<u8> = row.iter().take(60).copied().collect();
            return Err(Error::corpus(
                &path,
                format!(
                    "expected row {} to be \"{at},<end>,…\", where the document before it ends, found {:?}; write the \
                     boundaries again, or move the file away and give eos_id=",
                    ends.len() + 1,
                    String::from_utf8_lossy(&found).trim_end()
                ),
            ));
        };
        ends.push(end);
    }
    if ends.is_empty() {
        return Err(Error::corpus(&path, "expected document boundaries, found none; write them again"));
    }
    Ok(Some(ends))
}

/// Reads one row; a line break inside quotes belongs to it. `false` at the end.
fn next_row(rows: &mut impl BufRead, row: &mut Vec<u8>, path: &Path) -> Result<bool> {
    row.clear();
    loop {
        let read = rows.read_until(b'\n', row).map_err(|e| match e.kind() {
            ErrorKind::InvalidData | ErrorKind::InvalidInput | ErrorKind::UnexpectedEof => {
                Error::corpus(path, format!("expected gzip, found damage ({e}); copy the file again"))
            }
            _ => Error::io(path, "reading document boundaries", e),
        })?;
        if read == 0 || row.iter().filter(|&&byte| byte == b'"').count() % 2 == 0 {
            return Ok(!row.is_empty());
        }
    }
}

/// The stored type of bare tokens, from the boundaries' last end and the file's size.
pub(super) fn width(path: &Path, ends: &[u64]) -> Result<TokenType> {
    let size = std::fs::metadata(path).map_err(|e| Error::io(path, "opening a token file", e))?.len();
    let last = ends.last().copied().unwrap_or(0);
    match (last > 0 && size.is_multiple_of(last)).then(|| size / last) {
        Some(2) => Ok(TokenType::U16),
        Some(4) => Ok(TokenType::U32),
        _ => Err(Error::corpus(
            path,
            format!(
                "expected {last} tokens of 2 or 4 bytes as {} says, found {size} bytes; the two files do not belong together, \
                 or one is truncated",
                path_beside(path).display()
            ),
        )),
    }
}

/// The documents of a file of `tokens` tokens that end at `ends`.
pub(super) fn layout(path: &Path, tokens: u64, ends: &[u64]) -> Result<Layout> {
    let last = ends.last().copied().unwrap_or(0);
    if last != tokens {
        return Err(Error::corpus(
            path,
            format!(
                "expected the {last} tokens that {} lists in {} documents, found {tokens}; the two files do not belong \
                 together, or one is truncated",
                path_beside(path).display(),
                u64_of(ends.len())
            ),
        ));
    }
    let mut layout = Layout::default();
    let mut start = 0;
    for &end in ends {
        layout.push(start, end - start);
        layout.end_document();
        start = end;
    }
    Ok(layout)
}

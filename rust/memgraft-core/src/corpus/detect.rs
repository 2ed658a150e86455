//! Which files make up a corpus, and in which format they are.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::boundaries;
use super::flat::is_llmc;
use super::numpy::is_numpy;
use crate::{Error, Result};

/// The layouts that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// nanoGPT's `.bin`: bare tokens, `uint16` unless told otherwise.
    Nanogpt,
    /// llm.c's `.bin`: a header of 1024 bytes, then tokens.
    Llmc,
    /// Megatron's `.bin` beside `.idx`.
    Megatron,
    /// datatrove's `.ds` beside `.ds.index`.
    Datatrove,
    /// numpy's `.npy` with its header; a `.csv.gz` beside it says where documents end.
    Numpy,
    /// Bare tokens (OLMo's headerless `.npy`), whose type the caller or a `.csv.gz` beside them gives.
    Raw,
}

const NAMES: [(Format, &str); 6] = [
    (Format::Nanogpt, "nanogpt"),
    (Format::Llmc, "llmc"),
    (Format::Megatron, "megatron"),
    (Format::Datatrove, "datatrove"),
    (Format::Numpy, "numpy"),
    (Format::Raw, "raw"),
];

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAMES.iter().find(|(kind, _)| kind == self).map_or("", |(_, name)| name))
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        NAMES
            .iter()
            .find(|(_, name)| *name == text)
            .map(|(kind, _)| *kind)
            .ok_or_else(|| Error::argument(format!("format: expected one of {}, got {text:?}", known())))
    }
}

/// The names of all formats, as errors list them.
fn known() -> String {
    NAMES.map(|(_, name)| name).join(", ")
}

impl Format {
    fn suffixes(self) -> &'static [&'static str] {
        match self {
            Self::Nanogpt | Self::Llmc | Self::Megatron => &["bin"],
            Self::Datatrove => &["ds"],
            Self::Numpy => &["npy"],
            Self::Raw => &["npy", "bin", "ds"],
        }
    }
}

fn suffix(path: &Path) -> &str {
    path.extension().and_then(|suffix| suffix.to_str()).unwrap_or("")
}

/// The token files that `path` stands for: itself, a Megatron prefix's `.bin`, or a directory's, by name.
pub(super) fn expand(path: &Path, format: Option<Format>) -> Result<Vec<PathBuf>> {
    if path.is_dir() {
        return list(path, format);
    }
    if suffix(path) == "idx" {
        return Ok(vec![path.with_extension("bin")]);
    }
    if !path.exists() {
        let mut prefixed = path.as_os_str().to_owned();
        prefixed.push(".bin");
        let prefixed = PathBuf::from(prefixed);
        if prefixed.exists() && prefixed.with_extension("idx").exists() {
            return Ok(vec![prefixed]);
        }
        return Err(Error::corpus(
            path,
            "expected a token file, a Megatron prefix or a folder of token files, found nothing there; check the path",
        ));
    }
    Ok(vec![path.to_path_buf()])
}

fn list(folder: &Path, format: Option<Format>) -> Result<Vec<PathBuf>> {
    let reading = |e| Error::io(folder, "listing a corpus folder", e);
    let known = format.map_or(&["bin", "ds", "npy"][..], Format::suffixes);
    let mut found: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(reading)? {
        let path = entry.map_err(reading)?.path();
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.is_file() && known.contains(&suffix(&path)) {
            found.push(path);
        }
    }
    found.sort();
    let Some(first) = found.first() else {
        return Err(Error::corpus(
            folder,
            format!(
                "expected token files (.{}), found none; if it holds text, give the tokenizer that is to read it, or run `memgraft tokenize`",
                known.join(", .")
            ),
        ));
    };
    if let Some(other) = found.iter().find(|path| suffix(path) != suffix(first)) {
        return Err(Error::corpus(
            folder,
            format!(
                "expected token files of one format, found {} and {}; give format=, or the files themselves",
                first.display(),
                other.display()
            ),
        ));
    }
    Ok(found)
}

/// The format of one token file, from its magic, its suffix and what lies beside it.
pub(super) fn detect(path: &Path, has_dtype: bool) -> Result<Format> {
    let mut magic = Vec::new();
    let file = File::open(path).map_err(|e| Error::io(path, "opening a token file", e))?;
    file.take(8).read_to_end(&mut magic).map_err(|e| Error::io(path, "reading a token file", e))?;
    match suffix(path) {
        "bin" if path.with_extension("idx").exists() => Ok(Format::Megatron),
        "bin" if is_llmc(&magic) => Ok(Format::Llmc),
        "bin" => Ok(Format::Nanogpt),
        "ds" => Ok(Format::Datatrove),
        _ if is_numpy(&magic) => Ok(Format::Numpy),
        "npy" if has_dtype || boundaries::path_beside(path).exists() => Ok(Format::Raw),
        "npy" => Err(Error::corpus(
            path,
            "expected numpy's header, found none; for a headerless array give dtype= (OLMo: \"uint16\" or \"uint32\")",
        )),
        other => Err(Error::corpus(
            path,
            format!(
                "expected a token file (.bin, .ds, .npy), found suffix {other:?}; give format= ({}), or a tokenizer if \
                 this is text",
                known()
            ),
        )),
    }
}

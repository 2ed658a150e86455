//! A stream of tokens cut into documents, over any of the formats.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::detect::{self, Format};
use super::dtype::TokenType;
use super::layout::Layout;
use super::shard::Shard;
use super::{boundaries, flat, indexed, numpy};
use crate::fingerprint::Fingerprint;
use crate::ids::{MAX_VOCAB_SIZE, u64_of, usize_of_u64};
use crate::{Error, Result};

/// Tokens decoded at a time by scans over the whole stream.
pub(crate) const BLOCK: usize = 1 << 16;

/// How to read the files.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// The format, where the files leave it open.
    pub format: Option<Format>,
    /// The stored type, where the files leave it open.
    pub dtype: Option<TokenType>,
    /// The token that ends (or starts) a document. It cuts documents in every format.
    pub eos_id: Option<u32>,
    /// The delimiter opens a document instead of ending one; llm.c's way, and its default.
    pub eos_first: Option<bool>,
    /// Take each file as one document, where neither index nor delimiter tells them apart.
    pub file_is_document: bool,
}

/// Which documents of a corpus a view has.
#[derive(Debug, Clone, PartialEq)]
pub struct Split {
    /// Whether this is the held-out part.
    pub held_out: bool,
    /// The share of documents that was held out.
    pub fraction: f64,
    /// The seed of the choice.
    pub seed: u64,
    /// Content of the corpus that was split.
    pub of: Fingerprint,
    /// Documents of that corpus.
    pub num_documents: u64,
    /// Documents held out of it.
    pub num_held_out: u64,
}

/// A token corpus, open for reading; clones share the mapping.
#[derive(Clone)]
pub struct Corpus {
    pub(super) files: Arc<Files>,
    pub(super) layout: Arc<Layout>,
    pub(super) split: Option<Split>,
    /// Shared by clones: whoever computes it first does so for all.
    pub(super) fingerprint: Arc<OnceLock<Fingerprint>>,
}

pub(super) struct Files {
    shards: Vec<Shard>,
    /// First source position of each shard, and the end of the last.
    bases: Vec<u64>,
    format: Format,
    eos_id: Option<u32>,
}

impl Corpus {
    /// Opens the corpus made of `paths`: files, Megatron prefixes or directories, in that order.
    ///
    /// # Errors
    /// [`Error::Corpus`] where a file is not what its format says or documents cannot be told apart,
    /// [`Error::Io`] where it cannot be read, [`Error::Argument`] for options out of range.
    pub fn open<P: AsRef<Path>>(paths: &[P], options: &OpenOptions) -> Result<Self> {
        if let Some(eos_id) = options.eos_id.filter(|&eos_id| eos_id >= MAX_VOCAB_SIZE) {
            return Err(Error::argument(format!("eos_id: expected a token below {MAX_VOCAB_SIZE}, got {eos_id}")));
        }
        let mut files: Vec<PathBuf> = Vec::new();
        for path in paths {
            files.extend(detect::expand(path.as_ref(), options.format)?);
        }
        let Some(first) = files.first() else {
            return Err(Error::argument("path: expected at least one token file, got none"));
        };
        let format = options.format.map_or_else(|| detect::detect(first, options.dtype.is_some()), Ok)?;
        let mut corpus = Files { shards: Vec::new(), bases: vec![0], format, eos_id: options.eos_id };
        let mut layout = Layout::default();
        for path in &files {
            if options.format.is_none() {
                let found = detect::detect(path, options.dtype.is_some())?;
                if found != format {
                    return Err(Error::corpus(
                        path,
                        format!(
                            "expected the format of the first file, {format}, found {found}; give format=, or open them apart"
                        ),
                    ));
                }
            }
            let (shard, part) = open_shard(path, format, options)?;
            if let Some(other) = corpus.shards.first().filter(|other| other.dtype() != shard.dtype()) {
                return Err(Error::corpus(
                    path,
                    format!(
                        "expected {} tokens as in {}, found {}; convert one of them",
                        other.dtype(),
                        other.path().display(),
                        shard.dtype()
                    ),
                ));
            }
            let base = corpus.bases[corpus.bases.len() - 1];
            layout.append(&part, base);
            corpus.bases.push(base + shard.len());
            corpus.shards.push(shard);
        }
        if layout.num_tokens() == 0 {
            return Err(Error::corpus(first, "expected tokens, found a corpus of none; tokenise some text first"));
        }
        let mut corpus =
            Self { files: Arc::new(corpus), layout: Arc::new(layout), split: None, fingerprint: Arc::default() };
        if let Some(eos_id) = options.eos_id {
            corpus.cut_at(eos_id, options.eos_first.unwrap_or(format == Format::Llmc))?;
        }
        Ok(corpus)
    }

    /// Cuts documents at every `delimiter`, in addition to the boundaries known.
    fn cut_at(&mut self, delimiter: u32, first: bool) -> Result<()> {
        let mut ends = Vec::new();
        let mut buffer = vec![0; BLOCK];
        let mut position = 0;
        let known = self.layout.ends();
        let mut next = 0;
        while position < self.num_tokens() {
            let len = usize_of_u64((self.num_tokens() - position).min(u64_of(BLOCK)));
            self.read(position, &mut buffer[..len])?;
            for (at, _) in buffer[..len].iter().enumerate().filter(|&(_, &token)| token == delimiter) {
                let cut = position + u64_of(at) + u64::from(!first);
                while next < known.len() && known[next] < cut {
                    ends.push(known[next]);
                    next += 1;
                }
                // A boundary that is already known, or the stream's own start, is no second cut.
                if cut > ends.last().copied().unwrap_or(0) && known.get(next) != Some(&cut) {
                    ends.push(cut);
                }
            }
            position += u64_of(len);
        }
        ends.extend_from_slice(&known[next..]);
        let mut layout = Layout::clone(&self.layout);
        layout.set_ends(ends);
        self.layout = Arc::new(layout);
        Ok(())
    }

    /// Number of tokens.
    #[must_use]
    pub fn num_tokens(&self) -> u64 {
        self.layout.num_tokens()
    }

    /// Number of documents, empty ones included.
    #[must_use]
    pub fn num_documents(&self) -> usize {
        self.layout.num_documents()
    }

    /// The stored type.
    #[must_use]
    pub fn dtype(&self) -> TokenType {
        self.files.shards[0].dtype()
    }

    /// The format of the files.
    #[must_use]
    pub fn format(&self) -> Format {
        self.files.format
    }

    /// The document delimiter, if one was given.
    #[must_use]
    pub fn eos_id(&self) -> Option<u32> {
        self.files.eos_id
    }

    /// The token files, in order.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.shards.iter().map(Shard::path)
    }

    /// Start of every document and the end of the last: one more entry than documents.
    #[must_use]
    pub fn document_starts(&self) -> Vec<u64> {
        self.layout.document_starts()
    }

    /// Positions of document `document`, which must exist.
    #[must_use]
    pub fn document(&self, document: usize) -> (u64, u64) {
        self.layout.document(document)
    }

    /// Index of the document that holds `position`, which must exist.
    #[must_use]
    pub fn document_at(&self, position: u64) -> usize {
        self.layout.document_at(position)
    }

    /// Where document `document` starts; for the number of documents, the end of the last.
    #[must_use]
    pub fn document_start(&self, document: usize) -> u64 {
        if document == 0 { 0 } else { self.layout.document(document - 1).1 }
    }

    /// First document of shard `rank` of `world` shards of about equal tokens; for `world`, the number of documents.
    #[must_use]
    pub fn cut(&self, rank: u64, world: u64) -> usize {
        if rank == 0 || rank >= world {
            return if rank == 0 { 0 } else { self.num_documents() };
        }
        let position = u128::from(self.num_tokens()) * u128::from(rank) / u128::from(world.max(1));
        self.document_at(u64::try_from(position).unwrap_or(u64::MAX))
    }

    /// The documents `documents` alone; there may be none.
    #[must_use]
    pub fn slice(&self, documents: std::ops::Range<usize>) -> Self {
        self.with_layout(self.layout.select(documents), self.split.clone())
    }

    /// Which part of a split this is, if it is one.
    #[must_use]
    pub fn split_facts(&self) -> Option<&Split> {
        self.split.as_ref()
    }

    /// Reads tokens `start..start + out.len()`.
    ///
    /// # Errors
    /// [`Error::Argument`] past the end, [`Error::Corpus`] for a stored value that is no token.
    pub fn read(&self, start: u64, out: &mut [u32]) -> Result<()> {
        let end = start.checked_add(u64_of(out.len())).filter(|&end| end <= self.num_tokens()).ok_or_else(|| {
            Error::argument(format!(
                "tokens: expected positions up to {}, got {start} and {} tokens from there",
                self.num_tokens(),
                out.len()
            ))
        })?;
        let mut out = out;
        self.layout.spans(start, end, |mut source, len| {
            let (head, tail) = std::mem::take(&mut out).split_at_mut(usize_of_u64(len));
            out = tail;
            let mut head = head;
            let mut index = self.files.bases.partition_point(|&base| base <= source) - 1;
            while !head.is_empty() {
                let room = self.files.bases[index + 1] - source;
                let take = head.len().min(usize_of_u64(room));
                let (now, later) = head.split_at_mut(take);
                self.files.shards[index].read(usize_of_u64(source - self.files.bases[index]), now)?;
                source += u64_of(take);
                head = later;
                index += 1;
            }
            Ok(())
        })
    }

    /// Tokens `start..stop`, copied out.
    ///
    /// # Errors
    /// As [`Corpus::read`]; [`Error::Argument`] where `stop` lies before `start`.
    pub fn window(&self, start: u64, stop: u64) -> Result<Vec<u32>> {
        if start > stop || stop > self.num_tokens() {
            return Err(Error::argument(format!(
                "tokens: expected 0 <= start <= stop <= {}, got {start} and {stop}",
                self.num_tokens()
            )));
        }
        let mut tokens = vec![0; usize_of_u64(stop - start)];
        self.read(start, &mut tokens)?;
        Ok(tokens)
    }

    pub(super) fn with_layout(&self, layout: Layout, split: Option<Split>) -> Self {
        Self { files: Arc::clone(&self.files), layout: Arc::new(layout), split, fingerprint: Arc::default() }
    }
}

/// Opens one file and says where its documents lie in it.
fn open_shard(path: &Path, format: Format, options: &OpenOptions) -> Result<(Shard, Layout)> {
    let ends = if matches!(format, Format::Numpy | Format::Raw) { boundaries::read(path)? } else { None };
    let shard = match format {
        Format::Megatron => return indexed::open_megatron(path, options.dtype),
        Format::Datatrove => return indexed::open_datatrove(path, options.dtype),
        Format::Nanogpt => flat::open_raw(path, options.dtype)?,
        Format::Llmc => flat::open_llmc(path, options.dtype)?,
        Format::Numpy => numpy::open_numpy(path, options.dtype)?,
        Format::Raw => {
            let dtype = match (options.dtype, &ends) {
                (Some(dtype), _) => dtype,
                (None, Some(ends)) => boundaries::width(path, ends)?,
                (None, None) => {
                    return Err(Error::corpus(
                        path,
                        "expected a dtype for a headerless array, found none; give dtype= (OLMo: \"uint16\" or \"uint32\")",
                    ));
                }
            };
            flat::open_raw(path, Some(dtype))?
        }
    };
    if let Some(ends) = ends {
        let layout = boundaries::layout(path, shard.len(), &ends)?;
        return Ok((shard, layout));
    }
    if options.eos_id.is_none() && !options.file_is_document {
        return Err(Error::corpus(
            path,
            format!(
                "expected to learn where documents end, found a {format} file, which does not say; give eos_id= (GPT-2: \
                 50256), or documents=\"file\" to take each file as one document"
            ),
        ));
    }
    let mut layout = Layout::default();
    layout.push(0, shard.len());
    layout.end_document();
    Ok((shard, layout))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

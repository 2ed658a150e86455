//! The façade: build, open, save, verify, lookup, advance, explain.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use crate::automaton::{NO_ROW, Region, Table, Trie, build};
use crate::batch::{self, Bounds, Layer, Limits, Options, Tokens, Unknown};
use crate::canon::{self, Canon};
use crate::fingerprint::{Fingerprint, default_threads};
use crate::format::{Container, Header, Kind, Load, Section, Store, bytes_of, write_container};
use crate::ids::{MAX_ORDER, RowId, StateId, low_u32, row_as_i32, saturating_u32, u64_of, usize_of};
use crate::keyset::KeySet;
use crate::{Error, Result};

const TABLE: u32 = 16;
const REGIONS: u32 = 17;
const NODES: u32 = 18;
/// Sequences whose lines are asked for before the first is read.
const ADVANCE_AHEAD: usize = 24;
/// Flag of the archive form.
const ARCHIVE: u32 = 1;
/// Alignment in the file of a table that fills a huge page, and of a smaller one.
const TABLE_ALIGNMENT: (u32, u32) = (2 << 20, 4096);

/// What a file holds beside the canonical sections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// The transition table too: opens in no time.
    #[default]
    Fast,
    /// Nothing else: about a fifth of the size; opening builds the table again.
    Archive,
}

/// Tokens to (row, order): the longest key that ends at each position.
#[derive(Debug, Clone)]
pub struct Index {
    canon: Canon,
    table: Table,
    /// The node of each row.
    nodes: Store<u32>,
    keys_by_order: [u64; MAX_ORDER],
    vocab_size: u32,
    keyset_fingerprint: Fingerprint,
    container: Option<Container>,
}

/// Sizes of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Number of keys.
    pub num_keys: u64,
    /// Bytes of the canonical sections: the keys with random access.
    pub canonical_bytes: u64,
    /// Bytes of the transition table.
    pub table_bytes: u64,
    /// Bytes of all sections.
    pub bytes: u64,
    /// Most lines a probe goes past its home line.
    pub max_spill: u32,
}

impl Index {
    /// Builds the index of `keys`; the same set gives the same bytes.
    ///
    /// # Errors
    /// [`Error::Limit`] for a set beyond the format, [`Error::Io`] without memory.
    pub fn build(keys: &KeySet) -> Result<Self> {
        let trie = Trie::new(keys)?;
        // The table first: what it is made with is gone before the rest needs memory.
        let table = build(&trie, keys.counts(), keys.vocab_size())?;
        let (canon, nodes) = Canon::new(&trie, keys)?;
        Ok(Self {
            canon,
            table,
            nodes: Store::from(nodes),
            keys_by_order: *keys.keys_by_order(),
            vocab_size: keys.vocab_size(),
            keyset_fingerprint: keys.fingerprint(),
            container: None,
        })
    }

    /// Writes the index to `path`, beside it first.
    ///
    /// # Errors
    /// [`Error::Io`]; the old file at `path` then stays.
    pub fn save(&self, path: impl AsRef<Path>, form: Form) -> Result<()> {
        let mut parameters = [0u64; 16];
        parameters[0] = self.canon.base();
        parameters[1] = u64::from(self.table.fan_shift());
        parameters[2] = u64::from(self.table.max_spill());
        let header = Header {
            kind: Kind::Index,
            // Packed sections came with format 1.1.
            minor: u16::from(form == Form::Archive),
            flags: if form == Form::Archive { ARCHIVE } else { 0 },
            vocab_size: self.vocab_size,
            max_order: saturating_u32(self.max_order()),
            num_keys: u64_of(self.num_keys()),
            keys_by_order: self.keys_by_order,
            fingerprint: self.fingerprint(),
            keyset_fingerprint: self.keyset_fingerprint,
            creator: concat!("memgraft ", env!("CARGO_PKG_VERSION")).into(),
            parameters,
            sections: Vec::new(),
        };
        let regions: Vec<u32> = self.table.regions().iter().flat_map(|r| [r.start, r.lines]).collect();
        let packed = match form {
            Form::Fast => Vec::new(),
            Form::Archive => self
                .canon
                .packed_sections(default_threads())
                .map_err(|e| Error::io(path.as_ref(), "cannot compress the archive", e))?,
        };
        let mut sections = match form {
            Form::Fast => self.canon.sections(),
            Form::Archive => vec![self.canon.reserved_section()],
        };
        sections.extend(packed.iter().map(|(tag, bytes)| Section { tag: *tag, alignment: 64, bytes }));
        if form == Form::Fast {
            sections.push(Section { tag: NODES, alignment: 64, bytes: bytes_of(&self.nodes) });
            sections.push(Section { tag: REGIONS, alignment: 64, bytes: bytes_of(&regions) });
            let bytes = bytes_of(self.table.words());
            let (huge, page) = TABLE_ALIGNMENT;
            let alignment = if bytes.len() >= usize_of(huge) { huge } else { page };
            sections.push(Section { tag: TABLE, alignment, bytes });
        }
        write_container(path.as_ref(), header, &sections, default_threads())
    }

    /// Opens the index at `path`: O(header) for the fast form with [`Load::Map`]; the archive form is expanded in memory.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Format`].
    pub fn open(path: impl AsRef<Path>, load: Load) -> Result<Self> {
        let path = path.as_ref();
        let container = Container::open(path, Kind::Index, load)?;
        let Header { parameters, vocab_size, keys_by_order, keyset_fingerprint, num_keys, .. } = container.header;
        if container.header.fingerprint != content_fingerprint(keyset_fingerprint) {
            return Err(Error::format(path, "its fingerprint is not that of its key set; build the index again"));
        }
        if let Some(keys) = canon::unpack(&container, parameters[0])? {
            return Ok(Self { container: Some(container), ..Self::build(&keys)? });
        }
        let canon = Canon::open(&container, parameters[0])?;
        if container.header.flags & ARCHIVE != 0 {
            let keys = canon.key_set(keyset_fingerprint, path)?;
            return Ok(Self { container: Some(container), ..Self::build(&keys)? });
        }
        let regions: Store<u32> = container.section(REGIONS, "regions")?;
        let regions = regions.chunks_exact(2).map(|pair| Region { start: pair[0], lines: pair[1] }).collect();
        let words = container.section(TABLE, "table")?;
        let table = Table::new(words, regions, low_u32(parameters[1]), vocab_size, low_u32(parameters[2]))
            .map_err(|e| Error::format(path, e.to_string()))?;
        let nodes = container.section_of(NODES, "nodes", num_keys)?;
        Ok(Self { canon, table, nodes, keys_by_order, vocab_size, keyset_fingerprint, container: Some(container) })
    }

    /// Whether the file it was opened from is the archive form.
    #[must_use]
    pub fn is_archive(&self) -> bool {
        self.container.as_ref().is_some_and(|container| container.header.flags & ARCHIVE != 0)
    }

    /// The key set it was built from, without metadata.
    ///
    /// # Errors
    /// [`Error::Format`] in a damaged file.
    pub fn key_set(&self) -> Result<KeySet> {
        let path = self.path().unwrap_or(Path::new("(memory)"));
        self.canon.key_set(self.keyset_fingerprint, path)
    }

    /// Checks every byte of the file it was opened from; an index in memory has nothing to check.
    ///
    /// # Errors
    /// [`Error::Format`] that names what is damaged.
    pub fn verify(&self, threads: usize) -> Result<()> {
        self.container.as_ref().map_or(Ok(()), |container| container.verify(threads))
    }

    /// Where the index was opened.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.container.as_ref().map(|container| container.path.as_path())
    }

    /// Number of keys.
    #[must_use]
    pub fn num_keys(&self) -> usize {
        self.nodes.len()
    }

    /// Tokens are smaller than this.
    #[must_use]
    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    /// Length of the longest key.
    #[must_use]
    pub fn max_order(&self) -> usize {
        self.keys_by_order.iter().rposition(|&n| n > 0).map_or(0, |i| i + 1)
    }

    /// Number of keys of order 1..=16.
    #[must_use]
    pub fn keys_by_order(&self) -> &[u64; MAX_ORDER] {
        &self.keys_by_order
    }

    /// Hash of the content; states belong to it.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        content_fingerprint(self.keyset_fingerprint)
    }

    /// Content fingerprint of the key set.
    #[must_use]
    pub fn keyset_fingerprint(&self) -> Fingerprint {
        self.keyset_fingerprint
    }

    fn node(&self, row: RowId) -> Result<u32> {
        self.nodes.get(usize_of(row.0)).copied().ok_or_else(|| {
            let message = format!("row: expected less than {} (the number of keys), got {}", self.num_keys(), row.0);
            Error::argument(message)
        })
    }

    /// The key of `row`.
    ///
    /// # Errors
    /// [`Error::Argument`] past the last row, [`Error::Format`] in a damaged file.
    pub fn key(&self, row: RowId) -> Result<Vec<u32>> {
        self.canon.key(self.node(row)?).ok_or_else(|| self.damaged())
    }

    /// The count of `row`.
    ///
    /// # Errors
    /// As [`Index::key`].
    pub fn count(&self, row: RowId) -> Result<u64> {
        self.canon.count(self.node(row)?).ok_or_else(|| self.damaged())
    }

    /// The number of documents with the key of `row`; 0 where they were not counted.
    ///
    /// # Errors
    /// As [`Index::key`].
    pub fn documents(&self, row: RowId) -> Result<u64> {
        self.canon.documents(self.node(row)?).ok_or_else(|| self.damaged())
    }

    /// The row of exactly `tokens`, if it is a key.
    ///
    /// # Errors
    /// [`Error::Format`] in a damaged file.
    pub fn find(&self, tokens: &[u32]) -> Result<Option<RowId>> {
        if tokens.is_empty() || tokens.len() > self.max_order() || tokens.iter().any(|&t| t >= self.vocab_size()) {
            return Ok(None);
        }
        let mut state = StateId::START;
        let mut last = None;
        for &token in tokens {
            let found = self.table.step(state, token).ok_or_else(|| self.damaged())?;
            state = found.state;
            last = Some(found);
        }
        if last.is_some_and(|found| !self.limits().allow(found)) {
            return Err(self.damaged());
        }
        let whole = last.filter(|found| usize::from(found.order) == tokens.len() && found.row != NO_ROW);
        Ok(whole.map(|found| RowId(found.row)))
    }

    /// Fills `rows` (-1 at a miss) and `orders` (0 at a miss) for every position of `tokens`.
    ///
    /// # Errors
    /// [`Error::Token`] for a token outside the vocabulary, unless `unknown` lets it miss;
    /// [`Error::Argument`] where lengths differ; [`Error::Format`] in a damaged file.
    pub fn lookup(
        &self,
        tokens: &[u32],
        bounds: &Bounds<'_>,
        unknown: Unknown,
        rows: &mut [i32],
        orders: &mut [u8],
        options: Options,
    ) -> Result<()> {
        let tokens = Tokens::check(tokens, self.vocab_size(), bounds, unknown)?;
        self.lookup_tokens(&tokens, bounds, rows, orders, options)
    }

    /// [`Index::lookup`] of checked ids of any integer type.
    ///
    /// # Errors
    /// [`Error::Argument`] where lengths differ or the ids were checked against another vocabulary;
    /// [`Error::Format`] in a damaged file.
    pub fn lookup_tokens(
        &self,
        tokens: &Tokens<'_>,
        bounds: &Bounds<'_>,
        rows: &mut [i32],
        orders: &mut [u8],
        options: Options,
    ) -> Result<()> {
        match batch::lookup(&[self.layer(0)], tokens, bounds, rows, orders, options)? {
            None => Ok(()),
            Some(_) => Err(self.damaged()),
        }
    }

    /// Reads one token for each sequence: `states` move on in place, `rows` and `orders` are filled.
    ///
    /// Nothing is changed on an error.
    ///
    /// # Errors
    /// [`Error::Argument`] for a state that is not of this index, [`Error::Token`] as in [`Index::lookup`],
    /// [`Error::Format`] in a damaged file.
    pub fn advance(
        &self,
        states: &mut [StateId],
        tokens: &[u32],
        unknown: Unknown,
        rows: &mut [i32],
        orders: &mut [u8],
    ) -> Result<()> {
        self.advance_tokens(
            states,
            &Tokens::check(tokens, self.vocab_size(), &Bounds::default(), unknown)?,
            rows,
            orders,
        )
    }

    /// [`Index::advance`] by checked ids of any integer type.
    ///
    /// # Errors
    /// As [`Index::advance`], and [`Error::Argument`] where the ids were checked against another vocabulary.
    pub fn advance_tokens(
        &self,
        states: &mut [StateId],
        checked: &Tokens<'_>,
        rows: &mut [i32],
        orders: &mut [u8],
    ) -> Result<()> {
        checked.check_vocab_size(self.vocab_size())?;
        for (name, len) in [("states", states.len()), ("rows", rows.len()), ("orders", orders.len())] {
            if len != checked.len() {
                let want = checked.len();
                return Err(Error::argument(format!("{name}: expected {want} elements, one a token, got {len}")));
            }
        }
        let view = self.table.view();
        if let Some(at) = states.iter().position(|&state| !view.owns(state)) {
            let message = format!(
                "states[{at}]: {} is no state of index {}; start again with start(), and keep states with their index",
                states[at].0,
                self.fingerprint()
            );
            return Err(Error::argument(message));
        }
        let limits = self.limits();
        let mut found = Vec::with_capacity(checked.len());
        let mut ahead = [0; ADVANCE_AHEAD];
        for states in states.chunks(ADVANCE_AHEAD) {
            checked.read(found.len()..found.len() + states.len(), &mut ahead[..states.len()]);
            let tokens = &ahead[..states.len()];
            states.iter().zip(tokens).for_each(|(&state, &token)| view.expect(view.locate(state.0, token)));
            for (&state, &token) in states.iter().zip(tokens) {
                let one = self.table.step(state, token).filter(|&one| limits.allow(one));
                found.push(one.ok_or_else(|| self.damaged())?);
            }
        }
        for (i, found) in found.iter().enumerate() {
            states[i] = found.state;
            rows[i] = row_as_i32(found.row);
            orders[i] = found.order;
        }
        Ok(())
    }

    /// Sizes.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let table_bytes = u64_of(size_of_val(self.table.words()));
        let canonical_bytes: u64 = self.canon.sections().iter().map(|section| u64_of(section.bytes.len())).sum();
        Stats {
            num_keys: u64_of(self.num_keys()),
            canonical_bytes,
            table_bytes,
            bytes: canonical_bytes + table_bytes + u64_of(size_of_val(&*self.nodes)),
            max_spill: self.table.max_spill(),
        }
    }

    fn limits(&self) -> Limits {
        Limits { num_keys: saturating_u32(self.num_keys()), max_order: saturating_u32(self.max_order()) }
    }

    /// What a lookup walks, with rows counted from `first_row`.
    pub(crate) fn layer(&self, first_row: i32) -> Layer<'_> {
        Layer { table: &self.table, limits: self.limits(), first_row }
    }

    pub(crate) fn damaged(&self) -> Error {
        let path = self.path().map_or_else(|| PathBuf::from("(memory)"), Path::to_path_buf);
        Error::format(path, "its sections contradict themselves: run verify() and build the index again")
    }
}

/// States and answers follow from the key set and the version of the layout alone.
fn content_fingerprint(keyset: Fingerprint) -> Fingerprint {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"memgraft index v1");
    hasher.update(&keyset.0);
    Fingerprint(*hasher.finalize().as_bytes())
}

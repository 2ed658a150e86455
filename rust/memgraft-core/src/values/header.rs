//! The header of one value shard: a safetensors header with the tensors
//! `values` `[rows, taps, value_dim]` and, for 8-bit rows, `scales`.
//!
//! Parsing trusts nothing: sizes multiply with overflow checks, tensors must
//! tile the data region without holes, and the file must be exactly as long as
//! the header says.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::dtype::ValueDtype;
use super::file::ValueFile;
use crate::wire::u64_at;
use crate::{Error, Result};

/// Values start at a multiple of this many bytes into the file.
pub(crate) const ALIGNMENT: u64 = 4096;
/// The header length that no shard of ours comes near; safetensors' own limit.
const MAX_HEADER: u64 = 100_000_000;

/// What a shard's header says, checked against the file's length.
#[derive(Clone, Debug)]
pub(crate) struct ShardHeader {
    pub dtype: ValueDtype,
    pub num_rows: u64,
    pub taps: u64,
    pub value_dim: u64,
    /// Bytes into the file.
    pub values_start: u64,
    /// Bytes into the file, where the dtype has scales.
    pub scales_start: Option<u64>,
    /// `__metadata__` of the file.
    pub metadata: BTreeMap<String, String>,
}

impl ShardHeader {
    /// Reads and checks the header of `file`.
    ///
    /// # Errors
    /// [`Error::Format`] where the file is not a shard of ours or is truncated,
    /// [`Error::Io`] where it cannot be read.
    pub fn read(file: &ValueFile) -> Result<Self> {
        let (path, length) = (file.path(), file.num_bytes());
        if length < 8 {
            return Err(bad(path, format!("expected a value shard, found {length} bytes: truncated or another file")));
        }
        let mut prefix = [0_u8; 8];
        file.read_at(0, &mut prefix)?;
        let header_length = u64_at(&prefix, 0);
        let Some(data_start) = header_length.checked_add(8).filter(|_| header_length <= MAX_HEADER) else {
            return Err(bad(path, format!("expected a safetensors header, found a header length of {header_length}")));
        };
        if data_start > length {
            return Err(bad(
                path,
                format!(
                    "truncated: the header alone takes {data_start} bytes, the file has {length}; restore the file"
                ),
            ));
        }
        let mut text = vec![0_u8; usize::try_from(header_length).unwrap_or(usize::MAX)];
        file.read_at(8, &mut text)?;
        let header = Self::parse(path, &text, data_start)?;
        let expected = header.file_length(path)?;
        if expected != length {
            let what = if length < expected { "truncated" } else { "longer than its header says" };
            return Err(bad(path, format!("{what}: expected {expected} bytes, found {length}; restore the file")));
        }
        Ok(header)
    }

    fn parse(path: &Path, text: &[u8], data_start: u64) -> Result<Self> {
        let parsed: Value = serde_json::from_slice(text)
            .map_err(|error| bad(path, format!("the safetensors header is not JSON: {error}")))?;
        let object = parsed.as_object().ok_or_else(|| bad(path, "the safetensors header is not a JSON object"))?;
        if let Some(name) = object.keys().find(|name| !["__metadata__", "values", "scales"].contains(&name.as_str())) {
            return Err(bad(path, format!("expected the tensors `values` and `scales`, found `{name}`")));
        }
        let values = Entry::parse(path, object.get("values"), "values")?
            .ok_or_else(|| bad(path, "expected a tensor `values`, found none: not a value shard"))?;
        let dtype = ValueDtype::from_safetensors_name(&values.dtype).ok_or_else(|| {
            let known = ValueDtype::ALL.map(ValueDtype::safetensors_name).join(", ");
            bad(path, format!("expected values of one of {known}, found {}", values.dtype))
        })?;
        let &[num_rows, taps, value_dim] = values.shape.as_slice() else {
            return Err(bad(path, format!("expected values [rows, taps, value_dim], found shape {:?}", values.shape)));
        };
        if taps == 0 || value_dim == 0 {
            return Err(bad(
                path,
                format!("expected at least one tap and one channel, found shape {:?}", values.shape),
            ));
        }
        let scales = Entry::parse(path, object.get("scales"), "scales")?;
        let mut header = Self {
            dtype,
            num_rows,
            taps,
            value_dim,
            values_start: values.absolute(path, data_start, dtype.size())?,
            scales_start: None,
            metadata: metadata(path, object.get("__metadata__"))?,
        };
        match (dtype.scales_shape(num_rows, taps, value_dim), scales) {
            (None, None) => {}
            (Some(shape), Some(found)) => {
                if found.dtype != "F32" || found.shape != shape {
                    let found = format!("{} {:?}", found.dtype, found.shape);
                    return Err(bad(path, format!("expected scales F32 {shape:?}, found {found}")));
                }
                header.scales_start = Some(found.absolute(path, data_start, 4)?);
            }
            (None, Some(_)) => return Err(bad(path, format!("{} rows have no scales, found some", dtype.name()))),
            (Some(_), None) => return Err(bad(path, format!("{} rows need scales, found none", dtype.name()))),
        }
        if !header.values_start.is_multiple_of(ALIGNMENT) {
            let at = header.values_start;
            return Err(bad(
                path,
                format!("values start at byte {at}, expected a multiple of {ALIGNMENT}: rewrite it"),
            ));
        }
        header.check_tiling(path, data_start)?;
        Ok(header)
    }

    /// Bytes per row, all taps.
    pub fn row_bytes(&self) -> Option<u64> {
        self.taps.checked_mul(self.value_dim)?.checked_mul(u64::try_from(self.dtype.size()).ok()?)
    }

    /// Bytes of the `scales` tensor.
    pub fn scales_bytes(&self) -> Option<u64> {
        match self.dtype.scales_shape(self.num_rows, self.taps, self.value_dim) {
            Some([a, b]) => a.checked_mul(b)?.checked_mul(4),
            None => Some(0),
        }
    }

    /// The end of the data region, from shapes alone.
    fn file_length(&self, path: &Path) -> Result<u64> {
        let values_end = self
            .row_bytes()
            .and_then(|bytes| bytes.checked_mul(self.num_rows))
            .and_then(|bytes| bytes.checked_add(self.values_start));
        let scales_end = match self.scales_start {
            Some(start) => self.scales_bytes().and_then(|bytes| bytes.checked_add(start)),
            None => Some(0),
        };
        match (values_end, scales_end) {
            (Some(a), Some(b)) => Ok(a.max(b)),
            _ => Err(bad(path, format!("shape [{}, {}, {}] overflows", self.num_rows, self.taps, self.value_dim))),
        }
    }

    /// Scales, where there are some, lie right before the values; nothing else does.
    fn check_tiling(&self, path: &Path, data_start: u64) -> Result<()> {
        let expected = match self.scales_start {
            Some(start) if start != data_start => {
                return Err(bad(path, "expected scales at the start of the data: rewrite the shard"));
            }
            Some(start) => self.scales_bytes().and_then(|bytes| bytes.checked_add(start)),
            None => Some(data_start),
        };
        if expected == Some(self.values_start) {
            return Ok(());
        }
        Err(bad(path, format!("values start at byte {}, which leaves a hole or an overlap", self.values_start)))
    }
}

/// One tensor of the header as it stands there.
struct Entry {
    name: &'static str,
    dtype: String,
    shape: Vec<u64>,
    begin: u64,
    end: u64,
}

impl Entry {
    fn parse(path: &Path, entry: Option<&Value>, name: &'static str) -> Result<Option<Self>> {
        let Some(entry) = entry else { return Ok(None) };
        let malformed = || bad(path, format!("the header's entry for `{name}` is malformed: {entry}"));
        let numbers = |key: &str| -> Option<Vec<u64>> {
            entry.get(key)?.as_array()?.iter().map(Value::as_u64).collect::<Option<Vec<_>>>()
        };
        let dtype = entry.get("dtype").and_then(Value::as_str).ok_or_else(malformed)?.to_owned();
        let shape = numbers("shape").ok_or_else(malformed)?;
        let offsets = numbers("data_offsets").ok_or_else(malformed)?;
        let &[begin, end] = offsets.as_slice() else { return Err(malformed()) };
        Ok(Some(Self { name, dtype, shape, begin, end }))
    }

    /// Where the tensor starts in the file, after checking that its span fits its shape.
    fn absolute(&self, path: &Path, data_start: u64, size: usize) -> Result<u64> {
        let bytes =
            self.shape.iter().try_fold(u64::try_from(size).ok(), |bytes, &dim| Some(bytes?.checked_mul(dim))).flatten();
        if bytes.is_none() || self.end.checked_sub(self.begin) != bytes {
            let Self { name, shape, begin, end, .. } = self;
            return Err(bad(path, format!("`{name}` of shape {shape:?} cannot span bytes {begin}..{end}")));
        }
        self.begin.checked_add(data_start).ok_or_else(|| bad(path, format!("`{}` starts past any file", self.name)))
    }
}

fn metadata(path: &Path, entry: Option<&Value>) -> Result<BTreeMap<String, String>> {
    let Some(entry) = entry else { return Ok(BTreeMap::new()) };
    entry
        .as_object()
        .and_then(|object| {
            object.iter().map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect::<Option<_>>()
        })
        .ok_or_else(|| bad(path, "the header's `__metadata__` is not a map from text to text"))
}

fn bad(path: &Path, message: impl Into<String>) -> Error {
    Error::format(path, message)
}

//! `KeySet`.

use std::path::PathBuf;

use memgraft_core::ids::RowId;
use memgraft_core::keyset::{Arrays, KeySet};
use numpy::{PyArray1, ToPyArray};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::arrays::{input, slice, threads as thread_count};
use crate::errors::{ArgumentError, to_py};
use crate::signals::{borrowing, interruptible, saving};

type FlatArrays<'py> =
    (Bound<'py, PyArray1<u32>>, Bound<'py, PyArray1<u64>>, Bound<'py, PyArray1<u64>>, Bound<'py, PyArray1<u64>>);

/// Distinct keys in row order.
#[pyclass(name = "KeySet", module = "memgraft._core", frozen)]
pub(crate) struct PyKeySet(pub(crate) KeySet);

#[pymethods]
impl PyKeySet {
    #[staticmethod]
    #[pyo3(signature = (tokens, offsets, counts, documents, vocab_size, reserved, metadata))]
    #[allow(clippy::too_many_arguments, reason = "the arrays of a set cross whole")]
    fn from_arrays(
        py: Python<'_>,
        tokens: &Bound<'_, PyAny>,
        offsets: &Bound<'_, PyAny>,
        counts: &Bound<'_, PyAny>,
        documents: Option<&Bound<'_, PyAny>>,
        vocab_size: u32,
        reserved: Vec<u32>,
        metadata: String,
    ) -> PyResult<Self> {
        let tokens = input::<u32>(tokens, "tokens")?;
        let offsets = input::<u64>(offsets, "offsets")?;
        let counts = input::<u64>(counts, "counts")?;
        let documents = documents.map(|documents| input::<u64>(documents, "documents")).transpose()?;
        let documents = documents.as_ref().map(slice).transpose()?;
        let arrays = Arrays { tokens: slice(&tokens)?, offsets: slice(&offsets)?, counts: slice(&counts)?, documents };
        borrowing(py, || KeySet::from_arrays(arrays, vocab_size, &reserved, metadata)).map(Self)
    }

    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        py.detach(|| KeySet::open(path)).map(Self).map_err(to_py)
    }

    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        let keys = self.0.clone();
        saving(py, move || keys.save(path))
    }

    #[pyo3(signature = (threads=None))]
    fn verify(&self, py: Python<'_>, threads: Option<usize>) -> PyResult<()> {
        let threads = thread_count(threads).map_err(to_py)?;
        let keys = self.0.clone();
        interruptible(py, move || keys.verify(threads))
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    fn key<'py>(&self, py: Python<'py>, row: u32) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.0.key(RowId(row)).map_err(to_py)?)
    }

    fn count(&self, row: u32) -> PyResult<u64> {
        self.at(self.0.counts(), row)
    }

    fn documents(&self, row: u32) -> PyResult<u64> {
        self.at(self.0.documents(), row)
    }

    fn arrays<'py>(&self, py: Python<'py>, start: usize, stop: usize) -> PyResult<FlatArrays<'py>> {
        if start > stop || stop > self.0.len() {
            let len = self.0.len();
            return Err(ArgumentError::new_err(format!("rows: expected a range in 0..{len}, got {start}..{stop}")));
        }
        let (first, end) = (self.0.token_offset(start), self.0.token_offset(stop));
        let Some(tokens) = self.0.tokens().get(first..end) else {
            return Err(to_py(memgraft_core::Error::format(
                self.0.path().unwrap_or(std::path::Path::new("(memory)")),
                "keys lie outside the token section: run verify() and build the file again",
            )));
        };
        let mut at = 0u64;
        let ends = self.0.lengths()[start..stop].iter().map(|&len| {
            at += u64::from(len);
            at
        });
        let offsets: Vec<u64> = std::iter::once(0).chain(ends).collect();
        Ok((
            tokens.to_pyarray(py),
            PyArray1::from_vec(py, offsets),
            self.0.counts()[start..stop].to_pyarray(py),
            self.0.documents()[start..stop].to_pyarray(py),
        ))
    }

    fn select(&self, py: Python<'_>, rows: &Bound<'_, PyAny>) -> PyResult<Self> {
        let rows = input::<u32>(rows, "rows")?;
        let (keys, rows) = (self.0.clone(), slice(&rows)?.to_vec());
        interruptible(py, move || keys.select(&rows)).map(Self)
    }

    fn select_by_gain(&self, py: Python<'_>, budget: usize, pinned: Vec<u32>) -> PyResult<Self> {
        let keys = self.0.clone();
        interruptible(py, move || keys.select_by_gain(budget, &pinned)).map(Self)
    }

    fn with_metadata(&self, metadata: String) -> Self {
        Self(self.0.clone().with_metadata(metadata))
    }

    #[getter]
    fn vocab_size(&self) -> u32 {
        self.0.vocab_size()
    }

    #[getter]
    fn keys_by_order(&self) -> [u64; 16] {
        *self.0.keys_by_order()
    }

    #[getter]
    fn reserved(&self) -> Vec<u32> {
        self.0.reserved().to_vec()
    }

    #[getter]
    fn fingerprint(&self) -> String {
        self.0.fingerprint().to_string()
    }

    #[getter]
    fn metadata(&self) -> &str {
        self.0.metadata()
    }

    #[getter]
    fn path(&self) -> Option<PathBuf> {
        self.0.path().map(PathBuf::from)
    }
}

impl PyKeySet {
    fn at(&self, values: &[u64], row: u32) -> PyResult<u64> {
        self.0.key(RowId(row)).map_err(to_py)?;
        Ok(values[memgraft_core::ids::usize_of(row)])
    }
}

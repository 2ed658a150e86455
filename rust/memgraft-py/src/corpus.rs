//! `Corpus`: the reader over token files.

use std::path::PathBuf;

use memgraft_core::Error;
use memgraft_core::corpus::{Corpus, OpenOptions, Runs, hash_documents as hash};
use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::arrays::{input, slice};
use crate::errors::to_py;
use crate::signals::interruptible;

/// Of some documents: hashes, sizes, and the hashes of runs inside them.
type Hashed<'py> = (Bound<'py, PyArray1<u64>>, Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<u64>>);

/// A token corpus: a stream of tokens cut into documents.
#[pyclass(frozen, name = "Corpus", module = "memgraft._core")]
pub(crate) struct PyCorpus(pub(crate) Corpus);

#[pymethods]
impl PyCorpus {
    #[staticmethod]
    #[pyo3(signature = (paths, format=None, dtype=None, eos_id=None, eos_first=None, file_is_document=false))]
    fn open(
        py: Python<'_>,
        paths: Vec<PathBuf>,
        format: Option<&str>,
        dtype: Option<&str>,
        eos_id: Option<u32>,
        eos_first: Option<bool>,
        file_is_document: bool,
    ) -> PyResult<Self> {
        let options = OpenOptions {
            format: format.map(str::parse).transpose().map_err(to_py)?,
            dtype: dtype.map(str::parse).transpose().map_err(to_py)?,
            eos_id,
            eos_first,
            file_is_document,
        };
        interruptible(py, move || Corpus::open(&paths, &options)).map(Self)
    }

    #[getter]
    fn num_tokens(&self) -> u64 {
        self.0.num_tokens()
    }

    #[getter]
    fn num_documents(&self) -> usize {
        self.0.num_documents()
    }

    #[getter]
    fn dtype(&self) -> &'static str {
        self.0.dtype().name()
    }

    #[getter]
    fn format(&self) -> String {
        self.0.format().to_string()
    }

    #[getter]
    fn eos_id(&self) -> Option<u32> {
        self.0.eos_id()
    }

    #[getter]
    fn paths(&self) -> Vec<PathBuf> {
        self.0.paths().map(std::path::Path::to_path_buf).collect()
    }

    fn document_starts<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u64>> {
        PyArray1::from_vec(py, py.detach(|| self.0.document_starts()))
    }

    fn document(&self, document: usize) -> PyResult<(u64, u64)> {
        self.check(document)?;
        Ok(self.0.document(document))
    }

    fn tokens<'py>(&self, py: Python<'py>, start: u64, stop: u64) -> PyResult<Bound<'py, PyArray1<u32>>> {
        let tokens = py.detach(|| self.0.window(start, stop)).map_err(to_py)?;
        Ok(PyArray1::from_vec(py, tokens))
    }

    fn fingerprint(&self, py: Python<'_>, threads: usize) -> PyResult<String> {
        let corpus = self.0.clone();
        interruptible(py, move || corpus.fingerprint(threads)).map(|found| found.to_string())
    }

    fn split(&self, py: Python<'_>, held_out: f64, seed: u64, threads: usize) -> PyResult<(Self, Self)> {
        let corpus = self.0.clone();
        let (train, held) = interruptible(py, move || corpus.split(held_out, seed, threads))?;
        Ok((Self(train), Self(held)))
    }

    /// The first document of shard `rank` of `world`.
    fn cut(&self, rank: u64, world: u64) -> usize {
        self.0.cut(rank, world)
    }

    fn slice(&self, first: usize, last: usize) -> PyResult<Self> {
        if first > last || last > self.0.num_documents() {
            let message = format!("documents: expected some of {}, got {first} to {last}", self.0.num_documents());
            return Err(to_py(Error::argument(message)));
        }
        Ok(Self(self.0.slice(first..last)))
    }

    #[getter]
    fn split_facts<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let Some(facts) = self.0.split_facts() else { return Ok(None) };
        let dict = PyDict::new(py);
        dict.set_item("part", if facts.held_out { "held_out" } else { "train" })?;
        dict.set_item("held_out", facts.fraction)?;
        dict.set_item("seed", facts.seed)?;
        dict.set_item("of", facts.of.to_string())?;
        dict.set_item("num_documents", facts.num_documents)?;
        dict.set_item("num_held_out", facts.num_held_out)?;
        Ok(Some(dict))
    }
}

impl PyCorpus {
    fn check(&self, document: usize) -> PyResult<()> {
        if document < self.0.num_documents() {
            return Ok(());
        }
        Err(to_py(Error::argument(format!("document: expected 0 to {}, got {document}", self.0.num_documents() - 1))))
    }
}

/// Hashes of documents of `tokens`, and of the runs of `length` tokens inside them that end in `zeros` and are at most `most`.
#[pyfunction]
fn hash_documents<'py>(
    py: Python<'py>,
    tokens: &Bound<'py, PyAny>,
    edges: &Bound<'py, PyAny>,
    eos_id: Option<u32>,
    length: usize,
    zeros: u32,
    most: u64,
) -> PyResult<Hashed<'py>> {
    let (tokens, edges) = (input::<u32>(tokens, "tokens")?, input::<u64>(edges, "edges")?);
    let (tokens, edges) = (slice(&tokens)?, slice(&edges)?);
    let found = py.detach(|| hash(tokens, edges, eos_id, Runs { length, zeros, most })).map_err(to_py)?;
    Ok((found.documents.into_pyarray(py), found.sizes.into_pyarray(py), found.runs.into_pyarray(py)))
}

/// Adds this file's names to the module.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyCorpus>()?;
    module.add_function(wrap_pyfunction!(hash_documents, module)?)
}

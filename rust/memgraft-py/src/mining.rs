//! Mining: corpus to keys or to a part, parts to keys; progress and Ctrl-C on the calling thread.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use memgraft_core::mining::{
    Batch, Choice, Estimate, Means, MergedFacts, MineOptions, Mined, PartOptions, Rank, Report, RunSet,
};
use memgraft_core::{Error, Result, mining};
use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::corpus::PyCorpus;
use crate::errors::to_py;
use crate::keyset::PyKeySet;
use crate::signals::{interruptible, watched};

/// Which n-grams become keys.
#[pyclass(frozen, name = "Choice", module = "memgraft._core")]
pub(crate) struct PyChoice {
    choice: Choice<'static>,
    excluded: Option<(Py<PyCorpus>, usize)>,
    keep: Option<Py<PyAny>>,
}

#[pymethods]
impl PyChoice {
    #[new]
    #[allow(clippy::too_many_arguments, reason = "one for each field of the core's choice")]
    #[pyo3(signature = (budgets, total, by_documents, min_count, min_documents, required, excluded, exclude_from, keep))]
    fn new(
        budgets: BTreeMap<usize, Option<u64>>,
        total: Option<u64>,
        by_documents: bool,
        min_count: u64,
        min_documents: u64,
        required: Vec<Vec<u32>>,
        excluded: Option<Py<PyCorpus>>,
        exclude_from: usize,
        keep: Option<Py<PyAny>>,
    ) -> Self {
        let rank = if by_documents { Rank::Documents } else { Rank::Count };
        let choice = Choice { budgets, total, rank, min_count, min_documents, required, filter: None };
        Self { choice, excluded: excluded.map(|corpus| (corpus, exclude_from)), keep }
    }
}

/// Memory, threads, disk.
#[pyclass(frozen, name = "Means", module = "memgraft._core")]
pub(crate) struct PyMeans(Means);

#[pymethods]
impl PyMeans {
    #[new]
    fn new(memory: u64, temporary: PathBuf, threads: usize, sketch: bool) -> Self {
        Self(Means { memory, temporary, threads, sketch, block_size: None, max_fan_in: None })
    }

    /// How many parts a merge, and how many a selection, reads without an intermediate merge.
    #[getter]
    fn most_parts(&self) -> (usize, usize) {
        mining::most_parts(&self.0)
    }
}

/// Mined keys and what was counted, by order from 0.
#[pyclass(frozen, name = "Mined", module = "memgraft._core", get_all)]
pub(crate) struct PyMined {
    keys: Py<PyKeySet>,
    positions: Vec<u64>,
    distinct: Vec<u64>,
    frequent: Vec<u64>,
    excluded: Vec<u64>,
    num_runs: u64,
    spilled_bytes: u64,
}

/// What parts say about the corpus that they make up.
#[pyclass(frozen, name = "MergedFacts", module = "memgraft._core", get_all)]
pub(crate) struct PyMergedFacts {
    fingerprint: String,
    num_tokens: u64,
    num_documents: u64,
    world: u64,
    settings: String,
}

/// A run file.
#[pyclass(frozen, name = "RunSet", module = "memgraft._core")]
pub(crate) struct PyRunSet(Arc<RunSet>);

impl PyRunSet {
    fn new(set: RunSet) -> Self {
        Self(Arc::new(set))
    }
}

#[pymethods]
impl PyRunSet {
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        py.detach(|| RunSet::open(path)).map(Self::new).map_err(to_py)
    }

    fn verify(&self, py: Python<'_>) -> PyResult<()> {
        let set = Arc::clone(&self.0);
        interruptible(py, move || set.verify())
    }

    #[getter]
    fn path(&self) -> PathBuf {
        self.0.path().to_path_buf()
    }

    #[getter]
    fn vocab_size(&self) -> u32 {
        self.0.facts().vocab_size
    }

    #[getter]
    fn max_order(&self) -> usize {
        self.0.facts().max_order
    }

    #[getter]
    fn reserved(&self) -> Vec<u32> {
        self.0.facts().reserved.clone()
    }

    #[getter]
    fn tokens(&self) -> (u32, u32) {
        self.0.facts().tokens
    }

    #[getter]
    fn num_records(&self) -> u64 {
        self.0.facts().num_records
    }

    #[getter]
    fn num_bytes(&self) -> u64 {
        self.0.num_bytes()
    }

    #[getter]
    fn world(&self) -> u64 {
        self.0.facts().world
    }

    #[getter]
    fn settings(&self) -> String {
        self.0.facts().settings.to_string()
    }

    /// (rank, fingerprint, tokens, documents) of each shard.
    #[getter]
    fn shards(&self) -> Vec<(u64, String, u64, u64)> {
        let shards = self.0.facts().shards.iter();
        shards.map(|s| (s.rank, s.fingerprint.to_string(), s.num_tokens, s.num_documents)).collect()
    }
}

/// Mines a corpus.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub(crate) fn mine(
    py: Python<'_>,
    corpus: &PyCorpus,
    choice: &PyChoice,
    vocab_size: u32,
    reserved: Vec<u32>,
    means: &PyMeans,
    progress: Option<Py<PyAny>>,
) -> PyResult<PyMined> {
    let corpus = corpus.0.clone();
    let mined = chosen(py, choice, vocab_size, reserved, means, progress, move |options, report| {
        mining::mine(&corpus, options, report)
    })?;
    to_mined(py, mined)
}

/// Counts parts and picks the keys.
#[pyfunction]
pub(crate) fn select_parts(
    py: Python<'_>,
    parts: Vec<PathBuf>,
    choice: &PyChoice,
    means: &PyMeans,
    progress: Option<Py<PyAny>>,
) -> PyResult<(PyMined, PyMergedFacts)> {
    let (mined, facts) = chosen(py, choice, 1, Vec::new(), means, progress, move |options, report| {
        mining::select_parts(&parts, options, report)
    })?;
    let MergedFacts { fingerprint, num_tokens, num_documents, world, settings } = facts;
    let facts = PyMergedFacts {
        fingerprint: fingerprint.to_string(),
        num_tokens,
        num_documents,
        world,
        settings: settings.to_string(),
    };
    Ok((to_mined(py, mined)?, facts))
}

/// Leaves a part of a corpus in a file.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub(crate) fn mine_part(
    py: Python<'_>,
    corpus: &PyCorpus,
    out: PathBuf,
    max_order: usize,
    vocab_size: u32,
    reserved: Vec<u32>,
    rank: u64,
    world: u64,
    apart: bool,
    settings: &str,
    means: &PyMeans,
    progress: Option<Py<PyAny>>,
) -> PyResult<PyRunSet> {
    let settings = mining::parse_settings(settings).map_err(to_py)?;
    let means = means.0.clone();
    let options = PartOptions { max_order, vocab_size, reserved, rank, world, apart, settings, means };
    let corpus = corpus.0.clone();
    watched(py, progress, move |_, report| mining::mine_part(&corpus, &out, &options, report)).map(PyRunSet::new)
}

/// Merges parts into one.
#[pyfunction]
pub(crate) fn merge_parts(
    py: Python<'_>,
    parts: Vec<PathBuf>,
    out: PathBuf,
    range: Option<(usize, usize)>,
    means: &PyMeans,
    progress: Option<Py<PyAny>>,
) -> PyResult<PyRunSet> {
    let means = means.0.clone();
    watched(py, progress, move |_, report| mining::merge_parts(&parts, &out, range, &means, report)).map(PyRunSet::new)
}

/// Bytes of every part that go into the merge of a range: at least, at most.
#[pyfunction]
pub(crate) fn range_bytes(py: Python<'_>, parts: Vec<PathBuf>, range: (usize, usize)) -> PyResult<Vec<(u64, u64)>> {
    py.detach(|| mining::range_bytes(&parts, range)).map_err(to_py)
}

/// (tokens sampled, bytes of their records, how often these lie in the temporary folder at once); nothing is sampled where
/// they do not, unless `always`.
#[pyfunction]
pub(crate) fn estimate_spill(
    py: Python<'_>,
    corpus: &PyCorpus,
    choice: &PyChoice,
    vocab_size: u32,
    reserved: Vec<u32>,
    means: &PyMeans,
    always: bool,
) -> PyResult<(u64, u64, u64)> {
    let corpus = corpus.0.clone();
    let Estimate { sampled, sampled_bytes, copies } =
        chosen(py, choice, vocab_size, reserved, means, None, move |options, _| {
            mining::estimate(&corpus, options, always)
        })?;
    Ok((sampled, sampled_bytes, copies))
}

/// Runs `work` with options of `choice`, whose filter asks Python.
fn chosen<T: Send + 'static>(
    py: Python<'_>,
    choice: &PyChoice,
    vocab_size: u32,
    reserved: Vec<u32>,
    means: &PyMeans,
    progress: Option<Py<PyAny>>,
    work: impl FnOnce(&MineOptions<'_>, &mut Report<'_>) -> Result<T> + Send + 'static,
) -> PyResult<T> {
    // What Python raised inside the filter; the core only learns that it shall stop.
    let raised = Arc::new(Mutex::new(None));
    let caught = Arc::clone(&raised);
    let excluded = choice.excluded.as_ref().map(|(corpus, from)| (corpus.get().0.clone(), *from));
    let keep = choice.keep.as_ref().map(|keep| keep.clone_ref(py));
    let (asked, means) = (choice.choice.clone(), means.0.clone());
    let done = watched(py, progress, move |stop, report| {
        let filter = |batch: &Batch| {
            stop.check()?;
            Python::attach(|py| ask(py, keep.as_ref(), batch)).map_err(|error| {
                *caught.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                Error::Interrupted
            })
        };
        let mut choice: Choice<'_> = asked;
        if keep.is_some() {
            choice.filter = Some(&filter);
        }
        work(&MineOptions { choice, vocab_size, reserved, excluded, means }, report)
    });
    match raised.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(error) => Err(error),
        None => done,
    }
}

/// Which candidates `keep` keeps: it is given tokens, offsets, counts and documents.
fn ask(py: Python<'_>, keep: Option<&Py<PyAny>>, batch: &Batch) -> PyResult<Vec<bool>> {
    let Some(keep) = keep else { return Ok(vec![true; batch.counts.len()]) };
    let array = |values: &Vec<u64>| PyArray1::from_slice(py, values).into_any();
    let tokens = PyArray1::from_slice(py, &batch.tokens).into_any();
    let arrays = [tokens, array(&batch.offsets), array(&batch.counts), array(&batch.documents)];
    let kept = keep.call1(py, PyTuple::new(py, arrays)?)?;
    let kept: PyReadonlyArray1<'_, bool> = kept.extract(py)?;
    Ok(kept.as_array().to_vec())
}

fn to_mined(py: Python<'_>, mined: Mined) -> PyResult<PyMined> {
    Ok(PyMined {
        keys: Py::new(py, PyKeySet(mined.keys))?,
        positions: mined.positions.to_vec(),
        distinct: mined.distinct.to_vec(),
        frequent: mined.frequent.to_vec(),
        excluded: mined.excluded.to_vec(),
        num_runs: mined.num_runs,
        spilled_bytes: mined.spilled_bytes,
    })
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyChoice>()?;
    module.add_class::<PyMeans>()?;
    module.add_class::<PyMined>()?;
    module.add_class::<PyMergedFacts>()?;
    module.add_class::<PyRunSet>()?;
    module.add_function(wrap_pyfunction!(mine, module)?)?;
    module.add_function(wrap_pyfunction!(select_parts, module)?)?;
    module.add_function(wrap_pyfunction!(mine_part, module)?)?;
    module.add_function(wrap_pyfunction!(merge_parts, module)?)?;
    module.add_function(wrap_pyfunction!(range_bytes, module)?)?;
    module.add_function(wrap_pyfunction!(estimate_spill, module)?)
}

//! `mine`: corpus to keys, progress and Ctrl-C on the calling thread.

use std::collections::BTreeMap;
use std::path::PathBuf;

use memgraft_core::Error;
use memgraft_core::mining::{MineOptions, Mined};
use numpy::PyArray1;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::corpus::PyCorpus;
use crate::errors::to_py;

/// Mines a corpus. Returns a dict of whole arrays (tokens, offsets, counts, documents), of lists by order from 0
/// (positions, distinct, frequent) and of what was spilled.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub(crate) fn mine<'py>(
    py: Python<'py>,
    corpus: &PyCorpus,
    budgets: BTreeMap<usize, Option<u64>>,
    min_count: u64,
    vocab_size: u32,
    reserved: Vec<u32>,
    memory: u64,
    temporary: PathBuf,
    threads: usize,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let options = MineOptions {
        budgets,
        min_count,
        vocab_size,
        reserved,
        memory,
        temporary,
        threads,
        block_size: None,
        max_fan_in: None,
    };
    // What Python raised inside the report; the core only learns that it shall stop.
    let mut raised = None;
    let mined = py.detach(|| {
        memgraft_core::mining::mine(&corpus.0, &options, &mut |stage, done, total| {
            Python::attach(|py| {
                py.check_signals()?;
                match &progress {
                    Some(progress) => progress.call1(py, (stage, done, total)).map(drop),
                    None => Ok(()),
                }
            })
            .map_err(|error| {
                raised = Some(error);
                Error::Interrupted
            })
        })
    });
    match (mined, raised) {
        (_, Some(error)) => Err(error),
        (Err(error), None) => Err(to_py(error)),
        (Ok(mined), None) => to_dict(py, mined),
    }
}

fn to_dict(py: Python<'_>, mined: Mined) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("tokens", PyArray1::from_vec(py, mined.tokens))?;
    dict.set_item("offsets", PyArray1::from_vec(py, mined.offsets))?;
    dict.set_item("counts", PyArray1::from_vec(py, mined.counts))?;
    dict.set_item("documents", PyArray1::from_vec(py, mined.documents))?;
    dict.set_item("positions", mined.positions.to_vec())?;
    dict.set_item("distinct", mined.distinct.to_vec())?;
    dict.set_item("frequent", mined.frequent.to_vec())?;
    dict.set_item("num_runs", mined.num_runs)?;
    dict.set_item("spilled_bytes", mined.spilled_bytes)?;
    Ok(dict)
}

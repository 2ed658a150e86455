//! `ValueTable` and the content fingerprint of shards.

use std::path::PathBuf;
use std::sync::Arc;

use memgraft_core::fingerprint::digest;
use memgraft_core::values::verify::content_fingerprint;
use memgraft_core::values::{ColdReader, GatherFacts, ValueTable};
use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::arrays::{input, output, slice, slice_mut};
use crate::errors::to_py;
use crate::signals::{LONG, interruptible, lending};

/// Bytes of a call's output that take as long as [`LONG`] rows.
const LONG_BYTES: usize = 64 << 20;

/// Value shards as one table of rows.
#[pyclass(name = "ValueTable", module = "memgraft._core", frozen)]
pub(crate) struct PyValueTable {
    inner: Arc<ValueTable>,
}

fn facts_dict<'py>(py: Python<'py>, facts: GatherFacts) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("num_bytes", facts.num_bytes)?;
    dict.set_item("num_cold_rows", facts.num_cold_rows)?;
    Ok(dict)
}

fn long(rows: &[i32], out: &[u8]) -> bool {
    rows.len() >= LONG || out.len() >= LONG_BYTES
}

/// Unique rows, inverse, number of hits, gather facts.
type StagedTuple<'py> = (Bound<'py, PyArray1<i32>>, Bound<'py, PyArray1<i32>>, u64, Option<Bound<'py, PyDict>>);

#[pymethods]
impl PyValueTable {
    #[staticmethod]
    #[pyo3(signature = (paths, resident_rows, threads, cold_reader="pread"))]
    fn open(
        py: Python<'_>,
        paths: Vec<PathBuf>,
        resident_rows: u64,
        threads: usize,
        cold_reader: &str,
    ) -> PyResult<Self> {
        let cold_reader = ColdReader::from_name(cold_reader).map_err(to_py)?;
        let open = move || {
            let mut table = ValueTable::open(&paths)?;
            table.set_cold_reader(cold_reader);
            if resident_rows > 0 {
                table.make_resident(resident_rows, threads)?;
            }
            Ok(Self { inner: Arc::new(table) })
        };
        // Opening reads headers alone; what copies rows takes long.
        if resident_rows > 0 { interruptible(py, open) } else { py.detach(open).map_err(to_py) }
    }

    #[getter]
    fn num_rows(&self) -> u64 {
        self.inner.num_rows()
    }

    #[getter]
    fn taps(&self) -> u64 {
        self.inner.taps()
    }

    #[getter]
    fn value_dim(&self) -> u64 {
        self.inner.value_dim()
    }

    #[getter]
    fn dtype(&self) -> &'static str {
        self.inner.dtype().name()
    }

    #[getter]
    fn row_bytes(&self) -> usize {
        self.inner.row_bytes()
    }

    #[getter]
    fn resident_rows(&self) -> u64 {
        self.inner.resident_rows()
    }

    #[getter]
    fn cold_reader(&self) -> (&'static str, Option<&str>) {
        let (reader, refusal) = self.inner.cold_reader();
        (reader.name(), refusal)
    }

    fn warm(&self, py: Python<'_>, num_rows: u64, threads: usize) -> PyResult<u64> {
        let table = Arc::clone(&self.inner);
        interruptible(py, move || table.warm(num_rows, threads))
    }

    fn shards<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        self.inner
            .shards()
            .iter()
            .map(|shard| {
                let dict = PyDict::new(py);
                dict.set_item("path", shard.path())?;
                dict.set_item("num_rows", shard.num_rows())?;
                dict.set_item("num_bytes", shard.num_bytes())?;
                dict.set_item("data_start", shard.data_start())?;
                dict.set_item("metadata", shard.metadata().clone())?;
                Ok(dict)
            })
            .collect()
    }

    fn check_unchanged(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.inner.check_unchanged()).map_err(to_py)
    }

    fn gather<'py>(
        &self,
        py: Python<'py>,
        rows: &Bound<'py, PyAny>,
        out: &Bound<'py, PyAny>,
        threads: usize,
    ) -> PyResult<Bound<'py, PyDict>> {
        let (rows, mut out) = (input::<i32>(rows, "rows")?, output::<u8>(out, "out")?);
        let (rows, out) = (slice(&rows)?.to_vec(), slice_mut(&mut out)?);
        let facts = lending(py, long(&rows, out), || self.inner.gather(&rows, out, threads))?;
        facts_dict(py, facts)
    }

    fn stage<'py>(
        &self,
        py: Python<'py>,
        rows: &Bound<'py, PyAny>,
        out: &Bound<'py, PyAny>,
        threads: usize,
    ) -> PyResult<StagedTuple<'py>> {
        let (rows, mut out) = (input::<i32>(rows, "rows")?, output::<u8>(out, "out")?);
        let (rows, out) = (slice(&rows)?.to_vec(), slice_mut(&mut out)?);
        let staged = lending(py, long(&rows, out), || self.inner.stage(&rows, out, threads))?;
        let facts = staged.gathered.map(|facts| facts_dict(py, facts)).transpose()?;
        let dedup = staged.dedup;
        Ok((dedup.unique.into_vec().into_pyarray(py), dedup.inverse.into_pyarray(py), dedup.num_hits, facts))
    }

    fn gather_scales<'py>(&self, py: Python<'py>, rows: &Bound<'py, PyAny>, out: &Bound<'py, PyAny>) -> PyResult<()> {
        let (rows, mut out) = (input::<i32>(rows, "rows")?, output::<u8>(out, "out")?);
        let (rows, out) = (slice(&rows)?.to_vec(), slice_mut(&mut out)?);
        lending(py, long(&rows, out), || self.inner.gather_scales(&rows, out))
    }

    fn channel_scales<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<u8>>> {
        let scales = py.detach(|| self.inner.channel_scales().map(<[u8]>::to_vec)).map_err(to_py)?;
        Ok(scales.into_pyarray(py))
    }
}

/// Fingerprint of a file's bytes from `start` on, as 64 hex digits.
#[pyfunction]
fn fingerprint_content(py: Python<'_>, path: PathBuf, start: u64, threads: usize) -> PyResult<String> {
    interruptible(py, move || content_fingerprint(&path, start, threads)).map(|found| found.to_string())
}

/// BLAKE3 of `data`, as 64 hex digits.
#[pyfunction]
fn fingerprint_bytes(data: &[u8]) -> PyResult<String> {
    digest(data, 1).map(|found| found.to_string()).map_err(to_py)
}

/// Adds this file's names to the module.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyValueTable>()?;
    module.add_function(wrap_pyfunction!(fingerprint_bytes, module)?)?;
    module.add_function(wrap_pyfunction!(fingerprint_content, module)?)
}

//! `Index`, wrapped by `memgraft.NgramIndex`.

use std::path::PathBuf;
use std::sync::Arc;

use memgraft_core::format::Load;
use memgraft_core::ids::RowId;
use memgraft_core::index::{Form, Index};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::arrays::threads as thread_count;
use crate::calls::{Advance, Lookup, lookup_methods};
use crate::errors::{ArgumentError, to_py};
use crate::keyset::PyKeySet;
use crate::signals::{interruptible, saving};

/// Tokens to (row, order).
#[pyclass(name = "Index", module = "memgraft._core", frozen)]
pub(crate) struct PyIndex(pub(crate) Arc<Index>);

lookup_methods! {
    impl PyIndex {
        #[staticmethod]
        fn build(py: Python<'_>, keys: &PyKeySet) -> PyResult<Self> {
            let keys = keys.0.clone();
            interruptible(py, move || Index::build(&keys)).map(|index| Self(Arc::new(index)))
        }

        #[staticmethod]
        fn open(py: Python<'_>, path: PathBuf, load: &str) -> PyResult<Self> {
            let load = match load {
                "map" => Load::Map,
                "ram" => Load::Ram,
                other => return Err(ArgumentError::new_err(format!("load: expected \"map\" or \"ram\", got {other:?}"))),
            };
            interruptible(py, move || Index::open(path, load)).map(|index| Self(Arc::new(index)))
        }

        fn save(&self, py: Python<'_>, path: PathBuf, form: &str) -> PyResult<()> {
            let form = match form {
                "fast" => Form::Fast,
                "archive" => Form::Archive,
                other => {
                    let message = format!("form: expected \"fast\" or \"archive\", got {other:?}");
                    return Err(ArgumentError::new_err(message));
                }
            };
            let index = Arc::clone(&self.0);
            saving(py, move || index.save(path, form))
        }

        fn key_set(&self, py: Python<'_>) -> PyResult<PyKeySet> {
            let index = Arc::clone(&self.0);
            interruptible(py, move || index.key_set()).map(PyKeySet)
        }

        #[pyo3(signature = (threads=None))]
        fn verify(&self, py: Python<'_>, threads: Option<usize>) -> PyResult<()> {
            let threads = thread_count(threads).map_err(to_py)?;
            let index = Arc::clone(&self.0);
            interruptible(py, move || index.verify(threads))
        }

        fn key<'py>(&self, py: Python<'py>, row: u32) -> PyResult<Bound<'py, PyTuple>> {
            PyTuple::new(py, self.0.key(RowId(row)).map_err(to_py)?)
        }

        fn count(&self, row: u32) -> PyResult<u64> {
            self.0.count(RowId(row)).map_err(to_py)
        }

        fn documents(&self, row: u32) -> PyResult<u64> {
            self.0.documents(RowId(row)).map_err(to_py)
        }

        fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
            let stats = self.0.stats();
            let out = PyDict::new(py);
            out.set_item("num_keys", stats.num_keys)?;
            out.set_item("bytes", stats.bytes)?;
            out.set_item("file_bytes", self.0.file_bytes())?;
            out.set_item("canonical_bytes", stats.canonical_bytes)?;
            out.set_item("table_bytes", stats.table_bytes)?;
            out.set_item("max_spill", stats.max_spill)?;
            Ok(out)
        }

        #[getter]
        fn keyset_fingerprint(&self) -> String {
            self.0.keyset_fingerprint().to_string()
        }

        #[getter]
        fn is_archive(&self) -> bool {
            self.0.is_archive()
        }

        #[getter]
        fn path(&self) -> Option<PathBuf> {
            self.0.path().map(PathBuf::from)
        }
    }
}

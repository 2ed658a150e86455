//! `IndexStack`, wrapped by `memgraft.bank.overlay.StackedIndex`.

use std::sync::Arc;

use memgraft_core::ids::RowId;
use memgraft_core::stack::Stack;
use pyo3::prelude::*;

use crate::calls::{Advance, Lookup};
use crate::errors::to_py;
use crate::index::PyIndex;

/// Several indexes as one: the longest match of all, at equal length the later index's.
#[pyclass(name = "IndexStack", module = "memgraft._core", frozen)]
pub(crate) struct PyStack(Stack);

#[pymethods]
impl PyStack {
    #[new]
    fn new(layers: Vec<PyRef<'_, PyIndex>>) -> PyResult<Self> {
        Stack::new(layers.iter().map(|layer| Arc::clone(&layer.0)).collect()).map(Self).map_err(to_py)
    }

    #[pyo3(signature = (tokens, rows, orders, *, width=None, segments=None, eos_id=None, cu_seqlens=None, threads=None, miss=false))]
    #[allow(clippy::too_many_arguments, reason = "the whole call crosses at once")]
    fn lookup(
        &self,
        py: Python<'_>,
        tokens: &Bound<'_, PyAny>,
        rows: &Bound<'_, PyAny>,
        orders: &Bound<'_, PyAny>,
        width: Option<usize>,
        segments: Option<&Bound<'_, PyAny>>,
        eos_id: Option<u32>,
        cu_seqlens: Option<&Bound<'_, PyAny>>,
        threads: Option<usize>,
        miss: bool,
    ) -> PyResult<()> {
        let call = Lookup { tokens, rows, orders, width, segments, eos_id, cu_seqlens, threads, miss };
        call.run(py, self.0.vocab_size(), |tokens, bounds, rows, orders, options| {
            self.0.lookup_tokens(tokens, bounds, rows, orders, options)
        })
    }

    #[pyo3(signature = (states, tokens, rows, orders, *, miss=false))]
    fn advance(
        &self,
        py: Python<'_>,
        states: &Bound<'_, PyAny>,
        tokens: &Bound<'_, PyAny>,
        rows: &Bound<'_, PyAny>,
        orders: &Bound<'_, PyAny>,
        miss: bool,
    ) -> PyResult<()> {
        let call = Advance { states, tokens, rows, orders, miss };
        call.run(py, self.0.vocab_size(), |states, tokens, rows, orders| {
            self.0.advance_tokens(states, tokens, rows, orders)
        })
    }

    fn locate(&self, row: u32) -> PyResult<(usize, u32)> {
        self.0.locate(RowId(row)).map(|(layer, row)| (layer, row.0)).map_err(to_py)
    }

    fn find(&self, tokens: Vec<u32>) -> PyResult<Option<u32>> {
        Ok(self.0.find(&tokens).map_err(to_py)?.map(|row| row.0))
    }

    fn __len__(&self) -> usize {
        self.0.num_keys()
    }

    #[getter]
    fn first_rows(&self) -> Vec<u32> {
        self.0.first_rows().to_vec()
    }

    #[getter]
    fn vocab_size(&self) -> u32 {
        self.0.vocab_size()
    }

    #[getter]
    fn keys_by_order(&self) -> [u64; 16] {
        self.0.keys_by_order()
    }

    #[getter]
    fn fingerprint(&self) -> String {
        self.0.fingerprint().to_string()
    }
}

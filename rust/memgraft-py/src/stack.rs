//! `IndexStack`, wrapped by `memgraft.bank.overlay.StackedIndex`.

use std::sync::Arc;

use memgraft_core::ids::RowId;
use memgraft_core::stack::Stack;
use pyo3::prelude::*;

use crate::calls::{Advance, Lookup, lookup_methods};
use crate::errors::to_py;
use crate::index::PyIndex;

/// Several indexes as one: the longest match of all, at equal length the later index's.
#[pyclass(name = "IndexStack", module = "memgraft._core", frozen)]
pub(crate) struct PyStack(Stack);

lookup_methods! {
    impl PyStack {
        #[new]
        fn new(layers: Vec<PyRef<'_, PyIndex>>) -> PyResult<Self> {
            Stack::new(layers.iter().map(|layer| Arc::clone(&layer.0)).collect()).map(Self).map_err(to_py)
        }

        fn locate(&self, row: u32) -> PyResult<(usize, u32)> {
            self.0.locate(RowId(row)).map(|(layer, row)| (layer, row.0)).map_err(to_py)
        }

        #[getter]
        fn first_rows(&self) -> Vec<u32> {
            self.0.first_rows().to_vec()
        }
    }
}

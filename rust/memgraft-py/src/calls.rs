//! A lookup's and a step's arrays, borrowed and checked for one index or a stack of them.

use memgraft_core::Result;
use memgraft_core::batch::{Bounds, Options, Tokens};
use memgraft_core::ids::StateId;
use pyo3::prelude::*;

use crate::arrays::{input, output, slice, slice_mut, threads as thread_count, with_tokens};
use crate::errors::to_py;
use crate::signals::{LONG, lending};

/// The arguments of a lookup.
pub(crate) struct Lookup<'a, 'py> {
    pub tokens: &'a Bound<'py, PyAny>,
    pub rows: &'a Bound<'py, PyAny>,
    pub orders: &'a Bound<'py, PyAny>,
    pub width: Option<usize>,
    pub segments: Option<&'a Bound<'py, PyAny>>,
    pub eos_id: Option<u32>,
    pub cu_seqlens: Option<&'a Bound<'py, PyAny>>,
    pub threads: Option<usize>,
    pub miss: bool,
}

impl Lookup<'_, '_> {
    /// Runs `lookup` without the interpreter.
    pub fn run(
        self,
        py: Python<'_>,
        vocab_size: u32,
        lookup: impl FnOnce(&Tokens<'_>, &Bounds<'_>, &mut [i32], &mut [u8], Options) -> Result<()> + Send,
    ) -> PyResult<()> {
        let segments = self.segments.map(|ids| input::<i64>(ids, "segments")).transpose()?;
        let ends = self.cu_seqlens.map(|ends| input::<u64>(ends, "cu_seqlens")).transpose()?;
        let bounds = Bounds {
            width: self.width,
            ids: segments.as_ref().map(slice).transpose()?,
            eos: self.eos_id,
            cu_seqlens: ends.as_ref().map(slice).transpose()?,
        };
        let mut rows = output::<i32>(self.rows, "rows")?;
        let mut orders = output::<u8>(self.orders, "orders")?;
        let rows = slice_mut(&mut rows)?;
        let orders = slice_mut(&mut orders)?;
        let options = Options { threads: thread_count(self.threads).map_err(to_py)?, ..Options::default() };
        with_tokens(self.tokens, vocab_size, &bounds, self.miss, |tokens| {
            let long = rows.len() >= LONG;
            lending(py, long, || lookup(&tokens, &bounds, rows, orders, options))
        })
    }
}

/// The arguments of a step of decoding.
pub(crate) struct Advance<'a, 'py> {
    pub states: &'a Bound<'py, PyAny>,
    pub tokens: &'a Bound<'py, PyAny>,
    pub rows: &'a Bound<'py, PyAny>,
    pub orders: &'a Bound<'py, PyAny>,
    pub miss: bool,
}

impl Advance<'_, '_> {
    /// Runs `advance` without the interpreter, and moves the states where it succeeds.
    pub fn run(
        self,
        py: Python<'_>,
        vocab_size: u32,
        advance: impl FnOnce(&mut [StateId], &Tokens<'_>, &mut [i32], &mut [u8]) -> Result<()> + Send,
    ) -> PyResult<()> {
        let mut states = output::<u32>(self.states, "states")?;
        let mut rows = output::<i32>(self.rows, "rows")?;
        let mut orders = output::<u8>(self.orders, "orders")?;
        let states = slice_mut(&mut states)?;
        let rows = slice_mut(&mut rows)?;
        let orders = slice_mut(&mut orders)?;
        let mut ids: Vec<StateId> = states.iter().map(|&state| StateId(state)).collect();
        with_tokens(self.tokens, vocab_size, &Bounds::default(), self.miss, |tokens| {
            lending(py, rows.len() >= LONG, || advance(&mut ids, &tokens, rows, orders))
        })?;
        for (state, id) in states.iter_mut().zip(&ids) {
            *state = id.0;
        }
        Ok(())
    }
}

/// Methods of a class over one index or a stack of them, in the field `0`: those that both have, and the class's own.
///
/// A class takes one block of methods, so that both come in one.
macro_rules! lookup_methods {
    (impl $class:ident { $($own:item)* }) => {
        #[pyo3::pymethods]
        impl $class {
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

            fn find(&self, tokens: Vec<u32>) -> PyResult<Option<u32>> {
                Ok(self.0.find(&tokens).map_err(to_py)?.map(|row| row.0))
            }

            fn __len__(&self) -> usize {
                self.0.num_keys()
            }

            #[getter]
            fn vocab_size(&self) -> u32 {
                self.0.vocab_size()
            }

            #[getter]
            fn keys_by_order(&self) -> [u64; 16] {
                self.0.keys_by_order().to_owned()
            }

            #[getter]
            fn fingerprint(&self) -> String {
                self.0.fingerprint().to_string()
            }

            $($own)*
        }
    };
}
pub(crate) use lookup_methods;

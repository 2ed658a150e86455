//! A lookup's and a step's arrays, borrowed and checked for one index or a stack of them.

use memgraft_core::Result;
use memgraft_core::batch::{Bounds, Options, Tokens};
use memgraft_core::ids::StateId;
use pyo3::prelude::*;

use crate::arrays::{input, output, slice, threads as thread_count, with_tokens};
use crate::errors::{ArgumentError, to_py};

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
        let rows = rows.as_slice_mut().map_err(|e| ArgumentError::new_err(e.to_string()))?;
        let orders = orders.as_slice_mut().map_err(|e| ArgumentError::new_err(e.to_string()))?;
        let options = Options { threads: thread_count(self.threads).map_err(to_py)?, ..Options::default() };
        with_tokens(self.tokens, vocab_size, &bounds, self.miss, |tokens| {
            py.detach(|| lookup(&tokens, &bounds, rows, orders, options)).map_err(to_py)
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
        let states = states.as_slice_mut().map_err(|e| ArgumentError::new_err(e.to_string()))?;
        let rows = rows.as_slice_mut().map_err(|e| ArgumentError::new_err(e.to_string()))?;
        let orders = orders.as_slice_mut().map_err(|e| ArgumentError::new_err(e.to_string()))?;
        let mut ids: Vec<StateId> = states.iter().map(|&state| StateId(state)).collect();
        with_tokens(self.tokens, vocab_size, &Bounds::default(), self.miss, |tokens| {
            py.detach(|| advance(&mut ids, &tokens, rows, orders)).map_err(to_py)
        })?;
        for (state, id) in states.iter_mut().zip(&ids) {
            *state = id.0;
        }
        Ok(())
    }
}

//! numpy arrays in and out, with errors that name the argument.

use memgraft_core::batch::{Bounds, Tokens, Unknown};
use memgraft_core::{Error, Result};
use numpy::{
    Element, PyArray1, PyArrayMethods, PyReadonlyArray1, PyReadwriteArray1, PyUntypedArray, PyUntypedArrayMethods,
};
use pyo3::prelude::*;

use crate::errors::{ArgumentError, to_py};

/// A 1-D C-contiguous array of `T`, borrowed for reading.
pub(crate) fn input<'py, T: Element>(value: &Bound<'py, PyAny>, name: &str) -> PyResult<PyReadonlyArray1<'py, T>> {
    let array = value.cast::<PyArray1<T>>().map_err(|_| wrong::<T>(value, name))?;
    let borrowed = array.try_readonly().map_err(|e| ArgumentError::new_err(format!("{name}: {e}")))?;
    if !array.is_c_contiguous() {
        return Err(ArgumentError::new_err(format!(
            "{name}: expected a C-contiguous array; numpy.ascontiguousarray makes one"
        )));
    }
    Ok(borrowed)
}

/// A 1-D C-contiguous writeable array of `T`, borrowed for writing.
pub(crate) fn output<'py, T: Element>(value: &Bound<'py, PyAny>, name: &str) -> PyResult<PyReadwriteArray1<'py, T>> {
    let array = value.cast::<PyArray1<T>>().map_err(|_| wrong::<T>(value, name))?;
    if !array.is_c_contiguous() {
        return Err(ArgumentError::new_err(format!(
            "{name}: expected a C-contiguous array that can be filled in place"
        )));
    }
    array.try_readwrite().map_err(|e| {
        ArgumentError::new_err(format!("{name}: expected a writeable array that nobody else is using: {e}"))
    })
}

fn wrong<T: Element>(value: &Bound<'_, PyAny>, name: &str) -> PyErr {
    let want = T::get_dtype(value.py());
    let found = match value.cast::<PyUntypedArray>() {
        Ok(array) => format!("{}-D {}", array.ndim(), array.dtype()),
        Err(_) => value.get_type().to_string(),
    };
    ArgumentError::new_err(format!("{name}: expected a 1-D array of {want}, got {found}"))
}

/// The slice of a borrowed input; contiguity was checked by [`input`].
pub(crate) fn slice<'a, T: Element>(array: &'a PyReadonlyArray1<'_, T>) -> PyResult<&'a [T]> {
    array.as_slice().map_err(|e| ArgumentError::new_err(e.to_string()))
}

/// The slice of a borrowed output; contiguity was checked by [`output`].
pub(crate) fn slice_mut<'a, T: Element>(array: &'a mut PyReadwriteArray1<'_, T>) -> PyResult<&'a mut [T]> {
    array.as_slice_mut().map_err(|e| ArgumentError::new_err(e.to_string()))
}

/// Runs `run` on token ids of any usual integer dtype, checked where they are; with `miss`, those outside match nothing.
pub(crate) fn with_tokens<R>(
    value: &Bound<'_, PyAny>,
    vocab_size: u32,
    bounds: &Bounds<'_>,
    miss: bool,
    run: impl FnOnce(Tokens<'_>) -> PyResult<R>,
) -> PyResult<R> {
    let unknown = if miss { Unknown::Miss } else { Unknown::Error };
    macro_rules! try_dtype {
        ($($kind:ty),*) => {$(
            if value.cast::<PyArray1<$kind>>().is_ok() {
                let array = input::<$kind>(value, "tokens")?;
                return run(Tokens::check(slice(&array)?, vocab_size, bounds, unknown).map_err(to_py)?);
            }
        )*};
    }
    try_dtype!(i64, i32, u32, u16, u8, i16, u64);
    Err(ArgumentError::new_err(format!(
        "tokens: expected an array of uint16, int32, uint32 or int64 ids, got {}",
        match value.cast::<PyUntypedArray>() {
            Ok(array) => format!("{}-D {}", array.ndim(), array.dtype()),
            Err(_) => value.get_type().to_string(),
        }
    )))
}

/// The thread count to use: at least 1.
pub(crate) fn threads(asked: Option<usize>) -> Result<usize> {
    match asked {
        Some(0) => Err(Error::argument("threads: expected at least 1, got 0; None takes what the machine offers")),
        Some(n) => Ok(n),
        None => Ok(memgraft_core::threads::default_threads()),
    }
}

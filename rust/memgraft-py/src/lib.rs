//! Python bindings of `memgraft-core`: numpy in, caller-owned numpy out, the
//! interpreter released around the work. No logic lives here.

mod arrays;
mod calls;
mod corpus;
mod errors;
mod index;
mod keyset;
mod mining;
mod signals;
mod stack;
mod values;

use pyo3::prelude::*;

/// The compiled half of memgraft; import it through the façades.
#[pymodule(gil_used = false)]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("MAX_ORDER", memgraft_core::ids::MAX_ORDER)?;
    module.add("MAX_VOCAB_SIZE", memgraft_core::ids::MAX_VOCAB_SIZE)?;
    module.add_class::<keyset::PyKeySet>()?;
    module.add_class::<index::PyIndex>()?;
    module.add_class::<stack::PyStack>()?;
    module.add_function(wrap_pyfunction!(fingerprint_file, module)?)?;
    module.add_function(wrap_pyfunction!(limit_threads, module)?)?;
    values::register(module)?;
    corpus::register(module)?;
    mining::register(module)
}

/// Bounds the threads of calls that name no number.
#[pyfunction]
fn limit_threads(most: Option<usize>) {
    memgraft_core::threads::limit_threads(most);
}

/// The BLAKE3 of a file as 64 hex digits, hashed on several threads without the interpreter.
#[pyfunction]
#[pyo3(signature = (path, threads=None))]
fn fingerprint_file(py: Python<'_>, path: std::path::PathBuf, threads: Option<usize>) -> PyResult<String> {
    let threads = arrays::threads(threads).map_err(errors::to_py)?;
    let found = signals::interruptible(py, move || memgraft_core::fingerprint::fingerprint_file(path, threads));
    found.map(|fingerprint| fingerprint.to_string())
}

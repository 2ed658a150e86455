//! Python bindings of `memgraft-core`: numpy in, caller-owned numpy out, the
//! interpreter released around the work. No logic lives here.

mod errors;

use pyo3::prelude::*;

/// The compiled half of memgraft; import it through the façades.
#[pymodule(gil_used = false)]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    Ok(())
}

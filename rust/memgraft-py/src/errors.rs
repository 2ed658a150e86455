//! The one map from core errors to the exceptions of `memgraft.errors`.

use memgraft_core::Error;
use pyo3::PyErr;
use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::import_exception;

import_exception!(memgraft.errors, TokenError);
import_exception!(memgraft.errors, KeySetError);
import_exception!(memgraft.errors, CorpusError);
import_exception!(memgraft.errors, FormatError);
import_exception!(memgraft.errors, FingerprintError);
import_exception!(memgraft.errors, ArgumentError);
import_exception!(memgraft.errors, LimitError);
import_exception!(memgraft.errors, StorageError);

/// Turns a core error into its Python exception.
pub(crate) fn to_py(error: Error) -> PyErr {
    let message = error.to_string();
    match error {
        Error::Token { .. } => TokenError::new_err(message),
        Error::KeySet { .. } => KeySetError::new_err(message),
        Error::Corpus { .. } => CorpusError::new_err(message),
        Error::Format { .. } => FormatError::new_err(message),
        Error::Fingerprint { .. } => FingerprintError::new_err(message),
        Error::Argument { .. } => ArgumentError::new_err(message),
        Error::Limit { .. } => LimitError::new_err(message),
        Error::Io { .. } => StorageError::new_err(message),
        Error::Interrupted => PyKeyboardInterrupt::new_err(message),
    }
}

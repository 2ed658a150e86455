//! The one error type of the crate. Every message names the file or argument,
//! what was expected, what was found, and the way out.

use std::path::{Path, PathBuf};

/// A result of the core.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong in the core.
///
/// One variant per exception of `memgraft.errors`; the binding maps them with
/// one `match` that has no wildcard arm.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A token lies outside the vocabulary.
    #[error("{message}")]
    Token {
        /// Full text: position, token, vocabulary size, way out.
        message: String,
    },
    /// A key set cannot be built: duplicate, empty, too long or reserved keys.
    #[error("{message}")]
    KeySet {
        /// Full text.
        message: String,
    },
    /// A token corpus is not what its format says.
    #[error("{}: {message}", path.display())]
    Corpus {
        /// The file at fault.
        path: PathBuf,
        /// Expected, found, way out.
        message: String,
    },
    /// A file of ours is damaged, truncated, or of another version.
    #[error("{}: {message}", path.display())]
    Format {
        /// The file at fault.
        path: PathBuf,
        /// Expected, found, way out.
        message: String,
    },
    /// Two artifacts do not belong together.
    #[error("{message}")]
    Fingerprint {
        /// Expected, found, way out.
        message: String,
    },
    /// An argument has the wrong shape, dtype, length or range.
    #[error("{message}")]
    Argument {
        /// Expected, found, way out.
        message: String,
    },
    /// A limit of the format is exceeded (ids cap at u32).
    #[error("{message}")]
    Limit {
        /// Expected, found, way out.
        message: String,
    },
    /// The operating system refused a read or write.
    #[error("{}: {action}: {source}", path.display())]
    Io {
        /// The file at fault.
        path: PathBuf,
        /// What was being done, and the way out where there is one.
        action: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The caller asked to stop (Ctrl-C); nothing finished is lost.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// An [`Error::Io`] at `path` while doing `action`.
    pub fn io(path: impl AsRef<Path>, action: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_path_buf(), action: action.into(), source }
    }

    /// An [`Error::Format`] at `path`.
    pub fn format(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::Format { path: path.as_ref().to_path_buf(), message: message.into() }
    }

    /// An [`Error::Corpus`] at `path`.
    pub fn corpus(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::Corpus { path: path.as_ref().to_path_buf(), message: message.into() }
    }

    /// An [`Error::Argument`].
    pub fn argument(message: impl Into<String>) -> Self {
        Self::Argument { message: message.into() }
    }

    /// An [`Error::KeySet`].
    pub fn keyset(message: impl Into<String>) -> Self {
        Self::KeySet { message: message.into() }
    }
}

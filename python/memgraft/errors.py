"""Typed errors. Every message names the file or argument, what was expected, what was found, and the way out."""


class MemgraftError(Exception):
    """Base of every error that memgraft raises on purpose."""


class TokenError(MemgraftError, ValueError):
    """A token lies outside the vocabulary."""


class KeySetError(MemgraftError, ValueError):
    """A key set cannot be built: duplicate, empty, too long or reserved keys."""


class CorpusError(MemgraftError, ValueError):
    """A token corpus or text file is not what its format says."""


class FormatError(MemgraftError, ValueError):
    """A memgraft file is damaged, truncated, or of another version."""


class FingerprintError(MemgraftError, ValueError):
    """Two artifacts do not belong together."""


class ArgumentError(MemgraftError, ValueError):
    """An argument has the wrong shape, dtype, length or range."""


class RowError(ArgumentError, IndexError):
    """No such row or position; what ends an iteration by index."""


class LimitError(MemgraftError, ValueError):
    """A limit of the format is exceeded."""


class ConfigError(MemgraftError, ValueError):
    """A configuration contradicts itself or the model it is for."""


class DonorError(MemgraftError, ValueError):
    """A donor cannot give what was asked: no such tap, no such model."""


class GraftError(MemgraftError, RuntimeError):
    """A graft cannot be attached, loaded or run exactly as asked."""


class DownloadError(MemgraftError, RuntimeError):
    """A file could not be fetched, or is not the one that was pinned."""


class StorageError(MemgraftError, OSError):
    """The operating system refused a read or write."""

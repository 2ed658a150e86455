"""A tokenizer as a file: where ``tokenizer.json`` lies, and how it is loaded."""

import os
from pathlib import Path
from typing import Any

from memgraft.errors import ArgumentError, ConfigError, FormatError

TOKENIZER_NAME = "tokenizer.json"


def tokenizer_path(path: str | os.PathLike[str]) -> Path:
    """The ``tokenizer.json`` that ``path`` names: itself, or the one in a folder."""
    return Path(path) / TOKENIZER_NAME if Path(path).is_dir() else Path(path)


def load_tokenizer_file(path: str | os.PathLike[str]) -> Any:
    """Loads a ``tokenizer.json``, or a folder's, with the ``tokenizers`` library, as it is.

    Raises:
        ConfigError: the library is missing.
        ArgumentError: no such file.
        FormatError: the file is not a tokenizer.
    """
    path = tokenizer_path(path)
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise ConfigError(
            "reading a tokenizer.json needs the tokenizers library: pip install 'memgraft[cli]'"
        ) from None
    if not path.is_file():
        raise ArgumentError(
            f"tokenizer {path}: expected a tokenizer.json, found no such file; name one, or the folder that holds it"
        )
    try:
        return Tokenizer.from_file(os.fspath(path))
    except Exception as error:  # the library raises bare Exception
        raise FormatError(
            f"tokenizer {path}: expected a tokenizer.json of the tokenizers library, found: {error}"
        ) from error

"""Paths where opened objects are expected: one error that says how to open them."""

import os
from pathlib import Path

from memgraft.errors import ArgumentError, StorageError

_OPENERS = {
    "bank": "memgraft.Bank.open",
    "corpus": "memgraft.Corpus.open",
    "exclude": "memgraft.Corpus.open",
    "held_out": "memgraft.Corpus.open",
    "index": "memgraft.NgramIndex.open, or memgraft.Bank.open",
    "keys": "memgraft.KeySet.open",
    "mined": "memgraft.Corpus.open",
}
"""What opens an argument of this name."""


def refuse_paths(**arguments: object) -> None:
    """Refuses the path of what is to be given opened.

    Raises:
        ArgumentError: an argument is a path or a text.
    """
    for name, value in arguments.items():
        if isinstance(value, (str, bytes, os.PathLike)):
            raise ArgumentError(f"{name}: expected it opened, got the path {value!r}; open it with {_OPENERS[name]}")


def refuse_folder(path: str | os.PathLike[str], what: str) -> None:
    """Refuses a folder where a file is to be read, with the way to what a bank's folder holds.

    Raises:
        StorageError: it is one.
    """
    if Path(path).is_dir():
        hint = "; Bank.open reads a bank, which has .keys and .index" if (Path(path) / "bank.json").is_file() else ""
        raise StorageError(f"{os.fspath(path)}: expected the file of {what}, found a folder{hint}")

"""Paths where opened objects are expected: one error that says how to open them."""

import os

from memgraft.errors import ArgumentError

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

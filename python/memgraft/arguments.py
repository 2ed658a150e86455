"""Paths where opened objects are expected, texts where lists or ids are: one error that says the way out."""

import operator
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
    "neutral": "memgraft.Corpus.open",
}
"""What opens an argument of this name."""

_MARKS = {"memgraft.Bank.open": "stage", "memgraft.Corpus.open": "document_starts", "memgraft.KeySet.open": "arrays"}
"""What only that has which this opens, so that swapped arguments are told apart; an index or a bank has ``lookup``."""

_MAKERS = {
    "memgraft.Corpus.open": "memgraft.CorpusWriter writes documents of ids, memgraft.tokenize_folder text, "
    "save_to_disk of a datasets.Dataset a column of ids",
    "memgraft.KeySet.open": "memgraft.KeySet.from_keys takes keys that are ids",
}
"""What makes that which this opens of what is in memory."""


def refuse_paths(**arguments: object) -> None:
    """Refuses the path of what is to be given opened, what was never opened, and what is of another kind.

    None is an argument left out.

    Raises:
        ArgumentError: an argument is a path or a text, or nothing that its opener gives.
    """
    for name, value in arguments.items():
        opener = _OPENERS[name]
        if isinstance(value, (str, bytes, os.PathLike)):
            raise ArgumentError(f"{name}: expected it opened, got the path {value!r}; open it with {opener}")
        if value is not None and not hasattr(type(value), _MARKS.get(opener, "lookup")):
            raise ArgumentError(
                f"{name}: expected it opened, got a {type(value).__name__}; open a file with {opener}{_maker(opener)}"
            )


def refuse_constructor(given: object, compiled: type | tuple[type, ...], opener: str) -> None:
    """Refuses what a class was called with where it wraps what is compiled: its class methods open and make it.

    Raises:
        ArgumentError: ``given`` is not ``compiled``.
    """
    if not isinstance(given, compiled):
        raise ArgumentError(f"{opener} opens a file{_maker(opener)}; the class itself was called with {given!r:.80}")


def _maker(opener: str) -> str:
    """In brackets what makes a file for ``opener``, if anything does."""
    return f" ({_MAKERS[opener]})" if opener in _MAKERS else ""


def refuse_text(**arguments: object) -> None:
    """Refuses one text where several are expected, which would be read letter by letter.

    Raises:
        ArgumentError: an argument is a text or a path.
    """
    for name, value in arguments.items():
        if isinstance(value, (str, bytes, os.PathLike)):
            raise ArgumentError(f"{name}: expected a list, got {value!r}; for one give [{value!r}]")


def token_id(name: str, value: object) -> int:
    """``value`` as an int; a token's text, which would equal no token, is refused.

    Raises:
        ArgumentError: it is no whole number.
    """
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ArgumentError(
            f"{name}: expected a token id, got {value!r:.80}; a tokenizer has it as eos_token_id, or by "
            "convert_tokens_to_ids"
        ) from None


def refuse_folder(path: str | os.PathLike[str], what: str) -> None:
    """Refuses a folder where a file is to be read, with the paths of a bank's own and what opens all of it.

    Raises:
        StorageError: it is one.
    """
    if Path(path).is_dir():
        hint = ""
        if (Path(path) / "bank.json").is_file():
            hint = " of a bank: give keys.mgk or index.mgi inside it, or Bank.open it, which has .keys and .index"
        raise StorageError(f"{os.fspath(path)}: expected the file of {what}, found a folder{hint}")

"""Rows found once and kept beside the tokens, so that later epochs skip the lookup.

Of a token corpus: a directory with ``rows.npy`` (int32, -1 = miss), ``orders.npy`` (uint8) and ``annotation.json``.
Of a ``datasets`` dataset: the columns ``memgraft_rows`` and ``memgraft_orders``, which `GraftCollator` uses.
"""

import json
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from memgraft.arguments import refuse_paths
from memgraft.bank.bank import Bank
from memgraft.bank.files import reserve, write_text
from memgraft.boundaries import MARKS, read_rows, refuse_unread
from memgraft.corpus.blocks import Documents, windows_with_lead
from memgraft.errors import ArgumentError, FingerprintError, FormatError, StorageError
from memgraft.progress import Progress, callback
from memgraft.system import sync_folder
from memgraft.tokenizer import facts_of_keys, refuse_other_tokens

ROWS_COLUMN = "memgraft_rows"
ORDERS_COLUMN = "memgraft_orders"
_FORMAT_VERSION = "1.0"
_FACTS_NAME, _STATE_NAME = "annotation.json", "state.json"
_NAMES: Mapping[str, np.dtype[Any]] = {"rows.npy": np.dtype("<i4"), "orders.npy": np.dtype("u1")}

Rows = npt.NDArray[np.int32]
Orders = npt.NDArray[np.uint8]


class TokenCorpus(Documents, Protocol):
    """What is asked of a corpus; `memgraft.Corpus` has it."""

    @property
    def fingerprint(self) -> str:
        """Hash of the tokens and document starts."""


def annotate(
    bank: Bank,
    corpus: TokenCorpus,
    out: str | os.PathLike[str],
    *,
    threads: int | None = None,
    progress: Progress | bool | None = None,
    block_tokens: int = 1 << 24,
) -> "Annotation":
    """Looks up every position of ``corpus``, inside its documents, and writes rows and orders to ``out``.

    A run that was killed is taken up where it last synced.

    Args:
        bank: the bank.
        corpus: the tokens.
        out: the directory to be; must not exist.
        threads: lookup threads.
        progress: True for bars, or called with ("look up", tokens done, tokens in all).
        block_tokens: tokens looked up between two syncs.

    Raises:
        ArgumentError: ``out`` exists.
        FingerprintError: ``<out>.partial`` is of another bank or corpus, or the tokens are of another tokenizer.
        TokenError: a token outside the bank's vocabulary.
        StorageError: the disk refused.
    """
    refuse_paths(bank=bank, corpus=corpus)
    progress = callback(progress)
    final = Path(out).absolute()
    if final.exists():
        raise ArgumentError(f"{final}: exists; open it with Annotation.open, remove it, or name another path")
    refuse_other_tokens(facts_of_keys(bank.keys.metadata, bank.manifest.tokenizer), corpus)
    folder = final.with_name(final.name + ".partial")
    facts = {
        "format_version": _FORMAT_VERSION,
        "bank": bank.fingerprint,
        "corpus": corpus.fingerprint,
        "num_tokens": corpus.num_tokens,
        "max_order": bank.index.max_order,
    }
    arrays, done = _open_partial(folder, facts)
    num_hits = done["num_hits"]
    lead = bank.index.max_order - 1
    for window in windows_with_lead(corpus, lead, block_tokens, begin=done["num_tokens"]):
        start, stop, tokens = window.start, window.stop, corpus.tokens(window.first, window.stop)
        rows, orders = bank.lookup(tokens, cu_seqlens=window.edges, threads=threads)
        rows, orders = rows[window.lead :], orders[window.lead :]
        arrays["rows.npy"][start:stop] = rows
        arrays["orders.npy"][start:stop] = orders
        num_hits += int((rows >= 0).sum())
        for array in arrays.values():
            array.flush()
        write_text(folder / _STATE_NAME, json.dumps({**facts, "done": {"num_tokens": stop, "num_hits": num_hits}}))
        if progress is not None:
            progress("look up", stop, corpus.num_tokens)
    del arrays
    write_text(folder / _FACTS_NAME, json.dumps({**facts, "num_hits": num_hits}, indent=2) + "\n")
    (folder / _STATE_NAME).unlink(missing_ok=True)
    try:
        os.rename(folder, final)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be renamed to {final}: {error.strerror}") from error
    sync_folder(final.parent)
    return Annotation.open(final, bank, corpus)


def _open_partial(folder: Path, facts: Mapping[str, Any]) -> tuple[dict[str, np.memmap[Any, Any]], dict[str, int]]:
    """The arrays of an unfinished annotation, new or resumed, and how far it got."""
    state = folder / _STATE_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if state.exists():
            found = json.loads(state.read_text())
            differing = [name for name in facts if found.get(name) != facts[name]]
            if differing:
                raise FingerprintError(
                    f"{folder}: holds an unfinished annotation with another {', '.join(differing)}; remove it, or "
                    "name another path"
                )
            return {name: np.load(folder / name, mmap_mode="r+") for name in _NAMES}, found["done"]
        shape = (facts["num_tokens"],)
        arrays: dict[str, np.memmap[Any, Any]] = {
            name: np.lib.format.open_memmap(folder / name, mode="w+", dtype=dtype, shape=shape)
            for name, dtype in _NAMES.items()
        }
        # A mapped write that finds the disk full kills the process; so the room is taken first.
        for name in _NAMES:
            with open(folder / name, "rb+") as file:
                reserve(file.fileno(), folder / name, os.fstat(file.fileno()).st_size)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror or error}; choose another path") from error
    return arrays, {"num_tokens": 0, "num_hits": 0}


class Annotation:
    """Rows and orders of a corpus; see `annotate`. Mapped, so that opening costs nothing."""

    def __init__(self, path: Path, facts: Mapping[str, Any], bank: Bank, corpus: TokenCorpus) -> None:
        self.path = path
        self.facts = facts
        self.bank = bank
        self.corpus = corpus
        self.rows: Rows = np.load(path / "rows.npy", mmap_mode="r")
        self.orders: Orders = np.load(path / "orders.npy", mmap_mode="r")

    @classmethod
    def open(cls, path: str | os.PathLike[str], bank: Bank, corpus: TokenCorpus) -> "Annotation":
        """Opens an annotation of ``corpus`` with the rows of ``bank``.

        Raises:
            StorageError: a file is missing.
            FormatError: a file is damaged or of another version.
            FingerprintError: it was made with another bank or corpus.
        """
        folder = Path(path).absolute()
        try:
            facts = json.loads((folder / _FACTS_NAME).read_text())
        except FileNotFoundError:
            raise StorageError(
                f"{folder / _FACTS_NAME}: not found: expected an annotation; run memgraft annotate"
            ) from None
        except json.JSONDecodeError as error:
            raise FormatError(f"{folder / _FACTS_NAME}: not JSON: {error}; annotate again") from None
        if facts.get("format_version") != _FORMAT_VERSION:
            found = facts.get("format_version")
            raise FormatError(f"{folder}: expected format version {_FORMAT_VERSION}, found {found}; annotate again")
        for name, expected in (("bank", bank.fingerprint), ("corpus", corpus.fingerprint)):
            if facts[name] != expected:
                raise FingerprintError(f"{folder}: expected {name} {expected}, found {facts[name]}; annotate again")
        for name, dtype in _NAMES.items():
            try:
                array = np.load(folder / name, mmap_mode="r")
            except FileNotFoundError:
                raise StorageError(f"{folder / name}: not found; annotate again") from None
            except ValueError as error:
                raise FormatError(f"{folder / name}: damaged: {error}; annotate again") from None
            if array.dtype != dtype or array.shape != (facts["num_tokens"],):
                raise FormatError(
                    f"{folder / name}: expected {dtype} ({facts['num_tokens']},), found {array.dtype} {array.shape}"
                )
        return cls(folder, facts, bank, corpus)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles by path, as its bank and corpus do, never the rows; what was checked at `open` is not read again."""
        return Annotation, (self.path, dict(self.facts), self.bank, self.corpus)

    def __repr__(self) -> str:
        """The folder, and how many positions have a row."""
        return f"Annotation({self.path}, {self.facts['num_hits']:,} hits in {self.facts['num_tokens']:,} tokens)"

    def example(self, start: int, stop: int) -> dict[str, npt.NDArray[Any]]:
        """The window ``start .. stop`` of the corpus as an example for `GraftCollator`, exact for the window alone.

        Returns:
            ``input_ids``, ``memgraft_rows``, ``memgraft_orders``, and ``segments``: the document of each token
            (``GraftCollator(column="segments")``).

        Raises:
            ArgumentError: the window leaves the corpus.
        """
        if not 0 <= start <= stop <= self.corpus.num_tokens:
            raise ArgumentError(f"window {start}..{stop}: expected within 0..{self.corpus.num_tokens}")
        rows, orders = np.array(self.rows[start:stop]), np.array(self.orders[start:stop])
        tokens, segments = self.corpus.tokens(start, stop), _segments(self.corpus, start, stop)
        # Keys that reach back over the window's head lie in no other place than its first max_order - 1 positions.
        head = min(self.bank.index.max_order - 1, stop - start)
        if (orders[:head] > np.arange(1, head + 1)).any():
            rows[:head], orders[:head] = self.bank.lookup(tokens[:head], segments=segments[:head], threads=1)
        return {"input_ids": tokens.astype(np.int64), ROWS_COLUMN: rows, ORDERS_COLUMN: orders, "segments": segments}


_annotated: "weakref.WeakSet[Bank]" = weakref.WeakSet()
"""Open banks that datasets were annotated with."""


def has_annotated(bank: object) -> bool:
    """Whether `annotate_dataset` was called with this object, in this process or the one that it was forked from."""
    return bank in _annotated


def annotate_dataset(
    dataset: Any,
    bank: Bank,
    *,
    column: str = "input_ids",
    eos_id: int | None = None,
    num_proc: int | None = None,
) -> Any:
    """``dataset`` (of the ``datasets`` library) with the columns ``memgraft_rows`` and ``memgraft_orders``.

    The Trainer drops columns that the model's forward does not name: train on it with ``remove_unused_columns=False``.
    `GraftCollator` warns where the columns have gone.

    Each example is a segment of its own; the columns that `memgraft.boundaries` lists split packed ones and say what is
    padding, and so does ``eos_id``. Of a dataset with several splits each is annotated; a stream is annotated as it is
    read, and names a missing column then.

    Raises:
        ArgumentError: no dataset, no such column, or one that looks as if it spoke about boundaries and is not in the
            list; a stream and ``num_proc``.
        TokenError: a token outside the bank's vocabulary.
    """
    if not hasattr(dataset, "column_names"):
        raise ArgumentError(
            f"dataset: expected one of the datasets library, got a {type(dataset).__name__}; annotate_dataset takes "
            "the dataset, then the bank"
        )
    refuse_paths(bank=bank)
    _annotated.add(bank)
    names = dataset.column_names
    for listed in names.values() if isinstance(names, Mapping) else (names,):
        if listed is not None and column not in listed:
            raise ArgumentError(f"column {column!r}: expected one of {', '.join(listed)}")
    streams = type(dataset).__name__.startswith("Iterable")
    if streams and num_proc is not None:
        raise ArgumentError(f"num_proc: expected none for a stream, which its reader's processes share, got {num_proc}")
    options: dict[str, Any] = {} if streams else {"num_proc": num_proc, "desc": "annotate"}
    given = {"bank": bank, "column": column, "eos_id": eos_id}
    return dataset.map(_annotate_examples, batched=True, fn_kwargs=given, **options)


def _annotate_examples(
    examples: Mapping[str, list[Any]], bank: Bank, column: str, eos_id: int | None
) -> dict[str, list[Any]]:
    if column not in examples:
        raise ArgumentError(f"column {column!r}: expected one of {', '.join(examples)}")
    lengths = np.array([len(ids) for ids in examples[column]], np.int64)
    tokens = np.fromiter((token for ids in examples[column] for token in ids), np.int64, int(lengths.sum()))
    marks = {}
    for name, values in examples.items():
        # One number or word for an example says nothing about the inside of it.
        if name != column and values and all(isinstance(value, (list, np.ndarray)) for value in values):
            refuse_unread([name], "dataset")
            if name in MARKS:
                sizes = np.array([len(value) for value in values], np.int64)
                marks[name] = np.fromiter((n for value in values for n in value), np.int64, int(sizes.sum())), sizes
    starts, kept = read_rows(lengths, marks)
    if eos_id is not None:
        starts[1:] |= tokens[:-1] == eos_id
    segments = np.where(kept, np.cumsum(starts) - 1, -1)
    rows, orders = bank.lookup(tokens, segments=segments, threads=1)
    edges = np.cumsum(lengths)
    return {
        ROWS_COLUMN: np.split(rows, edges[:-1]),
        ORDERS_COLUMN: np.split(orders, edges[:-1]),
    }


def _segments(corpus: TokenCorpus, start: int, stop: int) -> npt.NDArray[np.int64]:
    """The number of the document of each token."""
    positions = np.arange(start, stop, dtype=np.uint64)
    return np.searchsorted(corpus.document_starts, positions, side="right") - 1

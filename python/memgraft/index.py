"""The index: for every position, the longest key that ends there."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memgraft import _core
from memgraft.arguments import refuse_constructor, refuse_folder, refuse_paths, token_id
from memgraft.errors import ArgumentError, FingerprintError
from memgraft.keyed import Closed, Keyed, as_key
from memgraft.keyset import KeySet

__all__ = ["NgramIndex"]

_TOKEN_DTYPES = ("uint16", "int32", "uint32", "int64", "uint8", "int16", "uint64")


class NgramIndex(Keyed):
    """Exact longest match over a key set; immutable, safe to share between threads.

    A mapped index costs N processes its memory once, and pickles as its path and fingerprint. Files are replaced by
    rename, so an open index keeps answering from the old file; a file that something else truncates in place ends the
    process with SIGBUS, as with every mapping (``load="ram"`` avoids that).
    """

    __slots__ = ("_core", "_load")

    def __init__(self, core: _core.Index, load: Literal["map", "ram"] = "map") -> None:
        """Wraps the compiled index; use :meth:`build` or :meth:`open`."""
        refuse_constructor(core, (_core.Index, _core.IndexStack), "memgraft.NgramIndex.open")
        self._core: _core.Index = core
        self._load: Literal["map", "ram"] = load

    @classmethod
    def build(cls, keys: KeySet) -> NgramIndex:
        """Builds the index of ``keys`` in memory; the same set gives the same bytes.

        Raises:
            LimitError: the set is beyond the format.
        """
        refuse_paths(keys=keys)
        return cls(_core.Index.build(keys._core))

    @classmethod
    def open(cls, path: str | os.PathLike[str], load: Literal["map", "ram"] = "map") -> NgramIndex:
        """Opens an ``index.mgi``.

        Args:
            path: the file.
            load: for the fast form ``"map"`` shares pages with other processes and reads the header alone; ``"ram"``
                copies the file into private huge pages. An archive is expanded in memory either way.

        Raises:
            StorageError: the file cannot be read.
            FormatError: it is damaged, truncated, or no index.
        """
        refuse_folder(path, "an index")
        return cls(_core.Index.open(Path(path), load), load)

    @classmethod
    def expand(cls, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> NgramIndex:
        """Writes the fast form of an archive to ``target`` and opens it.

        Raises:
            StorageError: a file cannot be read or written.
            FormatError: ``source`` is damaged, truncated, or no index.
        """
        cls.open(source).save(target)
        return cls.open(target)

    def save(self, path: str | os.PathLike[str], form: Literal["fast", "archive"] = "fast") -> None:
        """Writes beside ``path``, fsyncs and renames.

        Args:
            path: the file.
            form: ``"fast"`` opens in no time; ``"archive"`` holds the compressed keys alone, about a fifth of the
                bytes, and costs a build at every open (:meth:`expand` pays it once).

        Raises:
            StorageError: the system refused; an old file at ``path`` stays.
        """
        self._core.save(Path(path), form)

    def key_set(self) -> KeySet:
        """The key set the index was built from, without metadata.

        Raises:
            FormatError: the file turned out to be damaged.
        """
        return KeySet(self._core.key_set())

    def verify(self, *, threads: int | None = None) -> None:
        """Checks every byte of the file the index was opened from.

        Args:
            threads: at most so many; default: what the machine offers.

        Raises:
            FormatError: names what is damaged.
        """
        self._core.verify(threads)

    def lookup(
        self,
        tokens: ArrayLike,
        *,
        segments: ArrayLike | None = None,
        eos_id: int | None = None,
        cu_seqlens: ArrayLike | None = None,
        out: tuple[NDArray[np.int32], NDArray[np.uint8]] | None = None,
        threads: int | None = None,
        unknown: Literal["error", "miss"] = "error",
    ) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """The longest key that ends at each position and lies inside one segment.

        Args:
            tokens: (T,) or (B, T) ids, uint16, int32, uint32 or int64, read where they are and not to be changed during
                the call. Each row of a 2-D batch is a segment of its own.
            segments: integers of the same shape; look-back stops where the id changes. Positions of a negative id are
                padding: they miss, nothing matches across them, and their tokens may be anything.
            eos_id: this token ends its segment; the next position starts a new one.
            cu_seqlens: ascending offsets from 0 to T (of the flattened batch) at which segments start.
            out: (rows int32, orders uint8) of the same shape, C-contiguous and writeable, filled in place; nobody else
                may use them during the call, which releases the GIL.
            threads: at most so many; by default what the machine offers, one in a worker process.
            unknown: what a token outside the vocabulary does: an error, or nothing matches it or across it.

        Returns:
            rows int32 (-1 at a miss) and orders uint8 (0 at a miss), shaped like ``tokens``.

        Raises:
            TokenError: a token outside the vocabulary that is not padding, with its position.
            ArgumentError: a wrong shape or dtype, ``out`` that cannot be filled.
            FormatError: the file turned out to be damaged.
        """
        ids = _ids(tokens)
        if ids.ndim not in (1, 2):
            raise ArgumentError(f"tokens: expected shape (T,) or (B, T), got {ids.shape}")
        rows, orders = _outputs(out, ids.shape)
        if ids.size == 0:
            return rows, orders
        # Tokens are read while answers are written.
        if out is not None and (np.may_share_memory(ids, rows) or np.may_share_memory(ids, orders)):
            raise ArgumentError("out: its memory is that of the tokens, read meanwhile; give it memory of its own")
        self._core.lookup(
            ids.reshape(-1),
            rows.reshape(-1),
            orders.reshape(-1),
            width=ids.shape[1] if ids.ndim == 2 else None,
            segments=None if segments is None else _segment_ids(segments, ids.shape),
            eos_id=None if eos_id is None else self._token(eos_id, "eos_id"),
            cu_seqlens=None if cu_seqlens is None else _offsets(cu_seqlens),
            threads=_threads(threads),
            miss=_miss(unknown),
        )
        return rows, orders

    def start(self, batch: int) -> NDArray[np.uint32]:
        """States of ``batch`` sequences before their first token.

        A state is one uint32 a sequence and means something to this index alone. Beams reorder with
        ``states[indices]``; to roll back, keep a copy from before.
        """
        if batch < 0:
            raise ArgumentError(f"batch: expected at least 0, got {batch}")
        return np.zeros(self._state_shape(batch), dtype=np.uint32)

    def advance(
        self,
        states: NDArray[np.uint32],
        tokens: ArrayLike,
        *,
        out: tuple[NDArray[np.int32], NDArray[np.uint8]] | None = None,
        unknown: Literal["error", "miss"] = "error",
    ) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """Reads one token for each sequence; ``states`` move on in place. Equals ``lookup`` on the whole prefix.

        Args:
            states: (B,) uint32 from :meth:`start`, contiguous and writeable. Set one to 0 to start a new segment.
            tokens: (B,) ids.
            out: (rows int32 (B,), orders uint8 (B,)) to fill.
            unknown: as in :meth:`lookup`.

        Raises:
            TokenError: a token outside the vocabulary; the states are as before.
            ArgumentError: a wrong shape or dtype, or a state that is not of this index.
        """
        ids = _ids(tokens)
        ndim = len(self._state_shape(0))
        if not isinstance(states, np.ndarray) or states.dtype != np.uint32 or states.ndim != ndim:
            found = f"{states.ndim}-D {states.dtype}" if isinstance(states, np.ndarray) else type(states).__name__
            raise ArgumentError(f"states: expected a {ndim}-D uint32 array from start(), got {found}")
        if ids.shape != states.shape[:1]:
            raise ArgumentError(f"tokens: expected shape {states.shape[:1]}, one a state, got {ids.shape}")
        if states.shape != self._state_shape(len(ids)) or not states.flags.c_contiguous:
            raise ArgumentError(
                f"states: expected a C-contiguous array of shape {self._state_shape(len(ids))} from start(), got "
                f"{states.shape}, strides {states.strides}"
            )
        rows, orders = _outputs(out, ids.shape)
        self._core.advance(states.reshape(-1), ids, rows, orders, miss=_miss(unknown))
        return rows, orders

    def find(self, tokens: Sequence[int]) -> int | None:
        """The row of exactly this key, or None.

        Raises:
            ArgumentError: tokens that are no whole numbers.
        """
        ids = as_key(tokens)
        if ids is None:
            raise ArgumentError(f"tokens: expected the ids of a key, got {tokens!r:.80}")
        if any(not 0 <= token < self.vocab_size for token in ids):
            return None
        return self._core.find(list(ids))

    def __contains__(self, tokens: object) -> bool:
        """Whether exactly these tokens are a key."""
        key = as_key(tokens)
        return key is not None and self.find(key) is not None

    def close(self) -> None:
        """Lets go of the file; every later use is refused."""
        self._core = Closed(f"index {self.path or ''}".strip())  # type: ignore[assignment]

    def __len__(self) -> int:
        """Number of keys."""
        return len(self._core)

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        """Keys in row order."""
        return (self._core.key(row) for row in range(len(self)))

    def __repr__(self) -> str:
        """Sizes and the head of the fingerprint."""
        try:
            return f"NgramIndex({len(self)} keys, orders {self.orders}, {self.fingerprint[:12]}…)"
        except ArgumentError as closed:
            return f"NgramIndex({closed})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles by path and fingerprint, never the bytes."""
        if self.path is None:
            raise ArgumentError("an index pickles by its path: save() it and open() the file first")
        return _reopen, (str(self.path), self.fingerprint, self._load)

    @property
    def vocab_size(self) -> int:
        """Tokens are smaller than this."""
        return self._core.vocab_size

    @property
    def num_keys(self) -> int:
        """Number of keys."""
        return len(self._core)

    @property
    def num_keys_by_order(self) -> dict[int, int]:
        """Number of keys of each order that is present."""
        return {order: n for order, n in enumerate(self._core.keys_by_order, start=1) if n}

    @property
    def orders(self) -> tuple[int, ...]:
        """Orders that are present, ascending."""
        return tuple(self.num_keys_by_order)

    @property
    def max_order(self) -> int:
        """Length of the longest key; 0 for the empty set."""
        return max(self.orders, default=0)

    @property
    def fingerprint(self) -> str:
        """64 hex digits over the content; states belong to it."""
        return self._core.fingerprint

    @property
    def keyset_fingerprint(self) -> str:
        """The fingerprint of the key set this index was built from."""
        return self._core.keyset_fingerprint

    @property
    def path(self) -> Path | None:
        """Where the index was opened, if it was."""
        return self._core.path

    @property
    def is_archive(self) -> bool:
        """Whether the file it was opened from is the archive form."""
        return self._core.is_archive

    def stats(self) -> dict[str, int]:
        """Sizes: num_keys, bytes, file_bytes, canonical_bytes, table_bytes, max_spill (lines a probe may go too far).

        ``file_bytes`` are those of a saved file: ``bytes`` with the header and what aligns the sections.
        """
        return self._core.stats()

    def _state_shape(self, batch: int) -> tuple[int, ...]:
        return (batch,)

    def _token(self, token: int, name: str) -> int:
        if not 0 <= token_id(name, token) < self.vocab_size:
            raise ArgumentError(f"{name}: expected 0 to {self.vocab_size - 1}, got {token}")
        return int(token)


def _ids(tokens: ArrayLike) -> NDArray[Any]:
    if isinstance(tokens, Mapping):  # numpy would take its names
        raise ArgumentError(f'tokens: expected ids, got a {type(tokens).__name__}; give its ["input_ids"]')
    try:
        ids = np.asarray(tokens)
    except ValueError as error:
        raise ArgumentError(
            "tokens: expected (T,) or (B, T) ids, got sequences of different lengths; look each up by itself, pad them "
            f"and say where with segments=, or join them into one with cu_seqlens= ({error})"
        ) from None
    if ids.size == 0 and ids.dtype == np.float64:
        ids = ids.astype(np.int64)  # numpy's dtype for an empty list
    if ids.dtype.kind == "U":
        raise ArgumentError("tokens: expected ids, got text; encode it with the tokenizer that the keys are of")
    if ids.dtype.name not in _TOKEN_DTYPES:
        found = ids.dtype if ids.dtype != object else f"a {type(tokens).__name__}"
        raise ArgumentError(f"tokens: expected uint16, int32, uint32 or int64 ids, got {found}")
    return np.asarray(ids, order="C")


def _outputs(
    out: tuple[NDArray[np.int32], NDArray[np.uint8]] | None, shape: tuple[int, ...]
) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    if out is None:
        return np.empty(shape, dtype=np.int32), np.empty(shape, dtype=np.uint8)
    if not isinstance(out, tuple) or len(out) != 2:
        raise ArgumentError(f"out: expected a pair (rows int32, orders uint8), got {type(out).__name__}")
    for name, array, dtype in (("rows", out[0], np.int32), ("orders", out[1], np.uint8)):
        if not isinstance(array, np.ndarray):
            raise ArgumentError(f"out {name}: expected a numpy array, got {type(array).__name__}")
        if array.dtype != dtype or array.shape != shape:
            raise ArgumentError(
                f"out {name}: expected {np.dtype(dtype)} of shape {shape}, got {array.dtype} {array.shape}"
            )
        if not array.flags.c_contiguous or not array.flags.writeable:
            fault = "read-only" if not array.flags.writeable else "not C-contiguous"
            raise ArgumentError(f"out {name}: expected a C-contiguous, writeable array; this one is {fault}")
    return out


def _segment_ids(segments: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.int64]:
    ids = np.asarray(segments)
    if ids.dtype.kind not in "iu" or ids.shape != shape:
        raise ArgumentError(f"segments: expected integers of shape {shape}, got {ids.dtype} {ids.shape}")
    return np.ascontiguousarray(ids, dtype=np.int64).reshape(-1)


def _offsets(cu_seqlens: ArrayLike) -> NDArray[np.uint64]:
    offsets = np.asarray(cu_seqlens)
    if offsets.dtype.kind not in "iu" or offsets.ndim != 1 or (offsets.size and offsets.min() < 0):
        raise ArgumentError(f"cu_seqlens: expected 1-D non-negative integers, got {offsets.dtype} {offsets.shape}")
    return np.ascontiguousarray(offsets, dtype=np.uint64)


def _threads(threads: int | None) -> int | None:
    if threads is None:
        # A DataLoader worker shares the machine with its siblings.
        return 1 if multiprocessing.parent_process() is not None else None
    if threads < 1:
        raise ArgumentError(f"threads: expected at least 1, got {threads}; None takes what the machine offers")
    return threads


def _miss(unknown: str) -> bool:
    if unknown not in ("error", "miss"):
        raise ArgumentError(f'unknown: expected "error" or "miss", got {unknown!r}')
    return unknown == "miss"


def _reopen(path: str, fingerprint: str, load: Literal["map", "ram"]) -> NgramIndex:
    index = NgramIndex.open(path, load)
    if index.fingerprint != fingerprint:
        raise FingerprintError(
            f"{path}: expected the index {fingerprint}, got {index.fingerprint}: the file was replaced since it was "
            "pickled; open it again and pickle that"
        )
    return index

"""Key sets: distinct n-grams in row order, with counts and document frequencies."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memgraft import _core
from memgraft.arguments import refuse_constructor, refuse_folder
from memgraft.config import MAX_VOCAB_SIZE
from memgraft.errors import ArgumentError, FingerprintError, FormatError, KeySetError, TokenError
from memgraft.keyed import Closed, Keyed, as_key
from memgraft.system import write_beside

__all__ = ["KeyArrays", "KeySet"]

_CHUNK = 1 << 16
SAMPLE_SUFFIX = ".sample"
"""What follows the name of a key set's file: the sample of the documents that it was mined from."""


class KeyArrays(NamedTuple):
    """Keys as flat arrays, in row order."""

    tokens: NDArray[np.uint32]
    """All keys' tokens one after another."""
    offsets: NDArray[np.uint64]
    """Where each key starts in ``tokens``, and one end: n + 1 offsets from 0."""
    counts: NDArray[np.uint64]
    """Occurrences of each key, descending."""
    documents: NDArray[np.uint64]
    """Documents with each key; zeros where they were not counted."""


class KeySet(Keyed):
    """Distinct keys of 1 to 16 tokens; row 0 is the most frequent key, ties go by the key as a tuple.

    Immutable. Make one with :meth:`from_keys`, :meth:`from_arrays`, :meth:`open` or ``memgraft.mine``.

    Attributes:
        sample: the file of the mined documents' sample that :meth:`save` writes beside the keys; None where none was
            made with them, or where it lies beside the opened file already.
    """

    __slots__ = ("_core", "sample")

    def __init__(self, core: _core.KeySet, sample: bytes | None = None) -> None:
        """Wraps the compiled set; use the class methods instead."""
        refuse_constructor(core, _core.KeySet, "memgraft.KeySet.open")
        self._core: _core.KeySet = core
        self.sample = sample

    @classmethod
    def from_keys(
        cls,
        keys: Iterable[Sequence[int]],
        counts: ArrayLike | None = None,
        documents: ArrayLike | None = None,
        *,
        vocab_size: int,
        reserved: Sequence[int] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> KeySet:
        """Sorts and checks keys given as sequences of token ids, in any order.

        Args:
            keys: distinct keys of 1 to 16 tokens.
            counts: occurrences of each key; 1 where not given.
            documents: documents with each key; 0 ("not counted") where not given.
            vocab_size: tokens are smaller than this; at most 2**20.
            reserved: tokens that no key may hold (EOS, padding).
            metadata: JSON to carry along; not part of the fingerprint.

        Raises:
            ArgumentError: ``keys`` is a mapping, whose numbers would be lost.
            KeySetError: a duplicate, empty, too long or reserved key.
            TokenError: a token outside the vocabulary.
        """
        if isinstance(keys, Mapping):
            raise ArgumentError(
                f"keys: expected keys alone, got a {type(keys).__name__}; give what it counts apart: "
                "from_keys(list(counted), list(counted.values()), …)"
            )
        try:
            listed = [tuple(key) for key in keys]
        except TypeError as error:
            raise KeySetError(f"keys: expected sequences of integer token ids: {error}") from error
        lengths = np.fromiter(map(len, listed), dtype=np.uint64, count=len(listed))
        flat = list(itertools.chain.from_iterable(listed))
        try:
            wide = np.array(flat, dtype=np.int64) if flat else np.empty(0, dtype=np.int64)
        except (OverflowError, TypeError, ValueError) as error:
            raise KeySetError(f"keys: expected sequences of integer token ids: {error}") from error
        if flat and not all(isinstance(token, (int, np.integer)) for token in flat):
            raise KeySetError("keys: expected integer token ids, got another type")
        _refuse_outside(wide, lengths, listed, vocab_size)
        offsets = np.zeros(len(listed) + 1, dtype=np.uint64)
        np.cumsum(lengths, out=offsets[1:])
        if counts is None:
            counts = np.ones(len(listed), dtype=np.uint64)
        return cls.from_arrays(
            wide.astype(np.uint32),
            offsets,
            counts,
            documents,
            vocab_size=vocab_size,
            reserved=reserved,
            metadata=metadata,
        )

    @classmethod
    def from_arrays(
        cls,
        tokens: ArrayLike,
        offsets: ArrayLike,
        counts: ArrayLike,
        documents: ArrayLike | None = None,
        *,
        vocab_size: int,
        reserved: Sequence[int] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> KeySet:
        """Sorts and checks keys given as flat arrays, in any order.

        Args:
            tokens: (total,) ids of all keys one after another.
            offsets: (n + 1,) where each key starts, and the end.
            counts: (n,) occurrences.
            documents: (n,) documents with each key, if counted.
            vocab_size: tokens are smaller than this; at most 2**20.
            reserved: tokens that no key may hold.
            metadata: JSON to carry along; not part of the fingerprint.

        Raises:
            KeySetError: a duplicate, empty, too long or reserved key.
            TokenError: a token outside the vocabulary.
            ArgumentError: arrays that do not fit together, or values that do not fit their dtype.
            LimitError: more than 2**31 - 1 keys.
        """
        if not 1 <= vocab_size <= MAX_VOCAB_SIZE:
            raise ArgumentError(
                f"vocab_size: expected 1 to {MAX_VOCAB_SIZE}, got {vocab_size}; pass the tokenizer's size"
            )
        bad = [token for token in reserved if not 0 <= token < vocab_size]
        if bad:
            raise TokenError(f"reserved: token {bad[0]} lies outside the vocabulary of {vocab_size}")
        return cls(
            _core.KeySet.from_arrays(
                unsigned(tokens, np.uint32, "tokens"),
                unsigned(offsets, np.uint64, "offsets"),
                unsigned(counts, np.uint64, "counts"),
                None if documents is None else unsigned(documents, np.uint64, "documents"),
                vocab_size,
                [int(token) for token in reserved],
                _encode(metadata),
            )
        )

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> KeySet:
        """Maps a ``keys.mgk``; reads the header alone.

        Raises:
            StorageError: the file cannot be read.
            FormatError: it is damaged, truncated, or no key set.
        """
        refuse_folder(path, "a key set")
        try:
            return cls(_core.KeySet.open(Path(path)))
        except FormatError:
            with Path(path).open("rb") as file:
                if file.read(4) != b"PAR1":
                    raise
            raise FormatError(
                f"{os.fspath(path)}: expected a key set (keys.mgk), found a Parquet file; `memgraft keys import` makes "
                "a key set of it"
            ) from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes beside ``path``, fsyncs and renames; then the `sample`, if there is one.

        Raises:
            StorageError: the system refused; an old file at ``path`` stays.
        """
        path = Path(path)
        self._core.save(path)
        if self.sample is not None:
            write_beside(path.with_name(path.name + SAMPLE_SUFFIX), self.sample)

    def verify(self, *, threads: int | None = None) -> None:
        """Checks every byte of the file the set was opened from, and that keys are distinct and in row order.

        Args:
            threads: at most so many; default: what the machine offers.

        Raises:
            FormatError: names what is damaged.
        """
        self._core.verify(threads)

    def close(self) -> None:
        """Lets go of the file; every later use is refused."""
        self._core = Closed(f"key set {self.path or ''}".strip())  # type: ignore[assignment]

    def __len__(self) -> int:
        """Number of keys."""
        return len(self._core)

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        """Keys in row order."""
        for start in range(0, len(self), _CHUNK):
            arrays = self.arrays(start, min(start + _CHUNK, len(self)))
            tokens = arrays.tokens.tolist()
            offsets = arrays.offsets.tolist()
            for begin, end in itertools.pairwise(offsets):
                yield tuple(tokens[begin:end])

    def __contains__(self, tokens: object) -> bool:
        """Whether exactly these tokens are a key; reads the keys one by one, where an index finds it at once."""
        wanted = as_key(tokens)
        return wanted is not None and any(key == wanted for key in self)

    def __repr__(self) -> str:
        """Sizes and the head of the fingerprint."""
        try:
            sizes = f"{len(self)} keys, orders {self.orders}, vocab_size {self.vocab_size}"
            return f"KeySet({sizes}, {self.fingerprint[:12]}…)"
        except ArgumentError as closed:
            return f"KeySet({closed})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles by path and fingerprint, never the bytes."""
        if self.path is None:
            raise ArgumentError("a key set pickles by its path: save() it and open() the file first")
        return _reopen, (str(self.path), self.fingerprint)

    @property
    def vocab_size(self) -> int:
        """Tokens are smaller than this."""
        return self._core.vocab_size

    @property
    def orders(self) -> tuple[int, ...]:
        """Orders that are present, ascending."""
        return tuple(self.num_keys_by_order)

    @property
    def num_keys_by_order(self) -> dict[int, int]:
        """Number of keys of each order that is present."""
        return {order: n for order, n in enumerate(self._core.keys_by_order, start=1) if n}

    @property
    def reserved(self) -> tuple[int, ...]:
        """Tokens that no key may hold, ascending."""
        return tuple(self._core.reserved)

    @property
    def fingerprint(self) -> str:
        """64 hex digits over tokens, counts, documents, vocabulary size and reserved tokens; not the metadata."""
        return self._core.fingerprint

    @property
    def metadata(self) -> dict[str, Any]:
        """Free-form JSON: corpus and tokenizer fingerprints, mining options. A fresh copy."""
        decoded: dict[str, Any] = json.loads(self._core.metadata or "{}")
        return decoded

    def with_metadata(self, metadata: Mapping[str, Any]) -> KeySet:
        """The same keys with other metadata."""
        return KeySet(self._core.with_metadata(_encode(metadata)), self.sample)

    def with_sample(self, sample: bytes | None) -> KeySet:
        """The same keys with another `sample`."""
        return KeySet(self._core, sample)

    @property
    def path(self) -> Path | None:
        """Where the set was opened, if it was."""
        return self._core.path

    def arrays(self, start: int = 0, stop: int | None = None) -> KeyArrays:
        """The keys of rows ``start`` to ``stop`` as flat numpy arrays, copied.

        Raises:
            ArgumentError: rows outside ``0..len(keys)``.
        """
        stop = len(self) if stop is None else stop
        if not 0 <= start <= stop <= len(self):
            raise ArgumentError(f"rows: expected a range in 0..{len(self)}, got {start}..{stop}")
        return KeyArrays(*self._core.arrays(start, stop))

    def select(self, mask_or_rows: ArrayLike) -> KeySet:
        """The subset given by a boolean mask (n,) or by distinct rows; rows are renumbered in the same order.

        Raises:
            ArgumentError: a mask of the wrong length, repeated rows, rows past the end.
        """
        chosen = np.asarray(mask_or_rows)
        if chosen.dtype == np.bool_:
            if chosen.shape != (len(self),):
                raise ArgumentError(f"mask: expected shape ({len(self)},), got {chosen.shape}")
            chosen = np.flatnonzero(chosen)
        rows = np.sort(unsigned(chosen, np.uint32, "rows"))
        if rows.size and rows[-1] >= len(self):
            raise ArgumentError(f"rows: expected less than {len(self)} (the number of keys), got {rows[-1]}")
        if (rows[1:] == rows[:-1]).any():
            raise ArgumentError(f"rows: expected distinct rows, got {rows[:-1][rows[1:] == rows[:-1]][0]} twice")
        return KeySet(self._core.select(rows), self.sample)

    def select_by_gain(self, budget: int, require: Iterable[Sequence[int]] = ()) -> KeySet:
        """The ``budget`` keys that are the longest match most often.

        A key earns the occurrences that no longer kept key covers: one that longer keys always cover earns nothing. The
        key that earns least goes, again and again, and what it earned falls to the next shorter kept key. Exact within
        these keys, and the same on every run; among equals the least frequent goes first.

        Args:
            budget: keys to keep.
            require: keys that stay; those that are not in the set are passed over.

        Raises:
            ArgumentError: fewer keys wanted than required.
        """
        wanted = {tuple(key) for key in require}
        pinned = [row for row, key in enumerate(self) if key in wanted] if wanted else []
        return KeySet(self._core.select_by_gain(budget, pinned), self.sample)


def unsigned(values: ArrayLike, dtype: type[np.unsignedinteger[Any]], name: str) -> NDArray[Any]:
    """``values`` as a 1-D contiguous array of an unsigned ``dtype``, refusing what does not fit.

    Raises:
        ArgumentError: another number of dimensions, no integers, or values out of range.
    """
    array = np.asarray(values)
    if array.ndim != 1:
        raise ArgumentError(f"{name}: expected a 1-D array, got shape {array.shape}")
    if array.size == 0:
        return np.empty(0, dtype=dtype)
    if array.dtype.kind not in "iu":
        raise ArgumentError(f"{name}: expected integers, got {array.dtype}")
    if array.dtype != dtype:
        low, high = int(array.min()), int(array.max())
        if low < 0 or high > np.iinfo(dtype).max:
            raise ArgumentError(f"{name}: expected values of {np.dtype(dtype)}, got {low if low < 0 else high}")
    return np.ascontiguousarray(array, dtype=dtype)


def _refuse_outside(
    wide: NDArray[np.int64], lengths: NDArray[np.uint64], keys: list[tuple[int, ...]], vocab_size: int
) -> None:
    outside = np.flatnonzero((wide < 0) | (wide >= vocab_size))
    if outside.size:
        at = int(np.searchsorted(np.cumsum(lengths), outside[0], side="right"))
        raise TokenError(
            f"key {at} {keys[at]}: token {wide[outside[0]]} lies outside the vocabulary of {vocab_size}; "
            "pass the vocab_size of the tokenizer that made the keys"
        )


def _encode(metadata: Mapping[str, Any] | None) -> str:
    try:
        return json.dumps(dict(metadata or {}), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"metadata: expected a mapping that JSON can hold: {error}") from error


def _reopen(path: str, fingerprint: str) -> KeySet:
    keys = KeySet.open(path)
    if keys.fingerprint != fingerprint:
        raise FingerprintError(
            f"{path}: expected the key set {fingerprint}, got {keys.fingerprint}: the file was replaced since it was "
            "pickled; open it again and pickle that"
        )
    return keys

"""Keys and indexes of several banks as one: rows are numbered through, from the lowest bank to the one that wins."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

import numpy as np
from numpy.typing import ArrayLike

from memgraft import _core
from memgraft.corpus.sample import corpora_of_all
from memgraft.errors import ArgumentError
from memgraft.index import NgramIndex
from memgraft.keyed import checked_row
from memgraft.keyset import KeyArrays, KeySet

__all__ = ["StackedIndex", "StackedKeys"]


class StackedIndex(NgramIndex):
    """The longest match of all layers, at equal length the later one's; a state is one uint32 for each layer."""

    __slots__ = ("layers",)

    def __init__(self, layers: Sequence[NgramIndex]) -> None:
        """Puts ``layers`` on top of each other; reads nothing.

        Raises:
            ArgumentError: no layers, or vocabularies that differ.
            LimitError: more than 2**31 - 1 rows in all.
        """
        # The compiled stack answers what this class does not override.
        super().__init__(cast(_core.Index, _core.IndexStack([layer._core for layer in layers])))
        self.layers = tuple(layers)

    def locate(self, row: int) -> tuple[int, int]:
        """The layer of ``row``, and the row's number there."""
        return cast(_core.IndexStack, self._core).locate(checked_row(row, len(self)))

    @property
    def first_rows(self) -> tuple[int, ...]:
        """The first row of each layer, and the number of rows at the end."""
        return tuple(cast(_core.IndexStack, self._core).first_rows)

    def key(self, row: int) -> tuple[int, ...]:
        """The tokens of ``row``."""
        layer, local = self.locate(row)
        return self.layers[layer].key(local)

    def count(self, row: int) -> int:
        """Occurrences of the key of ``row`` in the corpus its bank was mined from."""
        layer, local = self.locate(row)
        return self.layers[layer].count(local)

    def documents(self, row: int) -> int:
        """Documents with the key of ``row`` in that corpus; 0 where they were not counted."""
        layer, local = self.locate(row)
        return self.layers[layer].documents(local)

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        """Keys in row order; one that two layers have comes twice."""
        return (key for layer in self.layers for key in layer)

    def verify(self, *, threads: int | None = None) -> None:
        """Checks every byte of every layer's file."""
        for layer in self.layers:
            layer.verify(threads=threads)

    def save(self, path: str | os.PathLike[str], form: Literal["fast", "archive"] = "fast") -> NoReturn:
        """Refused: a stack has no file of its own."""
        raise ArgumentError(f"{path}: a stack of indexes is not written to a file; merge its banks with `bank merge`")

    def key_set(self) -> NoReturn:
        """Refused: one key may have a row in several layers."""
        raise ArgumentError("a stack of indexes has no key set; `layers` have theirs, `bank merge` makes one")

    def close(self) -> None:
        """Lets go of every layer's file."""
        for layer in self.layers:
            layer.close()
        super().close()

    def stats(self) -> dict[str, int]:
        """Sizes summed over the layers; the largest ``max_spill``."""
        each = [layer.stats() for layer in self.layers]
        return {name: (max if name == "max_spill" else sum)(one[name] for one in each) for name in each[0]}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles by its layers' paths and fingerprints."""
        return StackedIndex, (self.layers,)

    @property
    def keyset_fingerprint(self) -> str:
        """The fingerprint of the stack, which no single key set has."""
        return self.fingerprint

    @property
    def path(self) -> Path | None:
        """None: `layers` have paths."""
        return None

    @property
    def is_archive(self) -> bool:
        """Whether any layer was opened from an archive."""
        return any(layer.is_archive for layer in self.layers)

    def _state_shape(self, batch: int) -> tuple[int, ...]:
        return (batch, len(self.layers))


class StackedKeys(KeySet):
    """The keys of several banks by row; a key that two banks have comes twice, and the later row is the one found."""

    __slots__ = ("_index", "layers")

    def __init__(self, layers: Sequence[KeySet], index: StackedIndex) -> None:
        """Keys that go with ``index``; reads nothing."""
        self.layers, self._index, self.sample = tuple(layers), index, None

    @property
    def _core(self) -> NoReturn:  # type: ignore[override]
        # Whatever reads the compiled set (an index, a writer) needs distinct keys.
        raise ArgumentError("the keys of a stack are not one key set; merge the banks with `bank merge`")

    def verify(self, *, threads: int | None = None) -> None:
        """Checks every byte of every layer's file."""
        for layer in self.layers:
            layer.verify(threads=threads)

    def close(self) -> None:
        """Lets go of every layer's file."""
        for layer in self.layers:
            layer.close()

    def __len__(self) -> int:
        """Rows of all layers."""
        return len(self._index)

    def key(self, row: int) -> tuple[int, ...]:
        """The tokens of ``row``."""
        return self._index.key(row)

    def count(self, row: int) -> int:
        """Occurrences of the key of ``row`` in the corpus its bank was mined from."""
        return self._index.count(row)

    def documents(self, row: int) -> int:
        """Documents with the key of ``row`` in that corpus; 0 where they were not counted."""
        return self._index.documents(row)

    def arrays(self, start: int = 0, stop: int | None = None) -> KeyArrays:
        """The keys of rows ``start`` to ``stop`` as flat numpy arrays, copied; counts descend within a layer alone."""
        stop = len(self) if stop is None else stop
        if not 0 <= start <= stop <= len(self):
            raise ArgumentError(f"rows: expected a range in 0..{len(self)}, got {start}..{stop}")
        parts: list[KeyArrays] = []
        for layer, first in zip(self.layers, self._index.first_rows, strict=False):
            begin, end = max(start - first, 0), min(stop - first, len(layer))
            if begin < end or not parts:
                parts.append(layer.arrays(min(begin, len(layer)), max(min(begin, len(layer)), end)))
        lengths = np.concatenate([np.diff(part.offsets.astype(np.int64)) for part in parts])
        return KeyArrays(
            np.concatenate([part.tokens for part in parts]),
            np.concatenate(([0], np.cumsum(lengths))).astype(np.uint64),
            np.concatenate([part.counts for part in parts]),
            np.concatenate([part.documents for part in parts]),
        )

    def save(self, path: str | os.PathLike[str]) -> NoReturn:
        """Refused: one key may have several rows."""
        raise ArgumentError(f"{path}: the keys of a stack are not one key set; merge the banks with `bank merge`")

    def select(self, mask_or_rows: ArrayLike) -> NoReturn:
        """Refused: one key may have several rows."""
        raise ArgumentError("the keys of a stack are not one key set; select from one of its `layers`")

    def with_metadata(self, metadata: Mapping[str, Any]) -> NoReturn:
        """Refused: the layers keep their own."""
        raise ArgumentError("the keys of a stack have no metadata of their own; set that of one of its `layers`")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles by its layers' paths and fingerprints."""
        return StackedKeys, (self.layers, self._index)

    @property
    def vocab_size(self) -> int:
        """Tokens are smaller than this."""
        return self._index.vocab_size

    @property
    def num_keys_by_order(self) -> dict[int, int]:
        """Number of rows of each order that is present."""
        return self._index.num_keys_by_order

    @property
    def reserved(self) -> tuple[int, ...]:
        """Tokens that no key of any layer may hold, ascending."""
        return tuple(sorted(set.intersection(*(set(layer.reserved) for layer in self.layers))))

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the stack, which no single key set has."""
        return self._index.fingerprint

    @property
    def metadata(self) -> dict[str, Any]:
        """The lowest layer's, with the corpora of all, if all name theirs; `layers` have their own."""
        each = [layer.metadata for layer in self.layers]
        return {**each[0], "corpora": corpora_of_all(each)}

    @property
    def path(self) -> Path | None:
        """None: `layers` have paths."""
        return None

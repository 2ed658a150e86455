"""The datasink of a harvest on Ray: write tasks put chunks into one unfinished bank.

Nothing here needs torch: a process that only writes is there at once.
"""

import functools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.data import Datasink

from memgraft.bank import BankWriter
from memgraft.keyset import KeySet

WRITERS = 1 << 31
"""Attempts of write tasks are ranks of a world of so many, each by a number drawn anew: one that hangs hinders none."""
_WRITE_TASKS = 1024


@dataclass(frozen=True, kw_only=True)
class Begun:
    """What write tasks need of a harvest that is laid out."""

    out: Path
    keys: str
    facts: dict[str, Any]
    chunks: list[tuple[int, int]]
    """Chunks with rows that are not written yet."""


def any_rank(make: Callable[..., BankWriter]) -> BankWriter:
    """A writer of a rank that nobody has."""
    return make(rank=random.SystemRandom().randrange(1, WRITERS), world_size=WRITERS)


class RowRanges(Datasink[int]):  # type: ignore[misc]
    """Writes chunks into the unfinished bank, by the locks and logs that ranks use."""

    def __init__(self, begun: Begun, order: Any) -> None:
        self._begun, self._order = begun, order

    @property
    def min_rows_per_write(self) -> int:
        """A write task opens the bank; few of them share many chunks."""
        return -(-len(self._begun.chunks) // _WRITE_TASKS)

    def write(self, blocks: Iterable[Any], ctx: Any) -> int:
        """Writes what is not there yet; returns the rows."""
        begun, number = self._begun, 0
        shape = (-1, len(begun.facts["taps"]), begun.facts["value_dim"])
        keys, order = KeySet.open(begun.keys), ray.get(self._order)
        with any_rank(functools.partial(BankWriter, begun.out, keys=keys, order=order, **begun.facts)) as writer:
            for block in blocks:
                starts, kinds = block["start"].to_pylist(), block["type"].to_pylist()
                for start, kind, stored in zip(starts, kinds, block["values"], strict=True):
                    values = np.frombuffer(stored.as_buffer(), np.dtype(kind)).reshape(shape)
                    # Where another attempt of this task is at it or was, the rows are the same.
                    if writer.claim(start, start + len(values)):
                        writer.write(start, values)
                        writer.give_back(start)
                        number += len(values)
        return number

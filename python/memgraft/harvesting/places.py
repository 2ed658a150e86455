"""Where in the corpus keys are read, and in which order: found once for a bank, in a bounded memory, kept beside it."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memgraft.bank.files import mapped_table, write_text
from memgraft.bank.locks import open_lock, wait_for_lock
from memgraft.errors import StorageError
from memgraft.harvesting.occurrences import find_occurrences
from memgraft.harvesting.packing import IntArray
from memgraft.harvesting.windows import Windows
from memgraft.keyset import KeySet
from memgraft.progress import Progress

_BLOCK = 1 << 18
_BINS = 1 << 16
_SORTED_BYTES = 48
_FEWEST = 1024
_FACTS_NAME, _LOCK_NAME = "occurrences.json", "occurrences.lock"

Table = Callable[[str, tuple[int, ...]], IntArray]
"""Makes an array of int64 of a name and a shape, in memory or in a file."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where R keys are read.

    Attributes:
        ends: (R, k) places of the keys' last tokens in the corpus, -1 where there are fewer.
        order: (R,) rows by their first place: keys that end together are neighbours.
        counts: places in all, windows that they need, keys that are nowhere.
    """

    ends: IntArray
    order: IntArray
    counts: Mapping[str, int]

    @classmethod
    def find(
        cls, keys: KeySet, windows: Windows, memory: int, progress: Progress | None = None, table: Table | None = None
    ) -> "Places":
        """Searches the corpus; raises as `find_occurrences`."""
        made = table or (lambda _, shape: np.empty(shape, np.int64))
        ends = made("occurrences", (len(keys), windows.contexts.occurrences))
        find_occurrences(keys, windows.corpus, windows.contexts, progress, memory=memory, out=ends)
        order = made("reading-order", (len(keys),))
        _order_by_first(ends, order, memory)
        return cls(ends=ends, order=order, counts=_counted(keys, windows, ends, order))


def places_beside(partial: Path, settings: Mapping[str, Any], find: Callable[[Table], Places], num_rows: int) -> Places:
    """The places kept in ``partial``, or what ``find`` finds; of several processes one searches, the others wait.

    ``settings`` (JSON) are all that they depend on; those kept with others are searched again.

    Raises:
        StorageError: the disk refused.
    """
    facts = partial / _FACTS_NAME
    lock = open_lock(partial / _LOCK_NAME)
    try:
        wait_for_lock(lock, partial / _LOCK_NAME)
        try:
            kept = json.loads(facts.read_text())
            if kept["settings"] == dict(settings):
                arrays = {
                    name: np.load(_path(partial, file), mmap_mode="r")
                    for name, file in (("ends", "occurrences"), ("order", "reading-order"))
                }
                if all(len(array) == num_rows for array in arrays.values()):
                    return Places(**arrays, counts=kept["counts"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not there, or a kill left half of it
        facts.unlink(missing_ok=True)
        try:
            found = find(lambda name, shape: mapped_table(_path(partial, name), shape, np.int64))
            for array in (found.ends, found.order):
                if isinstance(array, np.memmap):
                    array.flush()
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"{partial}: cannot be written: {error.strerror}; free some room or move") from error
        text = {"settings": dict(settings), "counts": dict(found.counts)}
        write_text(facts, json.dumps(text) + "\n")
        return found
    finally:
        os.close(lock)


def _path(partial: Path, name: str) -> Path:
    return partial / f"{name}.npy"


def _order_by_first(ends: IntArray, order: IntArray, memory: int) -> None:
    """Fills ``order`` with the rows by ``ends[:, 0]``, equal ones as they come; those that are nowhere are first."""
    number, fit = len(ends), max(_FEWEST, memory // _SORTED_BYTES)
    if number <= fit:
        order[:] = np.argsort(ends[:, 0], kind="stable")
        return
    starts = range(0, number, _BLOCK)
    width = max(int(ends[start : start + _BLOCK, 0].max()) for start in starts) // _BINS + 1
    sizes = np.zeros(_BINS + 2, np.int64)
    for start in starts:
        sizes += np.bincount(_bins(ends[start : start + _BLOCK, 0], width), minlength=len(sizes))
    ends_of_bins, first, done = np.cumsum(sizes), 0, 0
    while done < number:
        # As many bins as fit, at least one; bin 0, keys that are nowhere, is in order as it is.
        last = max(int(np.searchsorted(ends_of_bins, done + fit, side="right")), first + 1) if first else 1
        begun = done
        for start in starts:
            bins = _bins(ends[start : start + _BLOCK, 0], width)
            rows = start + np.flatnonzero((bins >= first) & (bins < last))
            order[done : done + len(rows)] = rows
            done += len(rows)
        if first:
            rows = np.array(order[begun:done])
            order[begun:done] = rows[np.argsort(ends[rows, 0], kind="stable")]
        first = last


def _bins(firsts: IntArray, width: int) -> IntArray:
    """The bin of each place: 0 for -1, then one for each ``width`` places."""
    bins: IntArray = np.where(firsts < 0, 0, np.asarray(firsts) // width + 1)
    return bins


def key_lengths(keys: KeySet) -> npt.NDArray[np.uint8]:
    """(R,) tokens of each key."""
    lengths = np.empty(len(keys), np.uint8)
    for start in range(0, len(keys), _BLOCK):
        offsets = keys.arrays(start, min(start + _BLOCK, len(keys))).offsets
        lengths[start : start + _BLOCK] = np.diff(offsets.astype(np.int64))
    return lengths


def _counted(keys: KeySet, windows: Windows, ends: IntArray, order: IntArray) -> dict[str, int]:
    lengths = key_lengths(keys)
    counts = {"num_occurrences": 0, "num_windows": 0, "num_without_occurrence": 0}
    for start in range(0, len(order), _BLOCK):
        rows = np.array(order[start : start + _BLOCK])
        own = ends[rows]
        at, which = np.nonzero(own >= 0)
        bounds = windows.bounds(own[at, which], lengths[rows[at]].astype(np.int64))
        counts["num_occurrences"] += len(at)
        counts["num_windows"] += len(np.unique(bounds, axis=0))
        counts["num_without_occurrence"] += len(rows) - len(np.unique(at))
    return counts

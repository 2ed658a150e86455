"""What a model, a collator or a loader needs of a memory: the seam between banks and everything that reads them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from memgraft.bank.bank import Bank
from memgraft.bank.dtypes import AnyArray, FloatArray
from memgraft.bank.manifest import Manifest
from memgraft.bank.overlay import Where
from memgraft.bank.staging import Staged
from memgraft.errors import ArgumentError, GraftError, StorageError


@runtime_checkable
class Memory(Protocol):
    """Keys to rows and rows to values; a `Bank`, or several as one.

    A memory pickles by what it names, so that loader workers open it themselves.
    """

    @property
    def fingerprint(self) -> str:
        """What a graft names its memory by."""

    @property
    def space(self) -> str:
        """What the values mean: donor, taps, and what the donor read. Memories of one space are interchangeable."""

    @property
    def manifest(self) -> Manifest:
        """Facts of the bank; of several, of the first."""

    @property
    def taps(self) -> tuple[int, ...]:
        """Donor depths."""

    @property
    def value_dim(self) -> int:
        """Channels of a tap."""

    @property
    def num_rows(self) -> int:
        """Rows are 0 up to this."""

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one row, all taps, without scales."""

    @property
    def vocab_size(self) -> int:
        """Tokens of the keys are below this."""

    @property
    def max_order(self) -> int:
        """The longest key."""

    def lookup(
        self,
        tokens: Any,
        *,
        segments: Any = None,
        eos_id: int | None = None,
        cu_seqlens: Any = None,
        threads: int | None = None,
        unknown: Literal["error", "miss"] = "error",
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
        """Rows int32 (-1 = miss) and orders uint8 (0 = miss) of ``tokens``; negative segments are padding, a miss."""

    def stage(
        self,
        tokens: Any = None,
        *,
        rows: Any = None,
        orders: Any = None,
        segments: Any = None,
        eos_id: int | None = None,
        cu_seqlens: Any = None,
        out: AnyArray | None = None,
        grow: Callable[[int], AnyArray] | None = None,
        threads: int | None = None,
    ) -> Staged:
        """Each distinct row once, with its values in storage form."""

    def distinct(self, rows: Any) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """The distinct rows of ``rows``, ascending, and each position's place among them (-1 = miss)."""

    def floats(self, rows: Any) -> FloatArray:
        """Values of ``rows`` as float32, ``rows.shape + (taps, value_dim)``."""


def open_memory(memory: Memory | Where) -> Memory:
    """An open memory as it is; a path, or several from the base up, opened.

    Raises:
        ArgumentError: neither.
        StorageError: the path holds no bank.
        FormatError: the bank is damaged.
    """
    if isinstance(memory, str | os.PathLike | list | tuple):
        return Bank.open(memory)
    if isinstance(memory, type) or not isinstance(memory, Memory):
        raise ArgumentError(f"expected an open bank or the path of one, found {type(memory).__name__}")
    return memory


def open_memory_of(folder: Path, facts: Mapping[str, Any], bank: Memory | Where | None) -> Memory:
    """The memory that a saved graft reads: ``bank``, or the one that it names.

    Args:
        folder: the graft's folder.
        facts: what its ``graft.json`` says of the bank.
        bank: what is given instead.

    Raises:
        GraftError: none is given, and the graft names none.
        StorageError: it is not where the graft says.
    """
    wanted, path = facts["fingerprint"], facts.get("path")
    if bank is not None:
        return open_memory(bank)
    if path is None:
        raise GraftError(f"{folder}: the graft names no bank path; it was trained on bank {wanted}: give that as bank=")
    try:
        # A relative path is meant from the graft's folder.
        return open_memory(folder / path)
    except StorageError as error:
        raise StorageError(
            f"{folder}: the graft's bank {wanted} is not at {path}: give where it is now as bank= ({error})"
        ) from error

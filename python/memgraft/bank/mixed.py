"""The values of banks of several storage types as one table: each row is read in its bank's type, given as fp32."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from memgraft._core import ValueTable
from memgraft.bank.dtypes import FloatArray, decode, value_dtype
from memgraft.errors import ArgumentError

__all__ = ["AnyTable", "MixedTable"]

_STEP = 1 << 16
"""Rows that are decoded at a time: little memory beside the output, and Ctrl-C is answered between two steps."""


class MixedTable:
    """Tables one after another, rows numbered through; every value that is stored in a type of theirs is exact in fp32.

    It answers as a compiled table of fp32 rows does, whose names its methods have.

    Args:
        tables: at least one, all of the same taps and width.
    """

    dtype = "fp32"

    def __init__(self, tables: Sequence[ValueTable]) -> None:
        self._tables = tuple(tables)
        self._first = np.cumsum([0, *(table.num_rows for table in tables)])
        self.taps, self.value_dim = tables[0].taps, tables[0].value_dim
        self.row_bytes = self.taps * self.value_dim * 4

    @property
    def num_rows(self) -> int:
        """Rows of all tables."""
        return int(self._first[-1])

    @property
    def resident_rows(self) -> int:
        """Rows in memory of this process."""
        return sum(table.resident_rows for table in self._tables)

    @property
    def cold_reader(self) -> tuple[str, str | None]:
        """As of the first table; all were opened alike."""
        return self._tables[0].cold_reader

    def shards(self) -> list[dict[str, Any]]:
        """The shards of all tables in row order."""
        return [shard for table in self._tables for shard in table.shards()]

    def warm(self, num_rows: int, threads: int) -> int:
        """Reads the first ``num_rows`` rows; returns the bytes."""
        left = [min(max(num_rows - int(first), 0), table.num_rows) for table, first in self._pairs()]
        return sum(table.warm(rows, threads) for (table, _), rows in zip(self._pairs(), left, strict=True) if rows)

    def gather(self, rows: npt.NDArray[np.int32], out: npt.NDArray[np.uint8], threads: int) -> dict[str, int]:
        """Writes the rows' values to ``out`` (flat bytes, read as fp32).

        Raises:
            ArgumentError: a row is out of range; ``out`` is untouched.
        """
        self._check(rows)
        values = out[: len(rows) * self.row_bytes].view(np.float32).reshape(len(rows), self.taps, self.value_dim)
        num_cold = 0
        for start in range(0, len(rows), _STEP):
            some, found = rows[start : start + _STEP], values[start : start + _STEP]
            for table, first in self._pairs():
                here = np.flatnonzero((some >= first) & (some < first + table.num_rows))
                if len(here):
                    found[here], cold = _floats(table, (some[here] - first).astype(np.int32), threads)
                    num_cold += cold
        return {"num_bytes": values.nbytes, "num_cold_rows": num_cold}

    def stage(
        self, rows: npt.NDArray[np.int32], out: npt.NDArray[np.uint8], threads: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], int, dict[str, int] | None]:
        """Distinct rows, each position's place among them (-1 = miss), hits, and what was gathered if ``out`` fits."""
        hit = rows >= 0
        unique, places = np.unique(rows[hit], return_inverse=True)
        if rows.size and int(rows.min()) < -1:
            self._check(rows)
        self._check(unique)
        inverse = np.full(len(rows), -1, np.int32)
        inverse[hit] = places
        fits = len(unique) * self.row_bytes <= out.size
        return unique, inverse, int(hit.sum()), self.gather(unique, out, threads) if fits else None

    def gather_scales(self, rows: npt.NDArray[np.int32], out: npt.NDArray[np.uint8]) -> None:
        """None are needed: the values are scaled already."""

    def channel_scales(self) -> npt.NDArray[np.uint8]:
        """None are needed: the values are scaled already."""
        return np.empty(0, np.uint8)

    def _pairs(self) -> list[tuple[ValueTable, int]]:
        return [(table, int(first)) for table, first in zip(self._tables, self._first, strict=False)]

    def _check(self, rows: npt.NDArray[np.int32]) -> None:
        wrong = rows[(rows < 0) | (rows >= self.num_rows)]
        if len(wrong):
            raise ArgumentError(f"rows: expected 0 to {self.num_rows - 1}, found {int(wrong[0])}")


AnyTable = ValueTable | MixedTable


def _floats(table: ValueTable, rows: npt.NDArray[np.int32], threads: int) -> tuple[FloatArray, int]:
    """The values of rows of one table, fp32 (rows, taps, value_dim), and how many had to be read from the device."""
    kind = value_dtype(table.dtype)
    stored = np.empty((len(rows), table.taps, table.value_dim), kind.storage)
    facts = table.gather(rows, stored.reshape(-1).view(np.uint8), threads)
    scales: FloatArray | None = None
    if kind.scales == "row":
        scales = np.empty((len(rows), table.taps), "<f4")
        table.gather_scales(rows, scales.reshape(-1).view(np.uint8))
    elif kind.scales == "channel":
        scales = table.channel_scales().view("<f4").reshape(table.taps, table.value_dim)
    return decode(stored, kind, scales), facts["num_cold_rows"]

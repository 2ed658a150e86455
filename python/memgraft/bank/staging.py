"""The result of staging: distinct rows, their inverse, and their bytes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from memgraft.bank.dtypes import AnyArray, FloatArray, ValueDtype, decode
from memgraft.errors import ArgumentError


@dataclass(frozen=True, kw_only=True)
class StageFacts:
    """What one staging did.

    Attributes:
        num_positions: positions looked at.
        num_hits: positions with a row.
        num_unique: distinct rows.
        num_bytes: bytes of values written.
        num_cold_rows: rows that had to be read from the device.
        cold_reader: what reads them (`Bank.cold_reader`).
        seconds: time of the whole call.
        num_hot_rows: distinct rows that were on the device already.
    """

    num_positions: int
    num_hits: int
    num_unique: int
    num_bytes: int
    num_cold_rows: int
    cold_reader: str
    seconds: float
    num_hot_rows: int = 0

    @property
    def unique_share(self) -> float:
        """Distinct rows per hit; 0 where nothing hit."""
        return self.num_unique / self.num_hits if self.num_hits else 0.0


@dataclass(frozen=True, kw_only=True)
class Staged:
    """Staged rows of one batch.

    Attributes:
        rows: int32 ``(U,)``, distinct, ascending.
        inverse: int32, shape of the tokens: index into ``rows``, -1 = miss.
        orders: uint8, shape of the tokens, 0 = miss.
        values: ``(U, taps, value_dim)`` in storage form (bfloat16 bits as uint16); a view of ``out`` if one was given.
        scales: fp32 ``(U, taps)`` for fp8, ``(taps, value_dim)`` for int8, else None.
        dtype: the storage type.
        facts: telemetry.
    """

    rows: npt.NDArray[np.int32]
    inverse: npt.NDArray[np.int32]
    orders: npt.NDArray[np.uint8]
    values: AnyArray
    scales: FloatArray | None
    dtype: ValueDtype
    facts: StageFacts

    def floats(self) -> FloatArray:
        """The values as float32 ``(U, taps, value_dim)``."""
        return decode(self.values, self.dtype, self.scales)


def output_bytes(out: Any) -> npt.NDArray[np.uint8]:
    """``out`` (a writable C-contiguous array of any dtype) as flat bytes that share its memory.

    Raises:
        ArgumentError: not such an array.
    """
    if not isinstance(out, np.ndarray):
        raise ArgumentError(f"out: expected a numpy array (for a tensor, tensor.numpy()), found {type(out).__name__}")
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise ArgumentError("out: expected a writable C-contiguous array")
    return out.reshape(-1).view(np.uint8)


def as_rows(rows: Any) -> npt.NDArray[np.int32]:
    """``rows`` as contiguous int32, same shape.

    Raises:
        ArgumentError: not integers, or beyond int32.
    """
    array = np.asarray(rows)
    if array.dtype == np.int32:
        return np.ascontiguousarray(array)
    if array.size == 0:
        return array.astype(np.int32)
    if array.dtype.kind not in "iu":
        raise ArgumentError(f"rows: expected integers, found {array.dtype}")
    if int(array.max()) > 2**31 - 1 or int(array.min()) < -1:
        worst = int(array.max()) if int(array.max()) > 2**31 - 1 else int(array.min())
        raise ArgumentError(f"rows: {worst} is not a row")
    return np.ascontiguousarray(array, dtype=np.int32)

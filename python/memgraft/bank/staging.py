"""Staging: distinct rows of a batch, their inverse, and their bytes."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from memgraft.bank.dtypes import AnyArray, FloatArray, ValueDtype, decode, value_dtype
from memgraft.bank.mixed import AnyTable
from memgraft.errors import ArgumentError
from memgraft.system import COPY_THREADS, num_threads


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


def stage_rows(
    table: AnyTable,
    rows: Any,
    orders: Any,
    *,
    out: AnyArray | None,
    grow: Callable[[int], AnyArray] | None,
    threads: int,
    scales: Callable[[npt.NDArray[np.int32]], FloatArray | None],
    started: float,
) -> Staged:
    """Gathers each distinct row of ``rows`` once; arguments and errors as for `memgraft.Bank.stage`.

    Args:
        table: the values.
        rows: int32 rows, -1 = miss.
        orders: uint8 orders that go with them, or None.
        out: room for the distinct rows, or None.
        grow: gives more room where ``out`` is too small.
        threads: threads of the gather.
        scales: gives the scales of distinct rows.
        started: `time.perf_counter` at the beginning of the call.
    """
    found = as_rows(rows)
    found_orders = np.zeros(found.shape, np.uint8) if orders is None else np.asarray(orders, dtype=np.uint8)
    if found_orders.shape != found.shape:
        raise ArgumentError(f"orders: expected shape {found.shape} like rows, found {found_orders.shape}")
    target = np.empty(0, np.uint8) if out is None else output_bytes(out)
    unique, inverse, num_hits, facts = table.stage(found.reshape(-1), target, threads)
    needed = len(unique) * table.row_bytes
    if facts is None:
        if out is not None and grow is None:
            raise ArgumentError(f"out: {target.size} bytes, expected at least {needed} ({len(unique)} distinct rows)")
        target = np.empty(needed, np.uint8) if grow is None else output_bytes(grow(needed))
        facts = table.gather(unique, target[:needed], threads)
    dtype = value_dtype(table.dtype)
    reader, refusal = table.cold_reader
    return Staged(
        rows=unique,
        inverse=inverse.reshape(found.shape),
        orders=found_orders,
        values=target[:needed].view(dtype.storage).reshape(len(unique), table.taps, table.value_dim),
        scales=scales(unique),
        dtype=dtype,
        facts=StageFacts(
            num_positions=found.size,
            num_hits=num_hits,
            num_unique=len(unique),
            num_bytes=facts["num_bytes"],
            num_cold_rows=facts["num_cold_rows"],
            cold_reader=cold_reader_name(reader, refusal),
            seconds=time.perf_counter() - started,
        ),
    )


def default_threads() -> int:
    """Threads of a gather where the caller does not say: what this process may use, at most `COPY_THREADS`."""
    return num_threads(most=COPY_THREADS)


def cold_reader_name(reader: str, refusal: str | None) -> str:
    """How rows that are not in memory are read, and why that is not what was asked for where it is not."""
    return reader if refusal is None else f"{reader}: {refusal}"

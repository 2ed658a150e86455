"""The rows of a bank in another storage type."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from memgraft.bank.bank import Bank
from memgraft.bank.dtypes import FloatArray, channel_scales, decode, encode, value_dtype
from memgraft.bank.extras import dropped_file, sample_file, tokenizer_files
from memgraft.bank.provenance import read as read_origins
from memgraft.bank.writer import BankWriter
from memgraft.errors import ArgumentError
from memgraft.progress import Progress, callback

_CHUNK_BYTES = 32 << 20


def requantise(bank: Bank, out: str | os.PathLike[str], dtype: str, *, progress: Progress | bool | None = None) -> Bank:
    """Writes the rows of ``bank`` as ``dtype``; channel scales are exact, from a first pass over all rows.

    The manifest's ``donor.storage`` says what it cost: the mean error of a row as a share of its norm, by tap.

    Args:
        bank: the bank.
        out: the directory to be; an unfinished one of the same call is taken up.
        dtype: the storage type to write.
        progress: True for bars, or called with ("write", rows done, rows in all).

    Raises:
        ArgumentError: ``out`` exists, no such dtype, or the bank's already.
        StorageError: the disk refused.
    """
    progress = callback(progress)
    kind = value_dtype(dtype)
    if dtype == bank.dtype:
        raise ArgumentError(f"dtype {dtype}: {bank.path} is stored so already; copy it")
    scales = None
    if kind.scales == "channel":
        highest = np.zeros((len(bank.taps), bank.value_dim), np.float32)
        for start, stop in _steps(bank, 0, bank.num_rows):
            highest = np.maximum(highest, np.abs(bank.floats(np.arange(start, stop, dtype=np.int32))).max(axis=0))
        scales = channel_scales(highest[None])
    origin = {"row": "each row's largest value", "channel": "largest of all rows", None: None}[kind.scales]
    facts = {"storage": {"from": bank.dtype, "scales": origin}, "requantised_from": bank.fingerprint}
    with _writer(bank, Path(out), bank.keys, dtype, scales, facts) as writer:
        for start, stop in _missing(writer, progress):
            writer.write(start, bank.floats(np.arange(start, stop, dtype=np.int32)))
        error = _error(bank, kind, scales)
        storage = {**facts["storage"], "error": error}  # type: ignore[dict-item]
        corpus = bank.manifest.corpus
        return writer.finish(
            dropped=bank.manifest.dropped,
            corpus=corpus,
            origins=read_origins(bank.path, corpus) if "sources" in corpus else None,
            donor={"storage": storage},
            index=bank.index,
            files={**tokenizer_files(bank.paths), **dropped_file(bank.dropped_keys()), **sample_file(bank.keys)},
        )


def _error(bank: Bank, kind: Any, scales: FloatArray | None) -> list[float]:
    """Mean distance of up to 4096 rows from what they were, as a share of the mean norm, by tap."""
    rows = np.unique(np.linspace(0, bank.num_rows - 1, min(bank.num_rows, 4096)).astype(np.int32))
    values = bank.floats(rows)
    stored, row_scales = encode(values, kind, scales)
    found = decode(stored, kind, row_scales if kind.scales == "row" else scales)
    error = np.linalg.norm(found - values, axis=2).sum(0) / np.linalg.norm(values, axis=2).sum(0).clip(1e-30)
    return [round(float(each), 6) for each in error]


def _writer(
    bank: Bank, out: Path, keys: Any, dtype: str, scales: FloatArray | None, facts: dict[str, Any]
) -> BankWriter:
    return BankWriter(
        out,
        keys=keys,
        taps=bank.taps,
        value_dim=bank.value_dim,
        dtype=dtype,
        donor={**bank.manifest.donor, **facts},
        tokenizer=bank.manifest.tokenizer,
        scales=scales,
    )


def _missing(writer: BankWriter, progress: Progress | None) -> Iterator[tuple[int, int]]:
    step = max(1, _CHUNK_BYTES // (4 * len(writer.taps) * writer.value_dim))
    for first, last in writer.missing():
        for start in range(first, last, step):
            stop = min(start + step, last)
            yield start, stop
            if progress is not None:
                progress("write", stop, writer.num_rows)


def _steps(bank: Bank, first: int, last: int) -> Iterator[tuple[int, int]]:
    step = max(1, _CHUNK_BYTES // (4 * len(bank.taps) * bank.value_dim))
    for start in range(first, last, step):
        yield start, min(start + step, last)

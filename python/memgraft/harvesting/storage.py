"""What 8 bits cost: channel scales from a first sample of the keys, and the error on other keys, measured and kept.

One process measures, before the first row is written; all others and every resumed run read what it found. So the bytes
depend neither on the number of processes nor on where a kill happened.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memgraft.bank.dtypes import FloatArray, ValueDtype, bf16_to_float, channel_scales, decode, encode, float_to_bf16
from memgraft.bank.files import write_text
from memgraft.bank.locks import open_lock, wait_for_lock
from memgraft.harvesting.packing import IntArray

SAMPLE_ROWS = 2048
HEADROOM = 1.1
"""Channel scales leave room for so many times the sample's largest value; what is larger is clipped, and counted."""
_NAME, _LOCK_NAME = "storage.json", "storage.lock"


@dataclass(frozen=True, kw_only=True)
class Storage:
    """How values are stored in 8 bits."""

    scales: FloatArray | None
    """(taps, value_dim) for types with channel scales."""
    facts: dict[str, Any]
    """What ``bank.json`` says: where scales come from, the error of each tap and the share of clipped values."""


def storage_beside(
    partial: Path,
    dtype: ValueDtype,
    num_rows: int,
    settings: Mapping[str, Any],
    run: Callable[[IntArray], torch.Tensor],
) -> Storage:
    """The storage kept in ``partial``, or measured with ``run`` (states of rows); trivial for types without scales."""
    if dtype.scales is None:
        return Storage(scales=None, facts={})
    path = partial / _LOCK_NAME
    lock = open_lock(path)
    try:
        wait_for_lock(lock, path)
        found = _load(partial / _NAME, settings)
        if found is None:
            found = measure(dtype, num_rows, run)
            scales = None if found.scales is None else found.scales.tolist()
            text = {"settings": dict(settings), "scales": scales, "facts": found.facts}
            write_text(partial / _NAME, json.dumps(text) + "\n")
        return found
    finally:
        os.close(lock)


def _load(path: Path, settings: Mapping[str, Any]) -> Storage | None:
    try:
        found = json.loads(path.read_text())
        if found["settings"] != json.loads(json.dumps(dict(settings))):
            return None
        scales = None if found["scales"] is None else np.array(found["scales"], np.float32)
        return Storage(scales=scales, facts=found["facts"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def measure(dtype: ValueDtype, num_rows: int, run: Callable[[IntArray], torch.Tensor]) -> Storage:
    """Scales from rows all over the bank, errors from other rows between them."""
    spread = np.unique(np.linspace(0, num_rows - 1, min(num_rows, 2 * SAMPLE_ROWS)).astype(np.int64))
    first, second = (spread[::2], spread[1::2]) if len(spread) > 1 else (spread, spread)
    scales, origin = None, "each row's largest value"
    if dtype.scales == "channel":
        scales = (channel_scales(_finite(run(first))) * np.float32(HEADROOM)).astype(np.float32)
        origin = f"largest of {len(first)} sampled rows, {HEADROOM:g} times"
    values = _finite(run(second))
    return Storage(scales=scales, facts={"scales": origin, **storage_error(values, dtype, scales)})


def storage_error(values: FloatArray, dtype: ValueDtype, scales: FloatArray | None) -> dict[str, Any]:
    """The error of ``values [rows, taps, value_dim]`` stored as ``dtype``, and as bf16, by tap; and what is clipped."""
    stored, row_scales = encode(values, dtype, scales)
    found = decode(stored, dtype, row_scales if dtype.scales == "row" else scales)
    norms = np.linalg.norm(values, axis=2).sum(0).clip(1e-30)
    errors = {
        "error": np.linalg.norm(found - values, axis=2).sum(0) / norms,
        "error_bf16": np.linalg.norm(bf16_to_float(float_to_bf16(values)) - values, axis=2).sum(0) / norms,
    }
    facts: dict[str, Any] = {name: [round(float(each), 6) for each in error] for name, error in errors.items()}
    if scales is not None:
        facts["clipped"] = round(float((np.abs(values) > scales * np.float32(127.5)).mean()), 8)
    return {**facts, "error_rows": len(values)}


def _finite(values: torch.Tensor) -> FloatArray:
    """The finite rows of ``values`` as float32; others are refused when they are to be written."""
    array: FloatArray = values.float().numpy()
    return array[np.isfinite(array).all(axis=(1, 2))]

"""Whether a disk and its cores feed a training run: rows per second there are against rows per second needed."""

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from memgraft.bank.bank import Bank
from memgraft.bank.staging import default_threads
from memgraft.distinct import distinct
from memgraft.errors import ArgumentError

_SECONDS = 1.0


def measure_datapath(
    bank: Bank,
    *,
    batch: int,
    hits: float = 0.6,
    tokens_per_second: float | None = None,
    threads: int | None = None,
    evict: bool = False,
    seed: int = 0,
    seconds: float = _SECONDS,
) -> dict[str, Any]:
    """Stages batches whose rows are drawn as often as the keys were counted.

    Args:
        bank: the bank.
        batch: positions per batch.
        hits: share of positions that have a row.
        tokens_per_second: what the training run consumes; adds what it needs and whether it gets it.
        threads: threads of the gather.
        evict: first drop the values from the system's cache, to time cold reads.
        seed: of the draw.
        seconds: time per figure.

    Raises:
        ArgumentError: a batch or share out of range.
        StorageError: a read failed.
    """
    if batch < 1 or not 0 < hits <= 1:
        raise ArgumentError(f"batch {batch}, hits {hits}: expected at least 1 position and a share in (0, 1]")
    if not bank.num_rows:
        raise ArgumentError(f"{bank.path}: expected a bank with rows, found none")
    threads = default_threads() if threads is None else threads
    draw = _drawer(bank, batch, hits, seed)
    cold = _measure_cold(bank, draw, threads, evict=evict)
    batches = [draw() for _ in range(4)]
    unique = [len(distinct(rows[rows >= 0])) for rows in batches]
    num_hits = [int((rows >= 0).sum()) for rows in batches]
    out = np.zeros(max(unique) * bank.bytes_per_row, np.uint8)
    source = np.ones_like(out)
    copy_seconds = _time(lambda _: np.copyto(out, source), batches, seconds)
    dedup_seconds = _time(lambda rows: bank.distinct(rows), batches, seconds)
    for rows in batches:
        bank.stage(rows=rows, out=out, threads=threads)
    stage_seconds = _time(lambda rows: bank.stage(rows=rows, out=out, threads=threads), batches, seconds)
    rows_per_batch = sum(unique) / len(unique)
    facts: dict[str, Any] = {
        "bank": bank.path,
        "bytes_per_row": bank.bytes_per_row,
        "batch": batch,
        "threads": threads,
        "hit_share": sum(num_hits) / (batch * len(batches)),
        "unique_share": sum(unique) / max(1, sum(num_hits)),
        "memcpy_gigabytes_per_second": len(out) / copy_seconds / 1e9,
        "dedup_ids_per_second": round(batch / dedup_seconds),
        "warm_rows_per_second": round(rows_per_batch / stage_seconds),
        "warm_gigabytes_per_second": rows_per_batch * bank.bytes_per_row / stage_seconds / 1e9,
        "warm_milliseconds_per_batch": stage_seconds * 1e3,
        **cold,
        "cold_reader": bank.cold_reader,
    }
    if tokens_per_second is not None:
        needed = tokens_per_second * facts["hit_share"] * facts["unique_share"]
        facts["needed_rows_per_second"] = round(needed)
        facts["needed_gigabytes_per_second"] = needed * bank.bytes_per_row / 1e9
        facts["warm_margin"] = facts["warm_rows_per_second"] / needed
        if cold["cold_rows_per_second"] is not None:
            facts["cold_margin"] = cold["cold_rows_per_second"] / needed
        facts["verdict"] = _verdict(facts["warm_margin"], facts.get("cold_margin"))
    return facts


def _verdict(warm: float, cold: float | None) -> str:
    """What the margins mean for who asks."""
    text = f"rows in memory come {'fast enough' if warm >= 1 else 'TOO SLOWLY'} ({warm:.3g} times what is needed)"
    if cold is None:
        return f"{text}; cold rows were not timed: --evict does"
    way_out = "" if cold >= 1 else ": warm the bank up, hold its head resident, or give it a faster disk"
    return f"{text}, cold rows {'fast enough' if cold >= 1 else 'TOO SLOWLY'} ({cold:.3g} times){way_out}"


def _drawer(bank: Bank, batch: int, hits: float, seed: int) -> Callable[[], npt.NDArray[np.int32]]:
    """Draws rows by the counts of their keys, and misses."""
    generator = np.random.default_rng(seed)
    sums = np.cumsum(bank.keys.arrays().counts, dtype=np.float64)

    def draw() -> npt.NDArray[np.int32]:
        rows = np.searchsorted(sums, generator.random(batch) * sums[-1], side="right").astype(np.int32)
        rows = np.minimum(rows, bank.num_rows - 1)
        drawn: npt.NDArray[np.int32] = np.where(generator.random(batch) < hits, rows, np.int32(-1))
        return drawn

    return draw


def _measure_cold(
    bank: Bank, draw: Callable[[], npt.NDArray[np.int32]], threads: int, *, evict: bool
) -> dict[str, Any]:
    """The first batch, as the system's cache is found or after it was emptied of the values."""
    if evict:
        for path in (layer.path / shard.file for layer in bank.layers for shard in layer.manifest.shards):
            file = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(file)
    facts = bank.stage(rows=draw(), threads=threads).facts
    # A few cold rows among many warm ones say nothing about the disk.
    rate = round(facts.num_cold_rows / facts.seconds) if 2 * facts.num_cold_rows > facts.num_unique else None
    return {
        "first_batch_cold_rows": facts.num_cold_rows,
        "first_batch_milliseconds": facts.seconds * 1e3,
        "cold_rows_per_second": rate,
    }


def _time(call: Callable[[Any], Any], batches: list[Any], seconds: float) -> float:
    """The median time of ``call`` over the batches in turn."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < 3 or (time.perf_counter() < end and len(taken) < 1000):
        started = time.perf_counter()
        call(batches[len(taken) % len(batches)])
        taken.append(time.perf_counter() - started)
    return float(np.median(taken))

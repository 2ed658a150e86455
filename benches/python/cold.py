"""Rows of a file that is not in the page cache: staged reads beside one page fault at a time.

Every contender reads rows that nobody read before in this run, and the file is dropped from the cache before each.
"""

import contextlib
import mmap
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from banks import make_bank, raw_values, shard_files
from contest import Contender, check_equal, contest
from settings import Settings, main

from memgraft import Bank, KeySet


def drop(file: Path) -> None:
    """Take ``file`` out of the page cache; pages that someone has mapped and touched stay."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def read_bytes() -> int:
    """Bytes that this process made the device deliver."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/io").read_text().splitlines():
            if line.startswith("read_bytes:"):
                return int(line.split()[1])
    return 0


def group(settings: Settings) -> dict[str, Any]:
    row_bytes, num_rows, num_asked = (4096, 20_000, 500) if settings.quick else (4096, 500_000, 8_000)
    keys = KeySet.open(settings.keys)
    num_rows = min(num_rows, len(keys))
    path = settings.scratch_path / "cold"
    make_bank(path, keys.select(np.arange(num_rows)), row_bytes)
    rng = np.random.default_rng(2)
    rows = np.sort(rng.permutation(num_rows)[:num_asked]).astype(np.int32)
    shuffled = rng.permutation(rows)
    out = np.empty((num_asked, 1, row_bytes // 2), np.uint16)
    held: dict[str, Any] = {}
    amplification: dict[str, list[float]] = {}

    def cold(name: str, run: Any, prepare: Any) -> Contender:
        def before() -> None:
            held.clear()  # unmaps what the last one touched
            bank = Bank.open(path)
            (file,) = shard_files(bank)
            drop(file)
            prepare(bank)

        def counted() -> None:
            start = read_bytes()
            run()
            amplification.setdefault(name, []).append((read_bytes() - start) / (num_asked * row_bytes))

        return Contender(name, num_asked, counted, before)

    def map_plainly(bank: Bank, advice: int | None = None) -> None:
        held["raw"] = raw_values(bank)
        if advice is not None:
            held["raw"]._mmap.madvise(advice)

    def keep(bank: Bank) -> None:
        held["bank"] = bank

    def keep_uring(_: Bank) -> None:
        held["bank"] = Bank.open(path, cold_reader="io_uring")
        drop(shard_files(held["bank"])[0])

    def fault() -> None:
        raw = held["raw"]
        for i, row in enumerate(shuffled.tolist()):
            out[i, 0] = raw[row]

    def stage(threads: int) -> None:
        held["bank"].stage(rows=shuffled, out=out, threads=threads)

    contenders = [
        cold("stage, 2 threads", lambda: stage(2), keep),
        cold("stage, 1 thread", lambda: stage(1), keep),
        cold("stage, io_uring", lambda: stage(1), keep_uring),
        cold("page faults, MADV_RANDOM", fault, lambda bank: map_plainly(bank, mmap.MADV_RANDOM)),
        cold("page faults, default readahead", fault, map_plainly),
    ]
    for one in contenders:
        assert one.before is not None
        one.before()
        out.fill(0xFFFF)
        one.run()
        reference = np.array(raw_values(Bank.open(path))[rows if one.name.startswith("stage") else shuffled])
        check_equal(one.name, reference, out[:, 0])
    amplification.clear()
    timings = contest(contenders, min(settings.rounds, 3), warm=False)
    held.clear()
    shutil.rmtree(path)
    return {
        "unit": "row",
        "row_bytes": row_bytes,
        "num_rows": num_rows,
        "num_asked": num_asked,
        "read_amplification": {name: float(np.median(values)) for name, values in amplification.items()},
        "timings": timings,
    }


if __name__ == "__main__":
    main(group)

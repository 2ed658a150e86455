"""Rows to a staging buffer, warm: the native gather beside memcpy, torch, numpy and engramdb's store.

Two comparisons. *Distinct rows*: everyone copies the same list of different rows; uniform ones are the worst case,
those of a batch of real text the usual one. *A batch*: everyone gets the rows of all positions of a batch of real text,
as a trainer has them, and leaves what the forward pass needs: `stage` removes duplicates and reuses its memory, a
plain memmap or tensor does neither unless its user does. The bench binary adds what one core could do at most: rows
read with nothing written, and written with nothing read.
"""

import ctypes
import json
import shutil
import subprocess
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from banks import make_bank, raw_values, shard_files, values_offset
from contest import Contender, check_equal, contest
from settings import Settings, main

from memgraft import Bank, KeySet
from memgraft._core import ValueTable

with suppress(ImportError):
    import engramdb


def gather_contest(settings: Settings, bank: Bank, rows: np.ndarray) -> list[dict[str, Any]]:
    """Distinct ``rows`` of ``bank``: nanoseconds a row, everyone into memory that was there before."""
    files = shard_files(bank)
    mapped, resident = ValueTable.open(files, 0, 1), ValueTable.open(files, bank.num_rows, 1)
    raw = raw_values(bank)
    table = np.array(raw)
    tensor, ids = torch.from_numpy(table), torch.from_numpy(rows.astype(np.int64))
    expected = table[rows]
    source = expected.copy()

    def buffer() -> np.ndarray:
        return np.full((len(rows), bank.value_dim), 0xFFFF, np.uint16)

    outs: dict[str, np.ndarray] = {}

    def into(name: str) -> np.ndarray:
        return outs.setdefault(name, buffer())

    def native(name: str, one: ValueTable, threads: int) -> Contender:
        out = into(name).reshape(-1).view(np.uint8)
        return Contender(name, len(rows), lambda: one.gather(rows, out, threads))

    copied = into("memcpy")
    staged_out, selected = into("bank.stage(rows=…, out=…)"), torch.from_numpy(into("torch.index_select(out=)"))
    contenders = [
        Contender("memcpy", len(rows), lambda: ctypes.memmove(copied.ctypes.data, source.ctypes.data, source.nbytes)),
        Contender("numpy.copyto", len(rows), lambda: np.copyto(into("numpy.copyto"), source)),
        native("gather", mapped, 1),
        native("gather, 2 threads", mapped, 2),
        native("gather, resident", resident, 1),
        Contender(
            "bank.stage(rows=…, out=…)",
            len(rows),
            lambda: bank.stage(rows=rows, out=staged_out, threads=1),
        ),
        Contender(
            "torch.index_select(out=)",
            len(rows),
            lambda: torch.index_select(tensor, 0, ids, out=selected),
        ),
        Contender("numpy.take(out=)", len(rows), lambda: np.take(table, rows, 0, into("numpy.take(out=)"), "clip")),
        Contender("torch table[ids], fresh", len(rows), lambda: tensor[ids]),
        Contender("numpy memmap[rows]", len(rows), lambda: raw[rows]),
    ]
    check_equal("torch table[ids], fresh", expected, tensor[ids].numpy())
    if "engramdb" in globals():
        contenders.append(engramdb_store(settings, bank, rows, expected))
    for one in contenders:
        one.run()
    for name, out in outs.items():
        # `stage` gives rows in ascending order; everyone else in the order asked.
        check_equal(name, table[np.sort(rows)] if name.startswith("bank.stage") else expected, out)
    return contest(contenders, settings.rounds)


def batch_contest(settings: Settings, bank: Bank, found: np.ndarray) -> list[dict[str, Any]]:
    """The rows ``found`` (-1 = miss) at all positions of a batch: nanoseconds a position."""
    raw = raw_values(bank)
    table = torch.from_numpy(np.array(raw))
    flat = found.reshape(-1)
    hits = flat[flat >= 0].astype(np.int64)
    ids = torch.from_numpy(hits)
    unique, inverse = np.unique(hits, return_inverse=True)
    out = np.zeros((len(unique), 1, bank.value_dim), np.uint16)

    def memmap_distinct() -> tuple[np.ndarray, np.ndarray]:
        rows, places = np.unique(hits, return_inverse=True)
        return raw[rows], places

    staged = bank.stage(rows=found, out=out, threads=1)
    check_equal("stage", raw[unique], staged.values[:, 0])
    check_equal("stage, inverse", inverse, staged.inverse.reshape(-1)[flat >= 0])
    return contest(
        [
            Contender("stage a batch", flat.size, lambda: bank.stage(rows=found, out=out, threads=1)),
            Contender("numpy memmap[rows of all hits]", flat.size, lambda: raw[hits]),
            Contender("numpy.unique, then memmap[rows]", flat.size, memmap_distinct),
            Contender("torch table[rows of all hits]", flat.size, lambda: table[ids]),
        ],
        settings.rounds,
    )


def engramdb_store(settings: Settings, bank: Bank, rows: np.ndarray, expected: np.ndarray) -> Contender:
    """The same rows in engramdb's layout: bare fixed-width rows, one shard."""
    folder = settings.scratch_path / "engramdb"
    folder.mkdir(parents=True, exist_ok=True)
    (file,) = shard_files(bank)
    with file.open("rb") as source, (folder / "shard_000.bin").open("wb") as target:
        source.seek(values_offset(bank))
        shutil.copyfileobj(source, target, 16 << 20)
    store = engramdb.Store(str(folder), shards=1, rows_per_shard=bank.num_rows, width=bank.bytes_per_row)
    listed = rows.tolist()
    found = np.frombuffer(store.fetch(listed), np.uint16).reshape(expected.shape)
    check_equal("engramdb Store.fetch", expected, found)
    return Contender("engramdb Store.fetch", len(rows), lambda: store.fetch(listed))


def group(settings: Settings) -> dict[str, Any]:
    torch.set_num_threads(1)
    keys = KeySet.open(settings.keys)
    text = np.fromfile(f"{settings.corpus}.bin", dtype=np.uint16)[-(1 << 16) :].reshape(-1, 2048)
    report: dict[str, Any] = {"unit": "row", "rows": {}}
    table_bytes, batch_bytes = (64 << 20, 8 << 20) if settings.quick else (1 << 30, 64 << 20)
    for row_bytes in (1024, 4096, 16384):
        num_rows = min(table_bytes // row_bytes, len(keys))
        path = settings.scratch_path / f"gather-{row_bytes}"
        bank = make_bank(path, keys.select(np.arange(num_rows)), row_bytes)
        rng = np.random.default_rng(1)
        rows = rng.permutation(num_rows)[: batch_bytes // row_bytes].astype(np.int32)
        timings = gather_contest(settings, bank, rows)
        report["rows"][str(row_bytes)] = {"uniform": timings, "num_rows": num_rows, "num_asked": len(rows)}
        command = [
            settings.binary,
            "rows",
            "--shard",
            *shard_files(bank),
            "--asked",
            len(rows),
            "--rounds",
            settings.rounds,
        ]
        alone = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
        report["rows"][str(row_bytes)]["read or written alone"] = json.loads(alone.stdout)["timings"]
        if row_bytes == 4096:
            found, _ = bank.lookup(text, threads=1)
            unique = np.unique(found[found >= 0]).astype(np.int32)
            report["rows"]["4096"]["text"] = gather_contest(settings, bank, unique)
            report["rows"]["4096"]["batch"] = batch_contest(settings, bank, found)
            report["unique_per_token"] = len(unique) / text.size
        del bank
        for name in (path.name, "engramdb"):
            shutil.rmtree(settings.scratch_path / name, ignore_errors=True)
    report["dedup"] = dedup_contest(settings, keys, text)
    return report


def dedup_contest(settings: Settings, keys: KeySet, text: np.ndarray) -> list[dict[str, Any]]:
    """Distinct rows and inverse of a batch of 64 k positions: nanoseconds a position."""
    small = keys.select(np.arange(min(200_000, len(keys))))
    bank = make_bank(settings.scratch_path / "dedup", small, 64)
    table = ValueTable.open(shard_files(bank), 0, 1)
    rows, _ = bank.lookup(text, threads=1)
    flat, nowhere = rows.reshape(-1), np.empty(0, np.uint8)
    unique, inverse, num_hits, facts = table.stage(flat, nowhere, 1)
    assert facts is None, "expected nothing gathered into an empty buffer"
    numpy_unique, numpy_inverse = np.unique(flat[flat >= 0], return_inverse=True)
    check_equal("dedup, rows", numpy_unique, unique)
    check_equal("dedup, inverse", numpy_inverse, inverse[flat >= 0])
    hits = torch.from_numpy(flat[flat >= 0])
    return contest(
        [
            Contender("dedup + inverse", len(flat), lambda: table.stage(flat, nowhere, 1)),
            Contender("numpy.unique", num_hits, lambda: np.unique(flat[flat >= 0], return_inverse=True)),
            Contender("torch.unique", num_hits, lambda: torch.unique(hits, return_inverse=True)),
        ],
        settings.rounds,
    )


if __name__ == "__main__":
    main(group)

"""A training loader: shipping ids and gathering in the trainer's process, beside shipping the rows themselves.

Also what a trainer sees: its wait for memory while each step computes for 100 ms.
"""

import shutil
import time
from typing import Any

import numpy as np
import torch
from banks import make_bank, shard_files
from contest import Contender, WrongAnswer, check_equal, contest
from settings import Settings, main
from torch.utils.data import DataLoader, Dataset

from memgraft import Bank, KeySet
from memgraft._core import ValueTable
from memgraft.data import KEY, GraftCollator, MemoryBatch, StagingRing, prefetch

LENGTH = 2048
BATCH = 16
STEP_SECONDS = 0.1


class Text(Dataset):
    """Windows of the corpus in random order, as a trainer's sampler gives them: neighbours would share their rows."""

    def __init__(self, corpus: str, num_windows: int) -> None:
        tokens = np.fromfile(f"{corpus}.bin", dtype=np.uint16)
        windows = tokens[: len(tokens) // LENGTH * LENGTH].reshape(-1, LENGTH)
        chosen = np.random.default_rng(0).permutation(len(windows))[:num_windows]
        self.windows = torch.from_numpy(windows[chosen].astype(np.int64))

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.windows[at]}


class Plain:
    """The loader that a memory is added to."""

    def __call__(self, features: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.stack([one["input_ids"] for one in features])}


class ShipRows:
    """The obvious way: the worker gathers, the loader carries each distinct row to the trainer's process."""

    def __init__(self, bank: Bank) -> None:
        self.bank = bank

    def __call__(self, features: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        input_ids = torch.stack([one["input_ids"] for one in features])
        staged = self.bank.stage(input_ids.numpy(), threads=1)
        return {
            "input_ids": input_ids,
            "values": torch.from_numpy(staged.values.view(np.int16)),
            "inverse": torch.from_numpy(staged.inverse),
        }


def group(settings: Settings) -> dict[str, Any]:
    torch.set_num_threads(1)
    # Many batches: a pass starts with an empty pipeline, a training run does so once.
    row_bytes, num_rows, num_batches = (1024, 20_000, 4) if settings.quick else (4096, 1_000_000, 96)
    keys = KeySet.open(settings.keys)
    bank = make_bank(settings.scratch_path / "loader", keys.select(np.arange(min(num_rows, len(keys)))), row_bytes)
    text = Text(settings.corpus, num_batches * BATCH)
    num_batches = len(text) // BATCH
    found = [bank.lookup(text.windows[i : i + BATCH].numpy(), threads=1)[0] for i in range(0, len(text), BATCH)]
    expected = [bank.distinct(rows) for rows in found]
    moved = sum(unique.size for unique, _ in expected) * bank.bytes_per_row
    table = ValueTable.open(shard_files(bank), 0, 1)
    buffer = np.zeros(max(unique.size for unique, _ in expected) * bank.bytes_per_row, np.uint8)

    def loader(collate: Any) -> DataLoader:
        return DataLoader(text, batch_size=BATCH, num_workers=1, collate_fn=collate, persistent_workers=True)

    ships_rows = loader(ShipRows(bank))
    ships_ids = {mode: loader(GraftCollator(bank, mode=mode)) for mode in ("ids", "handle")}
    plain = loader(Plain())
    ring, ring_ahead = StagingRing(3), StagingRing(6)

    def gather_alone() -> None:
        for unique, _ in expected:
            table.gather(unique, buffer[: unique.size * bank.bytes_per_row], 1)

    def drain() -> None:
        for batch in plain:
            assert "input_ids" in batch

    def consume_rows() -> None:
        for batch in ships_rows:
            assert batch["values"].dtype == torch.int16

    def consume_ids(mode: str) -> None:
        for batch in ships_ids[mode]:
            memory = MemoryBatch.wrap(batch[KEY]).stage(bank, ring, threads=1)
            assert memory.staged

    def consume_prefetched(mode: str) -> None:
        for batch in prefetch(ships_ids[mode], bank, depth=3, threads=1, ring=ring_ahead):
            assert batch[KEY].staged

    for batch, (unique, inverse) in zip(ships_rows, expected, strict=True):
        check_equal("loader ships rows", bank.values(unique).view(np.int16), batch["values"].numpy())
        check_equal("loader ships rows, inverse", inverse, batch["inverse"].numpy())
    for mode in ships_ids:
        for batch, (unique, inverse) in zip(prefetch(ships_ids[mode], bank, threads=1), expected, strict=True):
            values = batch[KEY].values.view(torch.int16).numpy()
            check_equal(f"loader ships {mode}", bank.values(unique).view(np.int16), values)
            check_equal(f"loader ships {mode}, inverse", inverse, batch[KEY].inverse.numpy())
    timings = contest(
        [
            Contender("gather alone", moved / 1024, gather_alone),
            Contender("loader ships ids, 1 worker", moved / 1024, lambda: consume_ids("ids")),
            Contender("loader ships a handle, 1 worker", moved / 1024, lambda: consume_ids("handle")),
            Contender("loader ships ids, prefetch", moved / 1024, lambda: consume_prefetched("ids")),
            Contender("loader ships a handle, prefetch", moved / 1024, lambda: consume_prefetched("handle")),
            Contender("loader without a memory, 1 worker", moved / 1024, drain),
            Contender("loader ships rows, 1 worker", moved / 1024, consume_rows),
        ],
        settings.rounds,
    )
    waits = trainer_wait(ships_ids["ids"], bank)
    shutil.rmtree(bank.path)
    return {
        "unit": "KiB of values",
        "row_bytes": row_bytes,
        "tokens_per_batch": BATCH * LENGTH,
        "mib_per_batch": moved / num_batches / 2**20,
        "timings": timings,
        "trainer": waits,
    }


def trainer_wait(loader: DataLoader, bank: Bank) -> dict[str, float]:
    """Steps that compute for 100 ms in torch, which holds no GIL then; the share spent waiting for batches."""
    matrix = torch.randn(512, 512)
    waited, computed = [], []
    batches = iter(prefetch(loader, bank, depth=3, threads=1))
    while True:
        began = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            break
        waited.append(time.perf_counter() - began)
        if not batch[KEY].staged:
            raise WrongAnswer("prefetch gave a batch whose memory is not staged")
        began = time.perf_counter()
        while time.perf_counter() - began < STEP_SECONDS:
            torch.mm(matrix, matrix)
        computed.append(time.perf_counter() - began)
    # The first batches start the pipeline; what is asked for is the steady state.
    waited, computed = waited[2:], computed[2:]
    share = sum(waited) / (sum(waited) + sum(computed))
    return {
        "step_ms": 1e3 * STEP_SECONDS,
        "steps": len(waited),
        "wait_share": share,
        "wait_ms_worst": 1e3 * max(waited),
    }


if __name__ == "__main__":
    main(group)

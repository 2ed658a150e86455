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
    """Windows of the corpus."""

    def __init__(self, corpus: str, num_windows: int) -> None:
        tokens = np.fromfile(f"{corpus}.bin", dtype=np.uint16)[-num_windows * LENGTH :]
        self.windows = torch.from_numpy(tokens.astype(np.int64)).view(num_windows, LENGTH)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.windows[at]}


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
    row_bytes, num_rows, num_batches = (1024, 20_000, 4) if settings.quick else (4096, 250_000, 16)
    keys = KeySet.open(settings.keys)
    bank = make_bank(settings.scratch_path / "loader", keys.select(np.arange(min(num_rows, len(keys)))), row_bytes)
    text = Text(settings.corpus, num_batches * BATCH)
    staged = [bank.stage(text.windows[i : i + BATCH].numpy(), threads=1) for i in range(0, len(text), BATCH)]
    moved = sum(one.values.nbytes for one in staged)
    table = ValueTable.open(shard_files(bank), 0, 1)
    buffer = np.empty(max(one.values.nbytes for one in staged), np.uint8)

    def loader(collate: Any) -> DataLoader:
        return DataLoader(text, batch_size=BATCH, num_workers=1, collate_fn=collate, persistent_workers=True)

    ships_rows = loader(ShipRows(bank))
    ships_ids = {mode: loader(GraftCollator(bank, mode=mode)) for mode in ("ids", "handle")}
    ring = StagingRing(3)

    def gather_alone() -> None:
        for one in staged:
            table.gather(one.rows, buffer[: one.values.nbytes], 1)

    def take_rows() -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(batch["values"], batch["inverse"]) for batch in ships_rows]

    def consume_rows() -> None:
        for batch in ships_rows:
            assert batch["values"].dtype == torch.int16

    def consume_ids(mode: str) -> None:
        for batch in ships_ids[mode]:
            memory = MemoryBatch.wrap(batch[KEY]).stage(bank, ring, threads=1)
            assert memory.staged

    def consume_prefetched() -> None:
        for batch in prefetch(ships_ids["ids"], bank, depth=3, threads=1, ring=StagingRing(4)):
            assert batch[KEY].staged

    for (values, inverse), expected in zip(take_rows(), staged, strict=True):
        check_equal("loader ships rows", expected.values.view(np.int16), values.numpy())
        check_equal("loader ships rows, inverse", expected.inverse, inverse.numpy())
    for batch, expected in zip(prefetch(ships_ids["ids"], bank, depth=1, threads=1), staged, strict=True):
        check_equal("loader ships ids", expected.values, batch[KEY].values.view(torch.int16).numpy().view(np.uint16))
        check_equal("loader ships ids, inverse", expected.inverse, batch[KEY].inverse.numpy())
    timings = contest(
        [
            Contender("gather alone", moved / 1024, gather_alone),
            Contender("loader ships ids, 1 worker", moved / 1024, lambda: consume_ids("ids")),
            Contender("loader ships a handle, 1 worker", moved / 1024, lambda: consume_ids("handle")),
            Contender("loader ships ids, prefetch", moved / 1024, consume_prefetched),
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

"""Staging with real streams: what the trainer reads is what was staged, and copies run beside the computation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from grafted_models import prompts
from memgraft.bank import Bank
from memgraft.data import GraftCollator, HotRows, StagingRing, prefetch


class Texts(Dataset):
    def __init__(self, count: int, length: int = 64) -> None:
        self.ids = prompts(count, length, seed=4)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[number]}


def expected_values(bank: Any, ids: torch.Tensor) -> np.ndarray:
    """Value of each position, zero at a miss: the slow twin."""
    rows, _ = bank.index.lookup(ids.cpu().numpy())
    table = np.concatenate(
        [bank.floats(np.arange(bank.num_rows)), np.zeros((1, *bank.floats([0]).shape[1:]), np.float32)]
    )
    return table[rows]


@pytest.mark.parametrize("hot", [None, 40, 1000])
@pytest.mark.parametrize("depth", [1, 3])
def test_slots_are_used_again_only_after_their_copies(depth: int, hot: int | None, stored: Any) -> None:
    loader = DataLoader(Texts(400), batch_size=8, collate_fn=GraftCollator(stored), num_workers=0)
    ring = StagingRing(depth + 1)
    assert ring.pinned
    ahead = prefetch(loader, stored, device="cuda", depth=depth, ring=ring, hot_rows=hot)
    load = torch.randn(2048, 2048, device="cuda")
    kept = []
    for batch in ahead:
        # The compute stream is kept behind, so that copies, slots and batches overlap.
        for _ in range(4):
            load = (load @ load).clamp(-1, 1)
        memory = batch["memgraft"]
        floats = memory.floats()
        zeros = torch.zeros(1, *floats.shape[1:], device="cuda")
        kept.append((batch["input_ids"], torch.cat([floats, zeros])[memory.inverse.long()].clone()))
    torch.cuda.synchronize()
    for ids, values in kept:
        np.testing.assert_array_equal(values.cpu().numpy(), expected_values(stored, ids))
    del memory, batch, floats
    assert ring.num_leased == 0


def test_copies_overlap_the_computation(tmp_path: Any) -> None:
    from grafted_models import make_bank

    # Rows large enough that a copy takes a while beside a step's products.
    bank = make_bank(tmp_path / "bank", num=2000, value_dim=4096, dtype="bf16")
    loader = DataLoader(Texts(96, 512), batch_size=8, collate_fn=GraftCollator(bank))
    load = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as trace:
        for batch in prefetch(loader, bank, device="cuda", depth=2):
            # Longer than staging a batch takes, or the copies come after the computation.
            for _ in range(200):
                load = load @ load * 1e-3
            batch["memgraft"].values.sum()
        torch.cuda.synchronize()
    spans: dict[str, list[tuple[int, int]]] = {"copy": [], "compute": []}
    for event in trace.profiler.kineto_results.events():
        if event.device_type() != torch.autograd.DeviceType.CUDA:
            continue
        name = event.name()
        span = (event.start_ns(), event.start_ns() + event.duration_ns())
        if "HtoD" in name and event.duration_ns() > 20_000:
            spans["copy"].append(span)
        elif "gemm" in name.lower() or "nvjet" in name.lower() or "cutlass" in name.lower():
            spans["compute"].append(span)
    assert len(spans["copy"]) >= 8
    assert spans["compute"]
    beside = sum(any(c[0] < k[1] and k[0] < c[1] for k in spans["compute"]) for c in spans["copy"])
    # The first batches have nothing to run beside.
    assert beside >= len(spans["copy"]) // 2, (beside, len(spans["copy"]))


def in_another_process(hot: HotRows, path: str, results: Any) -> None:
    bank = Bank.open(path)
    loader = DataLoader(Texts(64), batch_size=8, collate_fn=GraftCollator(bank))
    ahead = prefetch(loader, bank, device="cuda", hot_rows=hot)
    sums = [float(batch["memgraft"].floats().double().sum()) for batch in ahead]
    results.put((sums, hot.shared, ahead.facts.hot_bytes, ahead.facts.num_hot_rows))


def test_processes_share_the_hot_rows(stored: Any) -> None:
    loader = DataLoader(Texts(64), batch_size=8, collate_fn=GraftCollator(stored))
    ahead = prefetch(loader, stored, device="cuda", hot_rows=100)
    expected = [float(batch["memgraft"].floats().double().sum()) for batch in ahead]
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    others = [context.Process(target=in_another_process, args=(ahead.hot, str(stored.path), results)) for _ in "ab"]
    for other in others:
        other.start()
    for _ in others:
        sums, shared, hot_bytes, num_hot_rows = results.get(timeout=120)
        assert sums == expected
        assert (shared, hot_bytes) == (True, 0)
        assert num_hot_rows == ahead.facts.num_hot_rows > 0
    for other in others:
        other.join(60)
        assert other.exitcode == 0


def test_pinned_and_moved(bank: Any) -> None:
    batch = next(iter(DataLoader(Texts(8), batch_size=8, collate_fn=GraftCollator(bank), pin_memory=True)))
    memory = batch["memgraft"]
    assert {name for name in ("rows", "orders", "segments") if not getattr(memory, name).is_pinned()} == set()
    moved = memory.stage(bank).to("cuda", non_blocking=True)
    torch.cuda.synchronize()
    np.testing.assert_array_equal(
        torch.cat([moved.floats().cpu(), torch.zeros(1, *moved.values.shape[1:])])[moved.inverse.long().cpu()].numpy(),
        expected_values(bank, batch["input_ids"]),
    )

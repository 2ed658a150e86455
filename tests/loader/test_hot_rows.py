"""Rows kept on the device: the same batches, fewer bytes; one copy for several processes."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from test_collate import Examples  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from memgraft.bank import Bank  # noqa: E402
from memgraft.data import GraftCollator, HotRows, MemoryBatch, StagingRing, prefetch  # noqa: E402
from memgraft.errors import ConfigError, FingerprintError  # noqa: E402

DTYPES = ["bf16", "fp16", "fp32", "fp8_e4m3", "int8"]


@pytest.fixture(scope="module", params=DTYPES)
def bank(request, tmp_path_factory):
    from bank_cases import bank_maker

    return bank_maker(tmp_path_factory.mktemp("hot"))(120, dtype=request.param)


def same(found, expected):
    assert (found.values.dtype, found.values.shape) == (expected.values.dtype, expected.values.shape)
    assert torch.equal(found.values.view(torch.uint8), expected.values.view(torch.uint8))
    assert torch.equal(found.inverse, expected.inverse)
    assert torch.equal(found.misses, expected.misses)
    assert (found.scales is None) == (expected.scales is None)
    if found.scales is not None:
        assert torch.equal(found.scales, expected.scales)


@given(rows=st.lists(st.integers(-1, 119), max_size=40), count=st.integers(0, 130))
def test_join_is_staging_without_hot_rows(bank, rows, count):
    found = torch.tensor([rows], dtype=torch.int32)
    batch = MemoryBatch(rows=found, orders=(found >= 0).to(torch.uint8), segments=torch.zeros_like(found))
    hot, ring = HotRows.load(bank, count, "cpu"), StagingRing(1)
    assert len(hot) == min(count, 120)
    cold, taken = hot.stage(batch, bank, ring)
    expected = batch.stage(bank)
    same(hot.join(cold, taken), expected)
    distinct = {row for row in rows if row >= 0}
    assert cold.facts.num_hot_rows == len(taken) == sum(row < count for row in distinct)
    assert cold.facts.num_unique == len(distinct) == expected.facts.num_unique
    assert cold.facts.num_bytes == sum(row >= count for row in distinct) * bank.bytes_per_row
    assert (cold.facts.num_hits, cold.facts.num_positions) == (sum(row >= 0 for row in rows), len(rows))


@pytest.mark.parametrize("mode", ["handle", "ids"])
@pytest.mark.parametrize("hot", [1, 40, 10_000])
def test_loader_gives_the_same_batches(bank, mode, hot):
    def loader():
        return DataLoader(Examples(24), batch_size=4, collate_fn=GraftCollator(bank, mode=mode))

    plain, kept = prefetch(loader(), bank), prefetch(loader(), bank, device="cpu", hot_rows=hot)
    for expected, found in zip(plain, kept, strict=True):
        same(found["memgraft"], expected["memgraft"])
    assert kept.facts.num_hot_rows > 0
    assert kept.facts.num_bytes == plain.facts.num_bytes - kept.facts.num_hot_rows * bank.bytes_per_row
    assert kept.facts.num_unique == plain.facts.num_unique
    # One copy serves another loader.
    again = prefetch(loader(), bank, device="cpu", hot_rows=kept.hot)
    assert again.hot is kept.hot
    assert kept.hot.num_bytes >= len(kept.hot) * bank.bytes_per_row


def read_elsewhere(hot, path, results):
    """Another process: batches through rows that it did not load, then one byte of them written over."""
    with Bank.open(path) as bank:
        loader = DataLoader(Examples(8), batch_size=4, collate_fn=GraftCollator(bank))
        kept = prefetch(loader, bank, device=hot.device, hot_rows=hot)
        digest = [batch["memgraft"].floats().double().sum().item() for batch in kept]
        facts = (hot.shared, kept.facts.hot_bytes, kept.facts.num_hot_rows, kept.facts.num_bytes)
    hot.values.view(torch.uint8)[-1, 0, 0] += 1
    results.put((digest, facts))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "fp8_e4m3"])
def test_another_process_reads_the_same_copy(make_bank, dtype):
    bank = make_bank(120, dtype=dtype)
    loader = DataLoader(Examples(8), batch_size=4, collate_fn=GraftCollator(bank))
    kept = prefetch(loader, bank, device="cpu", hot_rows=40)
    expected = [batch["memgraft"].floats().double().sum().item() for batch in kept]
    assert kept.facts.hot_bytes == kept.hot.num_bytes > 0
    assert not kept.hot.shared
    before = int(kept.hot.values.view(torch.uint8)[-1, 0, 0])
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    other = context.Process(target=read_elsewhere, args=(kept.hot, str(bank.path), results))
    other.start()
    digest, (shared, hot_bytes, num_hot_rows, num_bytes) = results.get(timeout=120)
    other.join(60)
    assert other.exitcode == 0
    assert digest == expected
    assert (shared, hot_bytes) == (True, 0)
    assert (num_hot_rows, num_bytes) == (kept.facts.num_hot_rows, kept.facts.num_bytes)
    # What the other process wrote is here: one memory, no copy.
    assert int(kept.hot.values.view(torch.uint8)[-1, 0, 0]) == (before + 1) % 256


def test_a_copy_of_a_loader_has_no_rows_of_its_own(make_bank):
    hot = HotRows.load(make_bank(50), 5, "cpu")
    assert copy.deepcopy({"hot": hot})["hot"] is hot


def test_what_is_refused(make_bank, tmp_path):
    bank = make_bank(50)
    loader = DataLoader(Examples(4), batch_size=4, collate_fn=GraftCollator(bank))
    with pytest.raises(ConfigError, match="expected device="):
        prefetch(loader, bank, hot_rows=3)
    with pytest.raises(ConfigError, match="hot_rows -1"):
        prefetch(loader, bank, device="cpu", hot_rows=-1)
    kept = HotRows.load(bank, 5, "cpu")
    with pytest.raises(ConfigError, match="expected meta"):
        prefetch(loader, bank, device="meta", hot_rows=kept)
    from bank_cases import bank_maker

    other = bank_maker(tmp_path / "other")(60, values=np.ones((60, 2, 24), np.float32))
    with pytest.raises(ConfigError, match="rows of bank"):
        prefetch(loader, other, device="cpu", hot_rows=kept)
    batch = next(iter(loader))["memgraft"]
    with pytest.raises(FingerprintError, match="the batch's rows are of bank"):
        HotRows.load(other, 5, "cpu").stage(batch, other, StagingRing(1))

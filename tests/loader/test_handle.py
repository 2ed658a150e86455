import copy
import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader  # noqa: E402

from memgraft import Cursor  # noqa: E402
from memgraft.data import GraftCollator, MemoryBatch, prefetch  # noqa: E402
from memgraft.data.handle import ShippedIds  # noqa: E402
from memgraft.data.segments import from_batch  # noqa: E402
from memgraft.errors import ArgumentError, GraftError  # noqa: E402
from memgraft.torch import Telemetry  # noqa: E402


@pytest.fixture
def memory(make_bank):
    bank = make_bank(200)
    ids = torch.randint(0, 50, (2, 30), generator=torch.Generator().manual_seed(0))
    return bank, MemoryBatch.look_up(bank, ids, from_batch({"input_ids": ids}))


def test_look_up_is_the_index(memory):
    bank, found = memory
    assert (found.rows.dtype, found.orders.dtype, found.segments.dtype) == (torch.int32, torch.uint8, torch.int32)
    assert found.rows.shape == found.orders.shape == found.segments.shape == (2, 30)
    assert not found.staged
    assert bool(found.hit.any())
    with pytest.raises(GraftError, match="not staged"):
        found.floats()
    hits = int(found.hit.sum())
    assert repr(found) == f"MemoryBatch((2, 30), {hits} hits, not staged)"
    staged = found.stage(bank)
    assert repr(staged) == f"MemoryBatch((2, 30), {hits} hits, {len(staged.values)} distinct rows, torch.bfloat16)"
    assert staged.values.dtype == torch.bfloat16
    place = staged.inverse[found.hit].long()
    expected = torch.from_numpy(bank.floats(found.rows[found.hit].numpy()))
    torch.testing.assert_close(staged.floats()[place], expected, rtol=0, atol=0)
    assert (staged.inverse[~found.hit] == -1).all()


def test_padding_is_a_miss_whatever_its_id(make_bank):
    bank = make_bank(200)
    ids = torch.tensor([[1, 2, 3, -100, 10**6]])
    found = MemoryBatch.look_up(bank, ids, torch.tensor([[0, 0, 0, -1, -1]], dtype=torch.int32))
    assert found.rows[0, 3:].tolist() == [-1, -1]
    assert found.orders[0, 3:].tolist() == [0, 0]
    assert (found.rows[0, :3] >= 0).all()
    with pytest.raises(ValueError, match="100"):
        MemoryBatch.look_up(bank, ids, torch.zeros(1, 5, dtype=torch.int32))


def test_ids_round_trip(memory):
    _, found = memory
    ids = found.to_ids()
    assert (ids.shape, ids.dtype) == ((2, 30, 3), torch.int32)
    again = MemoryBatch.wrap(ids)
    for name in ("rows", "orders", "segments"):
        torch.testing.assert_close(getattr(again, name), getattr(found, name), rtol=0, atol=0)
    assert MemoryBatch.wrap(found) is found
    for bad in (ids.long(), ids[..., :2], ids[0]):
        with pytest.raises(ArgumentError, match="GraftCollator"):
            MemoryBatch.wrap(bad)
    with pytest.raises(GraftError, match="list"):
        MemoryBatch.wrap([1])


def test_travels_like_a_batch(memory):
    bank, found = memory
    staged = found.stage(bank)
    again = pickle.loads(pickle.dumps(staged))
    torch.testing.assert_close(again.values, staged.values)
    meta = staged.to("meta", non_blocking=True)
    assert {tensor.device.type for tensor in meta.tensors()} == {"meta"}
    assert len(meta.tensors()) == 6
    assert meta.facts == staged.facts
    assert staged.to(torch.float16) is staged, "a dtype asked of the whole batch must not reach the ids"
    assert staged.to(None) is staged


@pytest.mark.parametrize("dtype", ["fp8_e4m3", "int8"])
def test_eight_bit_rows_are_scaled_once_per_row(make_bank, dtype):
    bank = make_bank(50, dtype=dtype)
    rows = torch.tensor([[3, 3, -1, 49]], dtype=torch.int32)
    found = MemoryBatch(rows=rows, orders=(rows >= 0).to(torch.uint8), segments=torch.zeros_like(rows)).stage(bank)
    assert found.values.shape == (2, 2, 24)
    assert found.values.element_size() == 1
    np.testing.assert_array_equal(found.floats().numpy(), bank.floats([3, 49]))
    assert found.floats(torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.gpu
def test_pins_and_moves_to_a_gpu(memory):
    bank, found = memory
    staged = found.stage(bank)
    pinned = staged.pin_memory()
    # An empty tensor has no memory to pin; this batch has no misses.
    assert all(tensor.is_pinned() for tensor in pinned.tensors() if tensor.numel())
    moved = pinned.to("cuda", non_blocking=True)
    torch.cuda.synchronize()
    torch.testing.assert_close(moved.floats().cpu(), staged.floats())


@pytest.mark.parametrize("shape", [(2, 30), (1, 0), (0, 5), (3, 1)])
def test_unstaged_memory_crosses_as_few_bytes_and_no_shared_files(shape):
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(-1, 1 << 30, shape, generator=generator, dtype=torch.int32)
    for segments in (
        torch.zeros(shape, dtype=torch.int32),
        torch.full(shape, -1, dtype=torch.int32),
        torch.arange(rows.numel(), dtype=torch.int32).reshape(shape),
        torch.randint(-1, 2, shape, generator=generator, dtype=torch.int32),
    ):
        found = MemoryBatch(rows=rows, orders=(rows >= 0).to(torch.uint8) * 200, segments=segments)
        wrapped = found.to_ids().as_subclass(ShippedIds)
        for sent, compare in ((found, found), (wrapped, found), (ShippedIds.of(found), found)):
            data = bytes(ForkingPickler.dumps(sent))
            assert b"rebuild_storage" not in data
            assert b"torch._utils" not in data
            arrived = MemoryBatch.wrap(pickle.loads(data))
            for name in ("rows", "orders", "segments"):
                torch.testing.assert_close(getattr(arrived, name), getattr(compare, name), rtol=0, atol=0)
                assert getattr(arrived, name).dtype == getattr(compare, name).dtype
        assert type(pickle.loads(data)) is torch.Tensor
    long = MemoryBatch(
        rows=torch.zeros(8, 2048, dtype=torch.int32),
        orders=torch.zeros(8, 2048, dtype=torch.uint8),
        segments=torch.arange(8, dtype=torch.int32)[:, None].expand(8, 2048),
    )
    assert len(ForkingPickler.dumps(long)) < 5.2 * 8 * 2048


def test_ids_that_a_wrapper_changed_still_arrive():
    first = torch.arange(2 * 4 * 3, dtype=torch.int32).reshape(2, 4, 3)
    ids = ShippedIds.of(MemoryBatch.from_ids(first))
    torch.testing.assert_close(pickle.loads(ForkingPickler.dumps(ids)), first, rtol=0, atol=0)
    ids[0, 0, 0] = 77
    assert pickle.loads(ForkingPickler.dumps(ids))[0, 0, 0] == 77
    for changed in (ids[:1], ids.long(), ids[..., :2], ids + 1000, ids.permute(1, 0, 2)):
        arrived = pickle.loads(ForkingPickler.dumps(changed))
        assert type(arrived) is torch.Tensor
        torch.testing.assert_close(arrived, changed.as_subclass(torch.Tensor), rtol=0, atol=0)


def test_copies_and_pickles_own_their_memory(memory):
    _, found = memory
    for again in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        again.rows.fill_(-1)
        assert bool(found.hit.any())


def test_what_stands_in_a_training_script_can_be_shown(make_bank):
    bank = make_bank(9)
    collator = GraftCollator(bank, eos_id=2)
    assert repr(collator) == f"GraftCollator({bank!r}, inner=_stack, mode='handle', eos_id=2)"
    loader = DataLoader([{"input_ids": torch.ones(4, dtype=torch.int64)}], collate_fn=collator)
    assert repr(prefetch(loader, bank)) == f"PrefetchLoader(DataLoader, {bank!r}, depth=2)"
    cursor = Cursor(bank.index, 3)
    cursor.advance(bank.index, [1, 2, 3])
    assert repr(cursor) == f"Cursor(3 sequences, 1 steps to roll back, index {bank.index.fingerprint[:12]}…)"
    assert repr(Telemetry()) == "Telemetry(nothing recorded)"

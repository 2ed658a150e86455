import gc
import os

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from memgraft.data import MemoryBatch, StagingRing  # noqa: E402


def test_slots_are_powers_of_two_and_come_back_when_nothing_refers_to_them():
    ring = StagingRing(num_slots=2, pinned=False)
    array = ring.lease(100_000)
    array[:] = 7
    assert (len(array), ring.num_leased, ring.num_free) == (100_000, 1, 0)
    tensor = torch.from_numpy(array[:4000].view(np.float32).reshape(10, 100))
    del array
    assert ring.num_leased == 1, "the tensor still refers to the slot"
    weight = torch.ones(10, 100, requires_grad=True)
    product = (tensor * weight).sum()
    del tensor
    gc.collect()
    assert ring.num_leased == 1, "autograd still refers to the slot"
    product.backward()
    del product
    assert (ring.num_leased, ring.num_free, ring.num_bytes) == (0, 1, 131_072)
    again = ring.lease(120_000)
    assert again[0] == 7, "the same memory"
    assert ring.num_free == 0


def test_callers_never_wait_and_spare_slots_are_bounded():
    ring = StagingRing(num_slots=2, pinned=False)
    arrays = [ring.lease(70_000) for _ in range(5)]
    for number, array in enumerate(arrays):
        array[:] = number
    assert [int(array[-1]) for array in arrays] == [0, 1, 2, 3, 4]
    del arrays, array
    assert (ring.num_leased, ring.num_free) == (0, 2)
    ring.lease(1_000_000)
    assert ring.num_bytes == 1 << 20, "slots that batches have outgrown are let go"


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_dropped_ring_and_fork_leave_leases_alone():
    ring = StagingRing(pinned=False)
    array = ring.lease(1000)
    del ring
    array[:] = 1
    del array
    ring = StagingRing(pinned=False)
    held = ring.lease(1000)
    held[:] = 1
    child = os.fork()
    if child == 0:
        held[:] = 2
        fresh = ring.lease(1000)
        os._exit(0 if ring.num_leased == 1 and fresh[0] == 0 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (held == 1).all(), "a child's writes must not show in the parent"


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32", "fp8_e4m3", "int8"])
def test_staging_reuses_slots_and_gives_the_naive_values(make_bank, dtype):
    bank = make_bank(200, dtype=dtype)
    ring = StagingRing(num_slots=2, pinned=False)
    generator = np.random.default_rng(0)
    for size in (5, 40, 3, 0, 60):
        rows = torch.from_numpy(generator.integers(-1, 200, (2, size)).astype(np.int32))
        orders = (rows >= 0).to(torch.uint8)
        memory = MemoryBatch(rows=rows, orders=orders, segments=torch.zeros_like(rows)).stage(bank, ring)
        assert memory.staged
        assert memory.inverse is not None
        padded = np.concatenate([bank.floats(np.arange(200)), np.zeros((1, 2, 24), np.float32)])
        values = torch.cat([memory.floats(), torch.zeros(1, 2, 24)])
        torch.testing.assert_close(values[memory.inverse.long()], torch.from_numpy(padded)[rows.long()], rtol=0, atol=0)
        assert memory.stage(bank) is memory
    del memory, values
    assert ring.num_leased == 0

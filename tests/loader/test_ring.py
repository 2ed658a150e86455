import gc
import os
import threading
import time
import weakref

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


class Event:
    """A copy's event, passed when the test says so."""

    def __init__(self):
        self.passed = False

    def query(self):
        return self.passed

    def synchronize(self):
        self.passed = True


def test_a_slot_is_taken_until_the_copy_out_of_it_has_passed():
    ring = StagingRing(num_slots=2, pinned=False)
    events = [Event(), Event(), Event()]
    for event in events:
        ring.hold(event, torch.from_numpy(ring.lease(1000)), None)
    assert (ring.num_leased, ring.num_free) == (3, 0)
    events[1].passed = True
    assert (ring.num_leased, ring.num_free) == (2, 1), "copies on several devices pass in any order"
    events[0].passed = events[2].passed = True
    assert (ring.num_leased, ring.num_free) == (0, 2)


def test_threads_that_look_at_copies_free_none_too_early():
    ring = StagingRing(num_slots=64, pinned=False)
    stop, early = threading.Event(), []

    class Checked(Event):
        def query(self):
            time.sleep(0)
            return self.passed

    def look():
        while not stop.is_set():
            ring.drop_copied()

    threads = [threading.Thread(target=look, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(300):
            event, tensor = Checked(), torch.from_numpy(ring.lease(100))
            gone = weakref.ref(tensor, lambda _, event=event: early.append(1) if not event.passed else None)
            first = Checked()
            first.passed = True
            ring.hold(first, torch.from_numpy(ring.lease(100)))
            ring.hold(event, tensor)
            del tensor
            time.sleep(0.0005)
            event.passed = True
            del gone
    finally:
        stop.set()
    for thread in threads:
        thread.join()
    assert not early
    assert ring.num_leased == 0


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_ring_that_goes_waits_for_its_copies():
    ring, event = StagingRing(pinned=False), Event()
    ring.hold(event, torch.from_numpy(ring.lease(1000)))
    child = os.fork()
    if child == 0:
        del ring
        os._exit(event.passed)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "a child has no copies to wait for"
    assert not event.passed
    del ring
    assert event.passed


@pytest.mark.gpu
def test_a_pinned_slot_is_taken_until_the_device_has_read_it():
    ring, stream = StagingRing(num_slots=2), torch.cuda.Stream()
    assert ring.pinned
    tensor = torch.from_numpy(ring.lease(1 << 20))
    assert tensor.is_pinned()
    tensor.fill_(7)
    event = torch.cuda.Event()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        moved = tensor.to("cuda", non_blocking=True)
        event.record(stream)
    ring.hold(event, tensor)
    del tensor
    assert ring.num_leased == 1
    other = ring.lease(1 << 20)
    other[:] = 9
    event.synchronize()
    assert (moved.cpu() == 7).all()
    del other
    assert ring.num_leased == 0

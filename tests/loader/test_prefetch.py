import gc
import itertools
import multiprocessing
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_collate import Examples  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from bank_cases import child_environment  # noqa: E402
from memgraft.data import GraftCollator, StagingRing, prefetch  # noqa: E402
from memgraft.errors import ConfigError, GraftError  # noqa: E402


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("memgraft-prefetch")]


def wait_for(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert condition()


def make_loader(bank, num_examples=40, **options):
    options = {"batch_size": 4, "collate_fn": GraftCollator(bank), **options}
    return DataLoader(Examples(num_examples), **options)


def check(batch, bank):
    memory = batch["memgraft"]
    rows, _ = bank.index.lookup(batch["input_ids"].numpy())
    np.testing.assert_array_equal(memory.rows, rows)
    expected = np.concatenate([bank.floats(np.arange(bank.num_rows)), np.zeros((1, 2, 24), np.float32)])[rows]
    values = torch.cat([memory.floats(), torch.zeros(1, 2, 24)])[memory.inverse.long()]
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("mode", ["handle", "ids"])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_batches_come_staged_in_order(make_bank, mode, depth, workers):
    bank = make_bank(300)
    inner = make_loader(bank, collate_fn=GraftCollator(bank, mode=mode), num_workers=workers)
    loader = prefetch(inner, bank, depth=depth)
    assert len(loader) == 10
    assert loader.batch_size == 4
    for _ in range(2):
        numbers = []
        for batch in loader:
            check(batch, bank)
            numbers += batch["number"].tolist()
        assert numbers == list(range(40))
    facts = loader.facts
    assert (facts.num_batches, facts.num_positions) == (20, 1600)
    assert 0 < facts.num_unique <= facts.num_hits <= 1600
    assert facts.num_bytes == facts.num_unique * bank.bytes_per_row
    assert facts.stage_seconds > 0
    assert facts.wait_seconds > 0
    del batch
    wait_for(lambda: not threads() and loader.ring.num_leased == 0)


def test_batches_that_are_kept_keep_their_values(make_bank):
    bank = make_bank(300)
    batches = list(prefetch(make_loader(bank), bank, depth=1))
    for batch in batches:
        check(batch, bank)


def test_the_next_batch_is_staged_while_this_one_is_in_use(make_bank):
    bank = make_bank(300)
    iterator = iter(prefetch(make_loader(bank), bank, depth=2))
    next(iterator)
    wait_for(lambda: iterator.num_staged == 2)
    iterator.close()


def test_abandoned_iterators_leave_no_thread_and_no_slot(make_bank):
    bank = make_bank(300)
    loader = prefetch(make_loader(bank), bank, depth=2)
    for batch in itertools.islice(loader, 3):
        check(batch, bank)
    del batch
    wait_for(lambda: not threads() and loader.ring.num_leased == 0)
    iterator = iter(loader)
    next(iterator)
    iterator.close()
    assert not threads()
    wait_for(lambda: loader.ring.num_leased == 0)
    with pytest.raises(StopIteration):
        next(iterator)


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_abandoned_iterators_leave_no_worker_process(make_bank, method):
    bank = make_bank(300)
    loader = prefetch(make_loader(bank, num_workers=2, multiprocessing_context=method), bank)
    iterator = iter(loader)
    check(next(iterator), bank)
    assert len(multiprocessing.active_children()) == 2
    iterator.close()
    wait_for(lambda: not multiprocessing.active_children() and not threads())


CHILD = """
import sys
import test_prefetch
from memgraft import Bank
from memgraft.data import prefetch
bank = Bank.open(sys.argv[1])
batches = iter(prefetch(test_prefetch.make_loader(bank, 4000, num_workers=int(sys.argv[2])), bank))
next(batches)
print("left early")
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_a_program_that_ends_in_the_middle_of_an_epoch_ends(make_bank, workers):
    bank = make_bank(300)
    folder = Path(__file__).parent
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD, str(bank.path), str(workers)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=child_environment(folder, folder.parent),
    )
    assert (child.returncode, child.stdout, child.stderr) == (0, "left early\n", "")


class Failing(Examples):
    def __getitem__(self, place):
        if place == 9:
            raise RuntimeError("the disk of example 9 is gone")
        return super().__getitem__(place)


def test_errors_reach_the_training_loop_with_their_traceback(make_bank):
    bank = make_bank(300)
    loader = prefetch(DataLoader(Failing(), batch_size=4, collate_fn=GraftCollator(bank)), bank)
    seen = []
    with pytest.raises(RuntimeError, match="example 9") as caught:
        seen.extend(loader)
    assert len(seen) == 2, "the batches before it are delivered"
    assert "__getitem__" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    wait_for(lambda: not threads())


def test_a_bank_that_changes_while_training_is_an_error(make_bank):
    bank = make_bank(300)
    loader = prefetch(make_loader(bank), bank, depth=1)
    iterator = iter(loader)
    next(iterator)
    (bank.path / bank.manifest.shards[0].file).unlink()
    with pytest.raises(OSError, match="removed or moved"):
        list(iterator)


def test_two_prefetchers_share_a_bank_and_a_ring(make_bank):
    bank = make_bank(300)
    ring = StagingRing(4)
    loaders = [prefetch(make_loader(bank), bank, ring=ring, threads=2) for _ in range(2)]
    count = 0
    for pair in zip(*loaders, strict=True):
        for batch in pair:
            check(batch, bank)
            count += 1
    assert count == 20


def test_what_cannot_work_is_refused(make_bank):
    bank = make_bank(300)
    with pytest.raises(ConfigError, match="depth 0"):
        prefetch([], bank, depth=0)
    with pytest.raises(GraftError, match="collate it with GraftCollator"):
        next(iter(prefetch(DataLoader(Examples()), bank)))
    with pytest.raises(TypeError):
        len(prefetch(iter([]), bank))


def test_device_moves_the_memory(make_bank):
    bank = make_bank(300)
    batch = next(iter(prefetch(make_loader(bank), bank, device="meta")))
    assert {tensor.device.type for tensor in batch["memgraft"].tensors()} == {"meta"}


@pytest.mark.gpu
def test_memory_reaches_the_gpu_on_a_stream_of_its_own(make_bank):
    bank = make_bank(300)
    loader = prefetch(make_loader(bank, 400), bank, device="cuda", depth=3)
    assert loader.ring.pinned
    for batch in loader:
        memory = batch["memgraft"]
        assert memory.values.is_cuda
        rows = memory.rows.cpu().numpy()
        expected = np.concatenate([bank.floats(np.arange(300)), np.zeros((1, 2, 24), np.float32)])[rows]
        values = torch.cat([memory.floats().cpu(), torch.zeros(1, 2, 24)])[memory.inverse.long().cpu()]
        np.testing.assert_array_equal(values, expected)

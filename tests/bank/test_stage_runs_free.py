import threading

import numpy as np
import pytest


def test_staging_leaves_the_interpreter_to_others(make_bank):
    bank = make_bank(2000, value_dim=4096)
    out = np.empty(2000 * bank.bytes_per_row, np.uint8)
    rows = np.arange(2000, dtype=np.int32)
    counted, done = 0, threading.Event()

    def stage():
        for _ in range(30):
            bank.stage(rows=rows, out=out, threads=1)
        done.set()

    thread = threading.Thread(target=stage)
    thread.start()
    while not done.is_set():
        counted += 1
    thread.join()
    # Held throughout, the GIL would come by once per call and switch interval: some dozens of turns.
    assert counted > 10_000


@pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp8_e4m3"])
def test_no_byte_of_fresh_memory_is_left_unwritten(make_bank, monkeypatch, dtype):
    bank = make_bank(200, dtype=dtype, shard_bytes=5000)
    rows = np.random.default_rng(0).integers(-1, 200, (4, 50)).astype(np.int32)
    expected = bank.stage(rows=rows)
    fresh = np.empty

    def poisoned(*args, **kwargs):
        array = fresh(*args, **kwargs)
        array.reshape(-1).view(np.uint8)[:] = 0xFF
        return array

    monkeypatch.setattr(np, "empty", poisoned)
    staged = bank.stage(rows=rows)
    assert np.isfinite(staged.floats()).all()
    np.testing.assert_array_equal(staged.values, expected.values)
    np.testing.assert_array_equal(bank.values(np.arange(200))[staged.rows], expected.values)

"""A table larger than the memory it may use: a control group holds the process to less than the table."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bank_cases import make_keys
from memgraft.bank import BankWriter

NUM_ROWS, VALUE_DIM = 2000, 65_536
LIMIT = 64 << 20

CHILD = """
import json, os, sys
import numpy as np
group, path = sys.argv[1:]
with open(os.path.join(group, "cgroup.procs"), "w") as file:
    file.write(str(os.getpid()))
from memgraft.bank import Bank
bank = Bank.open(path)
generator = np.random.default_rng(0)
cold = rows_read = 0
for _ in range(30):
    rows = generator.integers(-1, bank.num_rows, 150)
    staged = bank.stage(rows=rows, threads=2)
    expected = (staged.rows % 127).astype(np.int8)
    assert (staged.values == expected[:, None, None]).all(), "a row is not its own"
    cold += staged.facts.num_cold_rows
    rows_read += len(staged.rows)
with open("/proc/self/status") as file:
    peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024
print(json.dumps({"cold": cold, "rows": rows_read, "peak": peak}))
"""


@pytest.fixture
def limited_group():
    """A control group of LIMIT bytes, in either version of the interface."""
    for root, name in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = root / f"memgraft-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / name).write_text(str(LIMIT))
            yield group
            return
        except OSError:
            continue
        finally:
            group.rmdir()
    pytest.skip("control groups cannot be made here (needs root)")


@pytest.mark.slow
def test_a_table_larger_than_memory_is_staged_within_it(tmp_path, limited_group):
    options = {"keys": make_keys(NUM_ROWS), "taps": (8,), "value_dim": VALUE_DIM, "donor": {}, "tokenizer": {}}
    with BankWriter(tmp_path / "bank", dtype="int8", scales=np.ones((1, VALUE_DIM), np.float32), **options) as writer:
        for start in range(0, NUM_ROWS, 100):
            codes = (np.arange(start, start + 100) % 127).astype(np.float32)
            writer.write(start, np.broadcast_to(codes[:, None, None], (100, 1, VALUE_DIM)))
        bank = writer.finish()
    size = NUM_ROWS * bank.bytes_per_row
    assert size > 1.9 * LIMIT
    os.sync()  # in tests `fsync` does nothing, and pages that are not written stay
    for path in bank.path.iterdir():
        # Pages count for the group that read them first: the child is to read its own.
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    command = [sys.executable, "-c", CHILD, str(limited_group), str(bank.path)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert child.returncode == 0, child.stderr
    facts = json.loads(child.stdout)
    assert facts["cold"] > facts["rows"] // 4, "with half of the table in memory, many rows come from the disk"
    assert facts["peak"] < 2 * LIMIT

"""A device that fails: reads are made to fail, to end early or to come in pieces at one byte of one file."""

import json
import shutil
import subprocess
import sys

import pytest

from bank_cases import child_environment

# Stands in front of the C library's reads; the kind of fault is set by a call.
SHIM = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NONE, FAIL, END, PIECES };
static char suffix[256];
static long long fault_at;
static volatile int kind;

void set_fault(const char *file, long long at, int what) {
    snprintf(suffix, sizeof suffix, "%s", file);
    fault_at = at;
    kind = what;
}

static int concerns(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (kind == NONE || length < (ssize_t)strlen(suffix)) return 0;
    path[length] = 0;
    return !strcmp(path + length - strlen(suffix), suffix);
}

ssize_t pread64(int fd, void *to, size_t count, off64_t at) {
    if (concerns(fd)) {
        if (kind == PIECES && count > 100) count = 100;
        if (kind != PIECES && at <= fault_at && fault_at < at + (off64_t)count) {
            count = fault_at - at;
            if (!count && kind == END) return 0;
            if (!count) { errno = EIO; return -1; }
        }
    }
    return syscall(SYS_pread64, fd, to, count, at);
}

ssize_t pread(int fd, void *to, size_t count, off_t at) { return pread64(fd, to, count, at); }

ssize_t preadv2(int fd, const struct iovec *to, int n, off_t at, int flags) {
    if (concerns(fd) && n == 1) {
        if (kind == PIECES) return pread64(fd, to->iov_base, to->iov_len, at);
        if (at <= fault_at && fault_at < at + (off_t)to->iov_len) { errno = EIO; return -1; }
    }
    return syscall(SYS_preadv2, fd, to, n, at, 0, flags);
}
"""

CHILD = """
import ctypes, json, sys
import numpy as np
from memgraft.bank import Bank
from memgraft.errors import StorageError

path, name, offset, row = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
shim = ctypes.CDLL(None)
KINDS = {"none": 0, "fail": 1, "end": 2, "pieces": 3}
def fault(kind):
    shim.set_fault(name.encode(), ctypes.c_longlong(offset), KINDS[kind])
bank = Bank.open(path)
every = bank.values(np.arange(bank.num_rows))
many = np.repeat(np.arange(bank.num_rows), 2)
def resident():
    held = Bank.open(path, resident=True)
    fault("none")
    return held.values(np.arange(bank.num_rows))
calls = {
    "stage": lambda: bank.stage(rows=[row, 0, row, -1], threads=1).values[[1]],
    "stage, threads": lambda: bank.stage(rows=many[:30], threads=2).values,
    "gather": lambda: bank.values([[row], [row]]),
    "resident": resident,
    "warm": lambda: bank.warm(),
    "verify": lambda: bank.verify(),
}
expected = {
    "stage": every[[row]],
    "stage, threads": every[:15],
    "gather": every[[[row], [row]]],
    "resident": every,
    "warm": every.nbytes,
    "verify": None,
}
found = {}
for kind in ("pieces", "fail", "end"):
    for call, run in calls.items():
        fault(kind)
        try:
            got = run()
            same = got == expected[call] if got is None or isinstance(got, int) else bool((got == expected[call]).all())
            found[f"{kind} {call}"] = "right" if same else "wrong"
        except StorageError as error:
            found[f"{kind} {call}"] = str(error)
        fault("none")
        assert (bank.values(np.arange(bank.num_rows)) == every).all(), "the bank works on once the device does"
print(json.dumps(found))
"""


@pytest.fixture
def shim(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler and Linux")
    (tmp_path / "shim.c").write_text(SHIM)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", "shim.so", "shim.c"], cwd=tmp_path, check=True)
    return tmp_path / "shim.so"


@pytest.mark.parametrize("dtype", ["fp32", "fp8_e4m3"])
def test_every_failed_read_names_file_and_offset(make_bank, shim, dtype):
    bank = make_bank(20, value_dim=1024, dtype=dtype, shard_bytes=9 * 2 * 1024 * (4 if dtype == "fp32" else 1))
    assert len(bank.manifest.shards) > 2
    entry = bank.manifest.shards[1]
    row = bank.manifest.shards[0].num_rows + 3
    # The middle of that row; the values are what the file ends with.
    offset = entry.num_bytes - (entry.num_rows - 3) * bank.bytes_per_row + 1000
    environment = {**child_environment(), "LD_PRELOAD": str(shim)}
    command = [sys.executable, "-c", CHILD, str(bank.path), entry.file, str(offset), str(row)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=environment)
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout)
    assert len(found) == 18
    for call, outcome in found.items():
        if call.startswith("pieces"):
            assert outcome == "right", f"{call}: {outcome}"
        else:
            reason = "Input/output error" if call.startswith("fail") else "the file ends here"
            assert f"{bank.path / entry.file}: reading" in outcome, f"{call}: {outcome}"
            assert f"at byte {offset}: {reason}" in outcome, f"{call}: {outcome}"

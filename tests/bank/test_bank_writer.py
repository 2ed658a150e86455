import itertools
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bank_cases import child_environment, make_keys, make_values
from memgraft.bank import Bank, BankWriter
from memgraft.bank.done import merge
from memgraft.errors import ArgumentError, FingerprintError, FormatError, StorageError

ROOT = Path(__file__).resolve().parents[2]


def make_writer(path, num_rows=100, **options):
    options = {"taps": (8, 24), "value_dim": 24, "donor": {"name": "tiny"}, "tokenizer": {}, **options}
    return BankWriter(path, keys=make_keys(num_rows), **options)


@pytest.mark.parametrize("dtype", ["bf16", "fp8_e4m3"])
@pytest.mark.parametrize("shard_bytes", [4 << 30, 1000])
def test_any_order_of_chunks_gives_the_same_bank(tmp_path, dtype, shard_bytes):
    values = make_values(100)
    expected = Bank.create(
        tmp_path / "whole",
        keys=make_keys(100),
        values=values,
        taps=(8, 24),
        dtype=dtype,
        shard_bytes=shard_bytes,
        donor={"name": "tiny"},
    )
    with make_writer(tmp_path / "parts", dtype=dtype, shard_bytes=shard_bytes) as writer:
        for start, stop in ((60, 100), (0, 7), (7, 7), (7, 33), (30, 60)):
            writer.write(start, values[start:stop])
        bank = writer.finish()
    assert bank.fingerprint == expected.fingerprint
    bank.verify()


def test_what_was_written_survives_and_the_rest_is_named(tmp_path):
    values = make_values(100)
    with make_writer(tmp_path / "bank") as writer:
        writer.write(10, values[10:40])
        writer.write(90, values[90:])
        assert writer.num_done == 40
    assert not (tmp_path / "bank").exists()
    with pytest.raises(StorageError, match=r"bank\.partial holds an unfinished one"):
        Bank.open(tmp_path / "bank")
    with pytest.raises(
        StorageError, match=r"bank\.partial/bank\.json: not found: this one is unfinished: run the same"
    ):
        Bank.open(tmp_path / "bank.partial")
    with make_writer(tmp_path / "bank") as writer:
        assert writer.missing() == [(0, 10), (40, 90)]
        with pytest.raises(ArgumentError, match=r"rows 0\.\.10, 40\.\.90 are not written"):
            writer.finish()
        for start, stop in writer.missing():
            writer.write(start, values[start:stop])
        bank = writer.finish(dropped={"partial UTF-8": 2}, donor={"revision": "x"})
    assert bank.manifest.dropped == {"partial UTF-8": 2}
    assert bank.manifest.donor == {"name": "tiny", "revision": "x"}
    np.testing.assert_allclose(bank.floats(range(100)), values, rtol=2**-7)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("taps", {"taps": (8, 23)}),
        ("dtype", {"dtype": "fp16"}),
        ("donor.name", {"donor": {"name": "other"}}),
        ("tokenizer", {"tokenizer": {"name": "other"}}),
        ("keyset", {"num_rows": 99}),
        ("shard_starts", {"shard_bytes": 1000}),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path, name, other):
    make_writer(tmp_path / "bank").close()
    with pytest.raises(FingerprintError, match=rf"\(.*{name}: .* there, .* now"):
        make_writer(tmp_path / "bank", **other)
    make_writer(tmp_path / "bank").close()


def test_one_writer_at_a_time(tmp_path):
    with make_writer(tmp_path / "bank"), pytest.raises(StorageError, match="another process is writing"):
        make_writer(tmp_path / "bank")
    make_writer(tmp_path / "bank").close()


def test_torn_marks_do_not_count(tmp_path):
    values = make_values(100)
    with make_writer(tmp_path / "bank") as writer:
        writer.write(0, values[:50])
    log = tmp_path / "bank.partial" / "done.log"
    good = log.read_bytes()
    for torn in (b"50 100", b"50 100 00000000\n", b"50 100 zz\n", b"\x00" * 40, b"60 70 1\n50 60"):
        log.write_bytes(good + torn)
        with make_writer(tmp_path / "bank") as writer:
            assert writer.missing() == [(50, 100)]
        assert log.read_bytes() == good
    (tmp_path / "bank.partial" / "state.json").write_text("{")
    with pytest.raises(FormatError, match="start again"):
        make_writer(tmp_path / "bank")


def test_wrong_chunks_are_refused(tmp_path):
    with make_writer(tmp_path / "bank") as writer:
        for values in (np.zeros((5, 2, 23)), np.zeros((5, 48)), np.zeros((5, 1, 24))):
            with pytest.raises(ArgumentError, match=r"expected shape \[n, 2, 24\]"):
                writer.write(0, values)
        for start in (-1, 96, 1000):
            with pytest.raises(ArgumentError, match=r"expected within 0\.\.100"):
                writer.write(start, np.zeros((5, 2, 24)))
        with pytest.raises(ArgumentError, match="row 12"):
            writer.write(10, np.where(np.arange(5)[:, None, None] == 2, np.nan, np.zeros((5, 2, 24))))
        assert writer.num_done == 0
    with pytest.raises(ArgumentError, match="closed"):
        writer.write(0, np.zeros((5, 2, 24)))


def test_existing_and_unwritable_paths_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    for name in ("file", "full"):
        with pytest.raises(ArgumentError, match="exists"):
            make_writer(tmp_path / name)
    with pytest.raises(StorageError, match="choose another path"):
        make_writer(tmp_path / "file" / "bank")
    (tmp_path / "empty").mkdir()
    with make_writer(tmp_path / "empty") as writer:
        writer.write(0, make_values(100))
        assert writer.finish().num_rows == 100


CHILD = """
import sys, time
from test_bank_writer import make_values, make_writer
writer = make_writer(sys.argv[1], 2000)
values = make_values(2000)
for start in range(0, 2000, 10):
    writer.write(start, values[start:start + 10])
    print(start + 10, flush=True)
time.sleep(60)
"""


def test_kill_keeps_what_was_done(tmp_path):
    environment = child_environment(ROOT / "tests", Path(__file__).parent)
    command = [sys.executable, "-c", CHILD, str(tmp_path / "bank")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert child.stdout is not None
        for _ in range(20):
            told = int(child.stdout.readline())
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    with make_writer(tmp_path / "bank", 2000) as writer:
        deadline = time.monotonic() + 30
        assert writer.num_done >= told
        values = make_values(2000)
        for start, stop in writer.missing():
            writer.write(start, values[start:stop])
        bank = writer.finish()
        assert time.monotonic() < deadline
    bank.verify()
    np.testing.assert_allclose(bank.floats(range(2000)), values, rtol=2**-7)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 6)), max_size=12))
def test_merged_ranges_are_the_union(parts):
    done = []
    for start, length in parts:
        done = merge(done, start, start + length)
    assert {row for a, b in done for row in range(a, b)} == {row for a, n in parts for row in range(a, a + n)}
    assert all(a < b for a, b in done)
    assert all(first[1] < second[0] for first, second in itertools.pairwise(done))

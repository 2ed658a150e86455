"""One bank by several processes: the same bytes whatever the world, whoever is killed; and what is refused."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from bank_cases import child_environment, make_keys, make_values
from memgraft.bank import Bank, BankWriter
from memgraft.bank.locks import Claims, OwnerLock
from memgraft.errors import ArgumentError, StorageError
from memgraft.harvesting import harvest
from memgraft.harvesting.ranks import Rank
from memgraft.keyset import KeySet
from tiny import byte_bpe, tiny_donor, tiny_text


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    tiny_donor(folder / "donor")
    tokenizer = byte_bpe([tiny_text(1)], 300)
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(tiny_text(1)).ids
    counts: dict[tuple[int, ...], int] = {}
    for order in (2, 3, 4):
        for start in range(len(ids) - order):
            counts[tuple(ids[start : start + order])] = counts.get(tuple(ids[start : start + order]), 0) + 1
    KeySet.from_keys(list(counts), counts=list(counts.values()), vocab_size=300).save(folder / "keys.mgk")
    return folder


def run(place, out, **changes):
    options = {"taps": (1, 2), "chunk_rows": 64, "prefix": "none", "compute_dtype": "float32", **changes}
    keys = KeySet.open(place / "keys.mgk")
    return harvest(keys, recipient_tokenizer=place / "tokenizer.json", donor=place / "donor", out=out, **options)


@pytest.fixture(scope="module")
def whole(place):
    run(place, place / "whole")
    return contents(place / "whole")


def contents(bank):
    return {path.name: path.read_bytes() for path in sorted(bank.iterdir())}


CHILD = """
import sys, time
import torch
torch.set_num_threads(int(sys.argv[5]))
from pathlib import Path
import test_harvesting_ranks as this
place, out, rank, world = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
stop_at = int(sys.argv[6])
chunks = 0
def report(phase, done, total):
    global chunks
    chunks += phase == "donor"
    if phase == "donor" and stop_at and chunks > stop_at:
        print("ready", flush=True)
        time.sleep(120)
bank = this.run(place, out, rank=rank, world_size=world, progress=report)
print(bank.fingerprint, flush=True)
"""


def start(place, out, rank, world, stop_at=0, **options):
    from pathlib import Path

    import torch

    environment = child_environment(Path(__file__).parent, Path(__file__).parents[1] / "tests")
    arguments = [str(place), str(out), str(rank), str(world), str(torch.get_num_threads()), str(stop_at)]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if options else None,
        text=True,
        env=environment,
        **options,
    )


def told(process):
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    return output.split()[-1]


@pytest.mark.slow
def test_two_ranks_that_start_in_the_same_moment_write_the_same_bytes(place, whole, tmp_path):
    ranks = [start(place, tmp_path / "bank", rank, 2) for rank in range(2)]
    found = {told(process) for process in ranks}
    assert contents(tmp_path / "bank") == whole
    assert found == {json.loads(whole["bank.json"])["fingerprint"]}
    assert not (tmp_path / "bank.partial").exists()


@pytest.mark.slow
def test_the_others_finish_what_a_killed_rank_leaves(place, whole, tmp_path):
    killed = start(place, tmp_path / "bank", 1, 2, stop_at=3)
    assert killed.stdout.readline() == "ready\n"
    other = start(place, tmp_path / "bank", 0, 2)
    time.sleep(1)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    told(other)
    assert contents(tmp_path / "bank") == whole


@pytest.mark.slow
def test_a_rerun_with_another_world_goes_on(place, whole, tmp_path):
    ranks = [start(place, tmp_path / "bank", rank, 3, stop_at=2) for rank in range(3)]
    for process in ranks:
        assert process.stdout.readline() == "ready\n"
    for process in ranks:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    done = []
    run(place, tmp_path / "bank", progress=lambda *call: done.append(call))
    starts = [done for phase, done, _ in done if phase == "donor"]
    assert starts[0] >= 3 * 64, "what the three had finished is kept"
    assert not any(phase == "text" for phase, *_ in done), "keys are not judged again"
    assert contents(tmp_path / "bank") == whole


def test_a_late_rank_finds_the_finished_bank(place, whole, tmp_path):
    made = run(place, tmp_path / "bank", rank=1, world_size=2)
    assert contents(tmp_path / "bank") == whole, "one rank of a world does it all where the others do not come"
    assert run(place, tmp_path / "bank", rank=0, world_size=2).fingerprint == made.fingerprint
    with pytest.raises(ArgumentError, match="resume=False: several processes"):
        run(place, tmp_path / "bank", rank=0, world_size=2, resume=False)


def test_ranks_from_the_environment(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    assert Rank.find(None, None) == Rank(rank=0, world_size=1)
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert Rank.find(None, None) == Rank(rank=3, world_size=8)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Rank.find(None, None) == Rank(rank=1, world_size=2)
    assert Rank.find(0, 4) == Rank(rank=0, world_size=4)
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(ArgumentError, match=r"rank 2 \(from RANK and WORLD_SIZE\): expected 0 to 1 in a world of 2"):
        Rank.find(None, None)
    monkeypatch.setenv("RANK", "two")
    with pytest.raises(ArgumentError, match="RANK: expected a number"):
        Rank.find(None, None)
    for rank, world in ((None, 2), (1, None), (2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ArgumentError):
            Rank.find(rank, world)


def writer(path, rank=0, world_size=1, **options):
    options = {"taps": (8, 24), "value_dim": 24, "donor": {"name": "tiny"}, "tokenizer": {}, **options}
    return BankWriter(path, keys=make_keys(100), rank=rank, world_size=world_size, **options)


def test_a_rank_runs_once_and_worlds_agree(tmp_path):
    with writer(tmp_path / "bank", 0, 2):
        with pytest.raises(
            StorageError, match=rf"rank 0 is running as process {os.getpid()} on {socket.gethostname()}"
        ):
            writer(tmp_path / "bank", 0, 2)
        with pytest.raises(
            ArgumentError, match=r"world_size 3: rank 0 is running .* with a world of 2; start all ranks"
        ):
            writer(tmp_path / "bank", 1, 3)
        with pytest.raises(StorageError, match="another process is writing"):
            writer(tmp_path / "bank")
        with writer(tmp_path / "bank", 1, 2):
            pass
    with writer(tmp_path / "bank", 1, 3):
        pass
    for rank, world in ((2, 2), (-1, 2)):
        with pytest.raises(ArgumentError, match=f"rank {rank}: expected 0 to 1"):
            writer(tmp_path / "bank", rank, world)


def test_stale_owners(tmp_path):
    """A dead process of this host is no hindrance; one of another host is, until it has been silent for a minute."""
    path = tmp_path / "owner-00000"
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": 1 << 22, "world_size": 7}))
    OwnerLock(tmp_path, 0, 2).close()
    path.write_text(json.dumps({"host": "elsewhere", "pid": 17, "world_size": 2}))
    with pytest.raises(StorageError, match=r"owner-00000: rank 0 was running as process 17 on elsewhere .* or remove"):
        OwnerLock(tmp_path, 0, 2)
    os.utime(path, (time.time() - 3600, time.time() - 3600))
    OwnerLock(tmp_path, 0, 2).close()
    path.write_bytes(b"\xff not json")
    OwnerLock(tmp_path, 0, 2).close()


def test_claims_exclude_each_other(tmp_path):
    first, second = Claims(tmp_path / "claims"), Claims(tmp_path / "claims")
    assert first.take(5)
    assert not second.take(5)
    assert second.take(6)
    first.give_back(5)
    assert second.take(5)
    second.close()
    assert first.take(5)
    first.close()


def test_writers_share_the_work(tmp_path):
    """Each chunk is one writer's; what one has done the other sees; one of them seals."""
    values = make_values(100)
    order = np.random.default_rng(0).permutation(100)
    expected = Bank.create(tmp_path / "whole", keys=make_keys(100), values=values, taps=(8, 24), donor={"name": "tiny"})
    with writer(tmp_path / "bank", 0, 2, order=order) as a, writer(tmp_path / "bank", 1, 2, order=order) as b:
        assert a.claim(0, 10)
        assert not b.claim(0, 10)
        a.write(0, values[order[:10]])
        a.give_back(0)
        assert not b.claim(0, 10), "it is done"
        for start in range(10, 100, 10):
            one = (a, b)[start // 10 % 2]
            assert one.claim(start, start + 10)
            one.write(start, values[order[start : start + 10]])
            one.give_back(start)
        assert a.try_seal()
        assert not b.try_seal()
        bank = a.finish()
        assert not b.try_seal()
    assert bank.fingerprint == expected.fingerprint
    bank.verify()


def test_a_full_disk_is_named_and_what_was_done_is_kept(tmp_path, monkeypatch):
    import errno

    values = make_values(100)
    with writer(tmp_path / "bank", 1, 2) as one:
        one.write(0, values[:50])

        def full(*_arguments):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(
            StorageError, match=r"values-00001.*: No space left on device; what was done before is kept"
        ):
            one.write(50, values[50:])
        monkeypatch.undo()
    with writer(tmp_path / "bank") as one:
        assert one.missing() == [(50, 100)]

"""Real launchers and real trouble: torchrun, Slurm's variables, a rank that runs out of disk."""

import json
import os
import resource
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from bank_cases import child_environment
from memgraft.bank import Bank
from memgraft.cli.app import build_app
from memgraft.keyset import KeySet
from test_harvesting_ranks import contents, place, run, start, whole

__all__ = ["place", "whole"]
pytestmark = pytest.mark.slow

OPTIONS = ["--taps", "1,2", "--chunk-rows", "64", "--prefix", "none", "--compute-dtype", "float32", "--threads", "1"]


def command(place, out):
    files = [place / "keys.mgk", "--tokenizer", place / "tokenizer.json", "--donor", place / "donor", "--out", out]
    return ["harvest", *map(str, files), *OPTIONS, "--json"]


@pytest.fixture(scope="module")
def alone(place):
    """The bank that one process makes with the same command."""
    result = CliRunner().invoke(build_app(), command(place, place / "alone"))
    assert result.exit_code == 0, result.stderr
    return contents(place / "alone")


def environment(**changes):
    clean = {name: value for name, value in child_environment().items() if name not in ("RANK", "WORLD_SIZE")}
    return {**clean, "OMP_NUM_THREADS": "1", **changes}


def test_torchrun(place, alone, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "memgraft", *command(place, tmp_path / "bank")],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert contents(tmp_path / "bank") == alone
    assert not (tmp_path / "bank.partial").exists()
    assert json.loads(done.stdout)["num_rows"] == Bank.open(tmp_path / "bank").num_rows, "one rank prints the result"


def test_slurm_starts_two_and_one_is_killed(place, alone, tmp_path):
    def task(number):
        return subprocess.Popen(
            [sys.executable, "-m", "memgraft", *command(place, tmp_path / "bank")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(SLURM_PROCID=str(number), SLURM_NTASKS="2", SLURM_LOCALID=str(number)),
        )

    first, second = task(0), task(1)
    second.send_signal(signal.SIGKILL)
    second.communicate()
    output, errors = first.communicate(timeout=300)
    assert first.returncode == 0, errors[-3000:]
    assert contents(tmp_path / "bank") == alone
    assert json.loads(output)["num_rows"] == len(KeySet.open(place / "keys.mgk"))


def test_a_rank_beyond_the_world_is_refused_by_the_verb(place, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(build_app(), command(place, tmp_path / "bank"))
    assert result.exit_code == 2
    assert "rank 2 (from RANK and WORLD_SIZE): expected 0 to 1" in result.stderr
    assert not (tmp_path / "bank.partial").exists()


def test_a_rank_without_room_is_named_and_the_others_finish(place, whole, tmp_path):
    """The kernel refuses this rank's writes, as a full disk does."""
    first = start(place, tmp_path / "bank", 0, 2, stop_at=2)
    assert first.stdout.readline() == "ready\n"
    most = 16 << 10  # within the first rank's share of the shard
    second = start(
        place, tmp_path / "bank", 1, 2, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    )
    _, errors = second.communicate(timeout=240)
    assert second.returncode == 1
    assert "StorageError" in errors
    assert "what was done before is kept" in errors
    first.send_signal(signal.SIGKILL)
    first.communicate()
    done = []
    run(place, tmp_path / "bank", progress=lambda *call: done.append(call))
    assert next(done for phase, done, _ in done if phase == "donor") >= 64, "what was finished is kept"
    assert contents(tmp_path / "bank") == whole


def test_worlds_that_disagree(place, tmp_path):
    first = start(place, tmp_path / "bank", 0, 2, stop_at=1)
    assert first.stdout.readline() == "ready\n"
    second = start(place, tmp_path / "bank", 1, 3, bufsize=1)
    _, errors = second.communicate(timeout=240)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert second.returncode == 1
    assert f"world_size 3: rank 0 is running as process {first.pid} on {os.uname().nodename}" in errors
    assert "start all ranks with one world size" in errors

"""A local Ray cluster harvests with two actors; one is killed half-way, a new driver takes up what a dead one left."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

import memgraft
from memgraft.tokenizer import open_tokenizer
from test_harvesting_ranks import contents, place, run
from tiny import tiny_text

pytest.importorskip("ray")
pytestmark = pytest.mark.cluster
__all__ = ["place"]

CODE = """
import os, pathlib, signal, sys, threading, time
import ray
import memgraft.integrations.ray as integration
from memgraft.errors import DonorError, MemgraftError

place, out, what = sys.argv[1:]
ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
ray.data.DataContext.get_current().enable_progress_bars = False
settings = {
    "recipient_tokenizer": f"{place}/tokenizer.json", "donor": f"{place}/donor", "taps": (1, 2), "chunk_rows": 64,
    "prefix": "none", "compute_dtype": "float32",
}

def finished():
    logs = pathlib.Path(out + ".partial").glob("done-*.log")
    return sum(len(log.read_bytes().splitlines()) for log in logs)

def kill_one():
    # An actor, once some chunks are written and many are not.
    while finished() < 3:
        time.sleep(0.02)
    print("finished", finished(), flush=True)
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "cmdline").read_bytes()
            parent = int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue
        if name.startswith(b"ray::") and b"Donor" in name and ours(parent):
            os.kill(int(process.name), signal.SIGKILL)
            print("killed", flush=True)
            return
    print("no actor found", flush=True)

def ours(process):
    while process > 1:
        if process == os.getpid():
            return True
        process = int(pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return False

if what == "contexts":
    settings |= {"taps": (1,), "contexts": (2, 6), "corpus": f"{place}/corpus.bin"}
if what == "refused":
    for changes in ({"taps": (9,)}, {"rank": 1}, {"actors": 0}):
        try:
            integration.harvest(f"{place}/keys.mgk", out=out, **{**settings, **changes})
        except MemgraftError as error:
            print(type(error).__name__, error, flush=True)
    sys.exit()
if what == "driver dies":
    def die():
        while finished() < 3:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Thread(target=die, daemon=True).start()
if what == "kill one":
    threading.Thread(target=kill_one, daemon=True).start()
if what == "again":
    print("before", finished(), flush=True)
bank = integration.harvest(f"{place}/keys.mgk", out=out, actors=2, **settings)
print(bank.fingerprint, flush=True)
ray.shutdown()
"""


def call(place, out, what):
    from bank_cases import child_environment

    environment = {
        **child_environment(),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", CODE, str(place), str(out), what],
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
        env=environment,
    )


@pytest.fixture(scope="module")
def whole(place):
    run(place, place / "whole", chunk_rows=64)
    return contents(place / "whole")


def test_two_actors_one_killed(place, whole, tmp_path):
    done = call(place, tmp_path / "bank", "kill one")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "killed" in done.stdout.splitlines()
    assert contents(tmp_path / "bank") == whole
    assert os.listdir(tmp_path) == ["bank"]


def test_another_driver_takes_up_what_a_killed_one_left(place, whole, tmp_path):
    done = call(place, tmp_path / "bank", "driver dies")
    assert done.returncode == -9
    again = call(place, tmp_path / "bank", "again")
    assert again.returncode == 0, again.stderr[-3000:]
    assert int(again.stdout.split("before ")[1].split()[0]) >= 3
    assert contents(tmp_path / "bank") == whole


def test_contexts(place, tmp_path):
    """Workers open the corpus themselves; the bytes are those of one process."""
    tokenizer = open_tokenizer(place / "tokenizer.json")
    with memgraft.CorpusWriter(place / "corpus", vocab_size=300, eos_id=0) as writer:
        for text in tiny_text(1).splitlines(keepends=True):
            writer.add([*tokenizer.encode([text])[0], 0])
        writer.finish()
    corpus = memgraft.Corpus.open(place / "corpus.bin")
    run(place, tmp_path / "whole", chunk_rows=64, taps=(1,), contexts=(2, 6), corpus=corpus)
    done = call(place, tmp_path / "bank", "contexts")
    assert done.returncode == 0, done.stderr[-3000:]
    assert contents(tmp_path / "bank") == contents(tmp_path / "whole")


def test_errors_are_the_harvests_own(place, tmp_path):
    done = call(place, tmp_path / "bank", "refused")
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert lines[0].startswith("DonorError tap 9: donor donor has 3 blocks")
    assert lines[1] == "ArgumentError rank: not for a harvest on Ray; leave it out"
    assert lines[2] == "ArgumentError actors: expected at least 1, found 0"

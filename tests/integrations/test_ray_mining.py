"""A local Ray cluster mines; a worker that is killed is replaced, and its part goes on."""

import os
import subprocess
import sys

import numpy as np
import pytest

import memgraft
from memgraft.corpus import CorpusWriter, write_sample
from memgraft.errors import ArgumentError

pytest.importorskip("ray")

CODE = """
import os, pathlib, signal, sys, threading, time
import ray
import memgraft.integrations.ray as integration

corpus, folder, out, vocab_size = sys.argv[1:]
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)

def kill_one():
    # The first worker that has a finished block.
    while True:
        for lock in pathlib.Path(folder).glob("*.partial/*.block"):
            for process in pathlib.Path("/proc").glob("[0-9]*"):
                try:
                    held = any(lock.parent.name in os.readlink(entry) for entry in (process / "fd").iterdir())
                except OSError:
                    continue
                if held:
                    os.kill(int(process.name), signal.SIGKILL)
                    print("killed", flush=True)
                    return
        time.sleep(0.001)

if len(os.listdir(folder)) == 0:
    threading.Thread(target=kill_one, daemon=True).start()
keys = integration.mine(corpus, folder, orders=(2, 3, 4), memory="1200KB", budget=3000)
keys.save(out)
ray.shutdown()
"""


@pytest.mark.cluster  # Ray gives a node 30 seconds to start, whatever else runs.
def test_two_workers_one_killed(tmp_path):
    rng = np.random.default_rng(3)
    with CorpusWriter(tmp_path / "corpus", vocab_size=997) as writer:
        for _ in range(2000):
            writer.add((rng.zipf(1.3, 300) % 997).astype(np.uint32))
        path = writer.finish()
    folder, out = tmp_path / "parts", tmp_path / "keys.mgk"
    folder.mkdir()
    command = [sys.executable, "-c", CODE, *map(str, (path, folder, out, 997))]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env={**os.environ, "PYTHONWARNINGS": ""}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "killed" in done.stdout
    memgraft.mine(memgraft.Corpus.open(path), (2, 3, 4), 3000).save(tmp_path / "one.mgk")
    assert out.read_bytes() == (tmp_path / "one.mgk").read_bytes()
    sample = write_sample(memgraft.Corpus.open(path), tmp_path / "one.mgk")
    assert (tmp_path / "keys.mgk.sample").read_bytes() == sample.read_bytes()
    parts = ["part-00000-of-00002.mgr", "part-00001-of-00002.mgr"]
    assert sorted(os.listdir(folder)) == sorted([*parts, *(f"{part}.sample" for part in parts)])


@pytest.mark.parametrize(
    ("selection", "error", "found"),
    [
        ({"budget": 0}, ArgumentError, "budget"),
        ({"budget": 2, "orders": (2, 3, 4)}, ArgumentError, "budget"),
        ({"policy": "gain", "budget": {2: 5}}, ArgumentError, "policy"),
        ({"require": [[1, 2]] * 3, "policy": "count", "budget": 2, "min_count": 0}, ArgumentError, "min_count"),
        ({"bugdet": 5}, TypeError, "bugdet"),
        ({"temporary": "elsewhere"}, TypeError, "temporary"),
        ({"threads": 0}, ArgumentError, "threads"),
        ({"require": iter([(1, 2, 3, 4, 5)])}, ArgumentError, "orders mined"),
    ],
)
def test_a_selection_that_would_be_refused_is_before_anything_is_mined(tmp_path, selection, error, found):
    from memgraft.integrations.ray import mine

    with pytest.raises(error, match=found):
        mine(tmp_path / "corpus.bin", tmp_path / "parts", **selection)
    assert list(tmp_path.glob("parts/*")) == []

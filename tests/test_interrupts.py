"""Ctrl-C inside one long native call: it is answered while the call goes on, not after it.

How far the work has come is told by the pages that it has touched, or what else it counts, so that a slow machine
changes nothing.
"""

import subprocess
import sys

import numpy as np
import pytest

import memgraft

PRELUDE = """
import resource, signal, sys
import memgraft
from memgraft.corpus import tokenize_folder
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def measured(work, count=faults):
    before, answer = count(), "finished"
    signal.signal(signal.SIGPROF, signal.default_int_handler)
    if sys.argv[1] == "stop": signal.setitimer(signal.ITIMER_PROF, 0.01)
    try: work()
    except KeyboardInterrupt: answer = "stopped"
    print(answer, count() - before)
"""


def run(work, how, *arguments):
    command = [sys.executable, "-c", PRELUDE + work, how, *map(str, arguments)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    answer, pages = found.stdout.split()
    return answer, int(pages)


def check(work, *arguments):
    stopped, some = run(work, "stop", *arguments)
    finished, every = run(work, "whole", *arguments)
    assert (stopped, finished) == ("stopped", "finished")
    assert some < every / 2


def test_inside_one_document(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "one.txt").write_text("a b " * 400_000)
    check(
        "folder = sys.argv[2]\n"
        "measured(lambda: tokenize_folder(folder + '/one.txt', folder + '/tokenizer.json', folder + '/corpus'))",
        tmp_path,
    )
    assert memgraft.Corpus.open(tmp_path / "corpus.bin").num_tokens == 800_000
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("corpus.bin", "corpus.idx", "corpus.json", "one.txt", "tokenizer.json"),
    ]


def test_while_an_index_is_built(tmp_path):
    tokens = np.unique(np.random.default_rng(0).integers(0, 50_000, (2_000_000, 3), np.uint32), axis=0)
    offsets = np.arange(len(tokens) + 1, dtype=np.uint64) * 3
    counts = np.ones(len(tokens), np.uint64)
    memgraft.KeySet.from_arrays(tokens.reshape(-1), offsets, counts, vocab_size=50_000).save(tmp_path / "keys.mgk")
    check("keys = memgraft.KeySet.open(sys.argv[2])\nmeasured(lambda: memgraft.NgramIndex.build(keys))",
          tmp_path / "keys.mgk")  # fmt: skip


def test_while_keys_are_sorted():
    check(
        "import numpy as np\n"
        "number = np.arange(2_000_000, dtype=np.uint32)\n"
        "tokens = np.stack([number * 7919 % 2000, number // 2000, number % 3], axis=1).reshape(-1)\n"
        "offsets = np.arange(0, len(tokens) + 1, 3, dtype=np.uint64)\n"
        "counts = (number % 50).astype(np.uint64)\n"
        "measured(lambda: memgraft.KeySet.from_arrays(tokens, offsets, counts, vocab_size=50_000))"
    )


def test_inside_one_lookup():
    check(
        "import numpy as np\n"
        "keys = memgraft.KeySet.from_keys([(1, 2), (2, 3, 1), (3,)], vocab_size=5)\n"
        "index = memgraft.NgramIndex.build(keys)\n"
        "tokens = np.random.default_rng(0).integers(0, 5, 1 << 25, np.uint8)\n"
        "measured(lambda: index.lookup(tokens, threads=1))"
    )


def values_of(folder, num_rows, value_dim):
    keys = memgraft.KeySet.from_arrays(
        np.arange(num_rows, dtype=np.uint32),
        np.arange(num_rows + 1, dtype=np.uint64),
        np.ones(num_rows, np.uint64),
        vocab_size=num_rows,
    )
    facts = {"fingerprint": "0" * 64}
    values = np.zeros((num_rows, 1, value_dim), np.float32)
    return memgraft.Bank.create(
        folder / "bank", keys=keys, values=values, taps=(0,), dtype="fp32", donor=facts, tokenizer=facts
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_inside_one_gather(tmp_path):
    values_of(tmp_path, 1000, 16)
    check(
        "import numpy as np\n"
        "memgraft.system.limit_threads(1)\n"
        "bank = memgraft.Bank.open(sys.argv[2] + '/bank')\n"
        "rows = np.random.default_rng(0).integers(0, 1000, 1 << 24, np.int32)\n"
        # Not `ru_maxrss`, which a process takes over from the one that started it.
        "status = lambda: open('/proc/self/status').read()\n"
        "measured(lambda: bank.values(rows), lambda: int(status().split('VmHWM:')[1].split()[0]))",
        tmp_path,
    )


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system counts no bytes that a process has read")
def test_inside_one_file_that_is_verified(tmp_path):
    values_of(tmp_path, 1 << 13, 1 << 14)
    check(
        "bank = memgraft.Bank.open(sys.argv[2] + '/bank')\n"
        "def read(): return int(open('/proc/self/io').readline().split()[1])\n"
        "measured(lambda: bank.verify(threads=1), read)",
        tmp_path,
    )


def test_while_coverage_is_counted():
    check(
        "import numpy as np, tempfile\n"
        "from memgraft.corpus import CorpusWriter\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    with CorpusWriter(folder + '/corpus', vocab_size=5) as writer:\n"
        "        writer.add(np.random.default_rng(0).integers(0, 5, 1 << 23, np.uint32))\n"
        "        corpus = memgraft.Corpus.open(writer.finish())\n"
        "    index = memgraft.NgramIndex.build(memgraft.KeySet.from_keys([(1, 2), (2, 3, 1), (3,)], vocab_size=5))\n"
        "    done = [0]\n"
        "    told = lambda phase, at, total: done.append(at)\n"
        "    measured(lambda: memgraft.coverage(index, corpus, threads=1, progress=told), lambda: done[-1])"
    )


def test_between_saves_nothing_half_is_left(tmp_path):
    work = (
        "keys = memgraft.KeySet.from_keys([(i % 300, i // 300) for i in range(90_000)], vocab_size=300)\n"
        "measured(lambda: [keys.save(sys.argv[2]) for _ in range(100_000)])"
    )
    assert run(work, "stop", tmp_path / "keys.mgk")[0] == "stopped"
    assert [path.name for path in tmp_path.iterdir()] == ["keys.mgk"]
    memgraft.KeySet.open(tmp_path / "keys.mgk").verify()

"""Ctrl-C inside one long native call: it is answered while the call goes on, not after it.

How far the work has come is told by the pages that it has touched, so that a slow machine changes nothing.
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
def measured(work):
    faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    before, answer = faults(), "finished"
    signal.signal(signal.SIGPROF, signal.default_int_handler)
    if sys.argv[1] == "stop": signal.setitimer(signal.ITIMER_PROF, 0.01)
    try: work()
    except KeyboardInterrupt: answer = "stopped"
    print(answer, faults() - before)
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
    tokens = np.unique(np.random.default_rng(0).integers(0, 50_000, (700_000, 3), np.uint32), axis=0)
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


def test_between_saves_nothing_half_is_left(tmp_path):
    work = (
        "keys = memgraft.KeySet.from_keys([(i % 300, i // 300) for i in range(90_000)], vocab_size=300)\n"
        "measured(lambda: [keys.save(sys.argv[2]) for _ in range(100_000)])"
    )
    assert run(work, "stop", tmp_path / "keys.mgk")[0] == "stopped"
    assert [path.name for path in tmp_path.iterdir()] == ["keys.mgk"]
    memgraft.KeySet.open(tmp_path / "keys.mgk").verify()

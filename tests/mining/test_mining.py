import collections
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memgraft
from memgraft.corpus import CorpusWriter
from memgraft.errors import ArgumentError, LimitError, StorageError, TokenError
from memgraft.mining import parse_bytes


def make_corpus(folder, documents, vocab_size=50, **facts):
    with CorpusWriter(folder / "corpus", vocab_size=vocab_size, **facts) as writer:
        for document in documents:
            writer.add(np.array(document, np.uint32))
        return memgraft.Corpus.open(writer.finish())


def brute(documents, orders, reserved=()):
    counts, frequency = collections.Counter(), collections.Counter()
    for document in documents:
        keys = [
            tuple(document[start : start + order])
            for order in orders
            for start in range(len(document) - order + 1)
            if not set(document[start : start + order]) & set(reserved)
        ]
        counts.update(keys)
        frequency.update(set(keys))
    return counts, frequency


documents_strategy = st.lists(st.lists(st.integers(0, 5), max_size=30), min_size=1, max_size=8).filter(any)


@settings(deadline=None, max_examples=60)
@given(documents=documents_strategy, min_count=st.integers(1, 3), budget=st.integers(3, 40))
def test_mine_equals_counting(tmp_path_factory, documents, min_count, budget):
    folder = tmp_path_factory.mktemp("corpus")
    corpus = make_corpus(folder, documents, vocab_size=6)
    keys = memgraft.mine(corpus, orders=(1, 3, 2), budget=budget, min_count=min_count, reserved=[4], threads=2)
    counts, frequency = brute(documents, (1, 2, 3), reserved=[4])
    want = []
    for order, share in zip((1, 2, 3), (budget + 2, budget + 1, budget), strict=True):
        ranked = sorted(
            (key for key in counts if len(key) == order and counts[key] >= min_count),
            key=lambda key: (-counts[key], key),
        )
        want += ranked[: share // 3]
    want.sort(key=lambda key: (-counts[key], key))
    assert list(keys) == want
    assert [keys.count(row) for row in range(len(keys))] == [counts[key] for key in want]
    assert [keys.documents(row) for row in range(len(keys))] == [frequency[key] for key in want]


def test_metadata_says_where_keys_come_from(tmp_path):
    corpus = make_corpus(
        tmp_path, [[n % 7, 1, 2, 9] for n in range(50)], eos_id=9, special_ids=[3], tokenizer="ab" * 32
    )
    train, held = corpus.split(held_out=0.2, seed=5)
    keys = memgraft.mine(train, orders=(2, 3), budget={2: 5, 3: 4})
    facts = keys.metadata
    assert facts["corpus"]["fingerprint"] == train.fingerprint != held.fingerprint
    assert facts["split"] == dict(train.split_facts)
    assert facts["tokenizer"] == "ab" * 32
    assert facts["mining"]["budgets"] == {"2": 5, "3": 4}
    assert facts["mining"]["positions"] == {"2": 2 * 40 - sum(train.tokens() == 3), "3": 40 - sum(train.tokens() == 3)}
    assert keys.vocab_size == 50
    assert not any({9, 3} & set(key) for key in keys)


def test_same_bytes_whatever_the_means(tmp_path):
    rng = np.random.default_rng(0)
    documents = np.split((rng.zipf(1.3, 120_000) % 997).astype(np.uint32), np.arange(500, 120_000, 500))
    corpus = make_corpus(tmp_path, documents, vocab_size=997)
    (tmp_path / "spill").mkdir()
    files = []
    for means in ({"threads": 1}, {"threads": 3}, {"threads": 2, "memory": "1200KiB", "temporary": tmp_path / "spill"}):
        keys = memgraft.mine(corpus, orders=(2, 3, 4), budget=3000, **means)
        keys.save(tmp_path / "keys.mgk")
        files.append((tmp_path / "keys.mgk").read_bytes())
    assert files[0] == files[1] == files[2]
    assert list((tmp_path / "spill").iterdir()) == []


def test_progress_runs_through_the_stages(tmp_path):
    calls = []
    memgraft.mine(make_corpus(tmp_path, [[1, 2, 3]] * 9), min_count=1, progress=lambda *call: calls.append(call))
    assert list(dict.fromkeys(phase for phase, _, _ in calls)) == ["scan", "sort", "count", "sample"]
    for phase in ("scan", "sort", "count"):
        assert next(done == total for name, done, total in reversed(calls) if name == phase)


def test_what_progress_raises_comes_out(tmp_path):
    def stop(phase, done, total):
        raise ZeroDivisionError(phase)

    with pytest.raises(ZeroDivisionError, match="scan"):
        memgraft.mine(make_corpus(tmp_path, [[1, 2, 3]]), progress=stop)


def test_ctrl_c_is_honoured(tmp_path):
    code = (
        "import os, signal, sys, memgraft\n"
        "corpus = memgraft.Corpus.open(sys.argv[1])\n"
        "def kill(phase, done, total):\n"
        "    if phase == 'sort': os.kill(os.getpid(), signal.SIGINT)\n"
        "try: memgraft.mine(corpus, progress=kill)\n"
        "except KeyboardInterrupt: print('stopped')\n"
    )
    path = make_corpus(tmp_path, [[1, 2, 3]] * 99).paths[0]
    result = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert result.stdout == "stopped\n"


def test_kill_leaves_nothing(tmp_path):
    """The spill has no name: even SIGKILL in the middle leaves the folder as it was."""
    rng = np.random.default_rng(0)
    corpus = make_corpus(tmp_path, [rng.integers(0, 30_000, 3_000_000)], vocab_size=30_000)
    spill = tmp_path / "spill"
    spill.mkdir()
    code = (
        "import sys, memgraft\n"
        "memgraft.mine(memgraft.Corpus.open(sys.argv[1]), memory='8MiB', min_count=2, temporary=sys.argv[2],\n"
        "    progress=lambda phase, done, total: print(phase, flush=True)).save(sys.argv[2] + '/keys.mgk')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, corpus.paths[0], spill],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        while process.stdout.readline().strip() != "sort":
            assert process.poll() is None
        time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert os.listdir(spill) == []


def test_refusals(tmp_path):
    corpus = make_corpus(tmp_path, [[1, 2, 3, 49]])
    for options, error, message in [
        ({"orders": (0, 2)}, ArgumentError, r"orders: expected some of 1 to 16, got \(0, 2\)"),
        ({"orders": ()}, ArgumentError, "orders"),
        ({"budget": 2}, ArgumentError, "at least one key for each of 3 orders"),
        ({"budget": {2: 4}}, ArgumentError, r"one entry for each of the orders \[2, 3, 4\]"),
        ({"min_count": 0}, ArgumentError, "min_count"),
        ({"reserved": [50]}, ArgumentError, "reserved: expected tokens below vocab_size 50, got 50"),
        ({"vocab_size": 49}, TokenError, r"vocab_size 49, found 49 at position 3 \(document 0\)"),
        ({"vocab_size": (1 << 20) + 1}, ArgumentError, "vocab_size"),
        ({"memory": "lots"}, ArgumentError, 'a size such as "4GiB"'),
        ({"memory": 1000}, ArgumentError, "memory: expected at least"),
    ]:
        with pytest.raises(error, match=message):
            memgraft.mine(corpus, **options)


def test_unknown_vocabulary_is_refused(tmp_path):
    np.save(tmp_path / "c.npy", np.array([1, 2, 3], np.uint16))
    corpus = memgraft.Corpus.open(tmp_path / "c.npy", documents="file")
    with pytest.raises(ArgumentError, match="give vocab_size="):
        memgraft.mine(corpus)
    assert len(memgraft.mine(corpus, vocab_size=4, min_count=1)) == 3


def test_spill_into_an_unwritable_folder(tmp_path):
    corpus = make_corpus(tmp_path, [np.arange(300_000) % 40])
    (tmp_path / "a_file").write_text("")
    with pytest.raises(StorageError, match=r"a_file.*name another with temporary="):
        memgraft.mine(corpus, memory="2MiB", temporary=tmp_path / "a_file" / "folder")


def test_full_disk_while_spilling(tmp_path):
    code = (
        "import resource, sys, memgraft\n"
        "corpus = memgraft.Corpus.open(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "try: memgraft.mine(corpus, memory='2MiB', temporary=sys.argv[2])\n"
        "except memgraft.errors.StorageError as error: print(error)\n"
    )
    rng = np.random.default_rng(0)
    corpus = make_corpus(tmp_path, [rng.integers(0, 900, 300_000)], vocab_size=900)
    result = subprocess.run(
        [sys.executable, "-c", code, corpus.paths[0], tmp_path], capture_output=True, text=True, check=True
    )
    assert f"{tmp_path}: writing temporary data for mining" in result.stdout
    assert "free some space, or give another temporary=" in result.stdout
    assert sorted(os.listdir(tmp_path)) == ["corpus.bin", "corpus.idx", "corpus.json"]


def test_selection_larger_than_the_memory(tmp_path):
    rng = np.random.default_rng(0)
    corpus = make_corpus(tmp_path, [rng.integers(0, 900, 200_000)], vocab_size=900)
    with pytest.raises(LimitError, match="more memory, a higher min_count, or a smaller budget"):
        memgraft.mine(corpus, budget=None, min_count=1, memory="2MiB", temporary=tmp_path)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GiB", 4 << 30), ("500MB", 500_000_000), ("1.5k", 1500), ("12", 12), (7, 7), (" 2 tib ", 2 << 40)],
)
def test_parse_bytes(text, size):
    assert parse_bytes(text) == size


def test_json_of_metadata_is_plain(tmp_path):
    keys = memgraft.mine(make_corpus(tmp_path, [[1, 2, 1, 2]]))
    assert json.loads(json.dumps(keys.metadata)) == keys.metadata

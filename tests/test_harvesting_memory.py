"""Judging, sorting and searching within a bounded memory: the answers are those of all at once, whoever works."""

import json
import re
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memgraft
from bank_cases import child_environment
from memgraft.bank.files import mapped_table
from memgraft.bank.health import length_groups
from memgraft.errors import ArgumentError, KeySetError, StorageError
from memgraft.harvesting import Contexts, open_donor, plan_harvest
from memgraft.harvesting.judging import Judge
from memgraft.harvesting.memory import needed_memory, working_memory
from memgraft.harvesting.occurrences import find_occurrences
from memgraft.harvesting.ordering import count_prefixes, longest, neighbours, order_keys
from memgraft.harvesting.packing import Ragged
from memgraft.harvesting.places import Places
from memgraft.harvesting.selecting import select_keys, selection_beside
from memgraft.harvesting.windows import Windows
from memgraft.keyset import KeySet
from memgraft.tokenizer import open_tokenizer
from tiny import byte_bpe, tiny_donor, tiny_text

SETTINGS = {"mined": "these"}


@pytest.fixture(scope="module")
def judge():
    """Eleven thousand keys, some cut inside a character: three blocks."""
    recipient = open_tokenizer(byte_bpe([tiny_text(1)], 300))
    donor = open_tokenizer(byte_bpe([tiny_text(2)], 320))
    generator = np.random.default_rng(0)
    tokens = generator.integers(1, 300, (12_000, 3))
    keys = KeySet.from_keys(list(dict.fromkeys(map(tuple, tokens.tolist())))[:11_000], vocab_size=300)
    return Judge(keys=keys, recipient=recipient, donor=donor, round_trip="text")


@pytest.fixture(scope="module")
def whole(judge):
    return select_keys(judge.keys, judge.recipient, judge.donor, "text")


def same(found, expected):
    return (
        found.kept.fingerprint == expected.kept.fingerprint
        and found.dropped == expected.dropped
        and found.num_prefixes == expected.num_prefixes
        and all(
            np.array_equal(one, other)
            for one, other in (
                (found.tokens.tokens, expected.tokens.tokens),
                (found.tokens.offsets, expected.tokens.offsets),
                (found.order, expected.order),
            )
        )
    )


@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 9, 400]), st.sampled_from([3, 22]))
@settings(max_examples=8, deadline=None)
def test_the_order_is_the_same_for_every_memory(seed, vocabulary, most):
    generator = np.random.default_rng(seed)
    lists = [generator.integers(0, vocabulary, generator.integers(1, most)).tolist() for _ in range(3000)]
    keys = Ragged.of(lists)
    orders = []
    for memory in (1, 1 << 30):
        out, spare = np.empty(len(keys), np.int64), np.empty(len(keys), np.int64)
        order_keys(keys, out, spare, memory)
        orders.append(out.tolist())
    assert orders[0] == orders[1] == sorted(range(len(lists)), key=lambda row: (lists[row], row))
    assert longest(keys) == max(map(len, lists))
    assert count_prefixes(keys, out) == len({tuple(one[:end]) for one in lists for end in range(1, len(one) + 1)})
    shared = [value for _, _, part in neighbours(keys, out) for value in part.tolist()]
    for place in range(1, len(lists), 97):
        one, other = lists[out[place - 1]], lists[out[place]]
        equal = [a == b for a, b in zip(one, other, strict=False)]
        assert shared[place] == (equal.index(False) if False in equal else len(equal))


def test_sorting_takes_no_more_than_it_may(tmp_path):
    generator = np.random.default_rng(1)
    number, memory = 200_000, 4 << 20
    lengths = generator.integers(1, 9, number)
    tokens = mapped_table(tmp_path / "tokens.npy", (int(lengths.sum()),), np.int32)
    tokens[:] = generator.integers(0, 50, len(tokens))
    offsets = mapped_table(tmp_path / "offsets.npy", (number + 1,), np.int64)
    offsets[1:] = np.cumsum(lengths)
    out, spare = (mapped_table(tmp_path / f"{name}.npy", (number,), np.int64) for name in ("out", "spare"))
    tracemalloc.start()
    order_keys(Ragged(tokens, offsets), out, spare, memory)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert memory // 8 < peak < 1.25 * memory, "and it is not far less, which would make sorting slow"


def test_a_table_needs_room(tmp_path, monkeypatch):
    import errno
    import os

    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match=r"order.npy: no room for .* bytes: No space left on device"):
        mapped_table(tmp_path / "order.npy", (1000,), np.int64)


def test_processes_judge_together(judge, whole, tmp_path):
    found, told = {}, {}

    def run(rank):
        told[rank] = []
        found[rank] = selection_beside(
            tmp_path / "bank.partial",
            SETTINGS,
            judge,
            memory=1 << 27,
            share=(rank, 2),
            progress=lambda phase, done, total: told[rank].append((phase, done, total)),
        )

    ranks = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert same(found[0], whole)
    assert same(found[1], whole)
    assert len(found[0].kept) < len(judge.keys)
    assert ("text", len(judge.keys), len(judge.keys)) in told[0] + told[1]
    assert not list(tmp_path.glob("bank.partial/judged-*")), "what is merged goes"
    told[0].clear()
    run(0)
    assert same(found[0], whole)
    assert told[0] == [], "it is read, and nothing is judged again"


def test_blocks_that_were_judged_before_a_kill_are_kept(judge, whole, tmp_path):
    told = []

    def report(phase, done, total):
        told.append(done)
        if len(told) == 1:
            raise KeyboardInterrupt

    for _ in range(2):
        try:
            found = selection_beside(tmp_path / "bank.partial", SETTINGS, judge, memory=1 << 27, progress=report)
        except KeyboardInterrupt:
            continue
    assert same(found, whole)
    assert told[:2] == [len(judge.keys) - 2 * judge.block_rows] * 2, "the first block is there the second time"


def test_other_settings_are_judged_again_and_a_refusal_leaves_nothing(judge, whole, tmp_path):
    partial = tmp_path / "bank.partial"
    selection_beside(partial, {"mined": "others"}, judge, memory=1 << 27)
    assert same(selection_beside(partial, SETTINGS, judge, memory=1 << 27), whole)
    assert json.loads((partial / "selection" / "selection.json").read_text())["settings"] == SETTINGS
    cut = KeySet.from_keys([tuple(open_tokenizer(byte_bpe([""], 257)).encode(["☃"])[0][:2])], vocab_size=300)
    none = Judge(keys=cut, recipient=judge.recipient, donor=judge.donor, round_trip="text")
    with pytest.raises(KeySetError, match=r"1 mined, dropped \{'partial_utf8': 1\}"):
        selection_beside(tmp_path / "other.partial", SETTINGS, none, memory=1 << 27)
    assert not (tmp_path / "other.partial").exists()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(3)
    with memgraft.CorpusWriter(folder / "corpus", eos_id=0, vocab_size=300) as writer:
        for _ in range(40):
            writer.add([*generator.integers(1, 40, 500).tolist(), 0])
        writer.finish()
    return memgraft.Corpus.open(folder / "corpus.bin")


def test_places_are_the_same_for_every_memory(corpus, judge):
    keys = memgraft.mine(corpus, (1, 2, 3), budget=3000)
    # One key that is nowhere, so that its row is read first.
    listed = [*keys, (50, 51)]
    keys = KeySet.from_keys(listed, vocab_size=300)
    contexts = Contexts(occurrences=2, left=4)
    windows = Windows.of(corpus, contexts, keys, judge.recipient, judge.donor)
    told = []
    little, much = (Places.find(keys, windows, memory, lambda *call: told.append(call)) for memory in (1, 1 << 30))
    assert np.array_equal(little.ends, much.ends)
    assert np.array_equal(little.ends, find_occurrences(keys, corpus, contexts))
    assert np.array_equal(little.order, np.argsort(much.ends[:, 0], kind="stable"))
    assert np.array_equal(little.order, much.order)
    assert little.counts == much.counts
    assert little.counts["num_without_occurrence"] == 1
    passes = -(-len(keys) // 1024)
    assert passes > 1
    assert told[0] == ("occurrences", corpus.num_tokens, passes * corpus.num_tokens), "a pass for keys that fit"


def test_groups_of_rows_in_blocks_are_those_of_all_at_once():
    generator = np.random.default_rng(5)
    lengths, counts = generator.integers(1, 12, 1_100_000), generator.integers(1, 99, 1_100_000)
    lengths[50:70] = 1  # and few of one length
    lengths[70:][lengths[70:] == 1] = 2
    found = length_groups(lengths, counts)
    assert found == length_groups(lengths, lambda start, stop: counts[start:stop])
    assert list(found) == [*map(str, range(1, 8)), "8+"]
    for name, group in found.items():
        rows = np.flatnonzero(lengths >= 8 if name == "8+" else lengths == int(name))
        spread = rows if len(rows) <= 96 else rows[np.linspace(0, len(rows) - 1, 96).astype(np.int64)]
        assert group["rows"] == len(rows)
        assert group["share"] == pytest.approx(counts[rows].sum() / counts.sum(), abs=1e-4)
        assert group["sample"] == " ".join(map(str, spread))


def test_a_plan_says_what_a_harvest_takes(tmp_path):
    tiny_donor(tmp_path / "donor")
    tokenizer = byte_bpe([tiny_text(1)], 300)
    keys = KeySet.from_keys([(60, 61), (61, 62), (62, 63, 64)], vocab_size=300)
    plan = plan_harvest(
        keys, recipient_tokenizer=tokenizer, donor=open_donor(tmp_path / "donor"), taps=(1, 2), memory="1GiB"
    )
    assert plan.memory["working"] == plan.memory["most"] == 1 << 30
    large = needed_memory(
        num_rows=300_000_000, order=3, num_taps=1, value_dim=2048, dtype="bf16", chunk_rows=8192, memory="2GiB"
    )
    assert large["most"] == large["sealing"] < 30e9
    assert large["chunks"] == 2 * 8192 * 2048 * 10
    for wrong in ("1MiB", "much", 0):
        with pytest.raises(ArgumentError, match="memory: expected"):
            working_memory(wrong)


CHILD = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from memgraft.harvesting import harvest, open_donor
from memgraft.keyset import KeySet
from memgraft.tokenizer import open_tokenizer
place, number = Path(sys.argv[1]), sys.argv[2]
donor, tokenizer = open_donor(place / "donor", compute_dtype="float32"), open_tokenizer(place / "tokenizer.json")
settings = {"recipient_tokenizer": tokenizer, "donor": donor, "taps": (0,), "prefix": "none", "memory": "128MiB"}
# Libraries load what they need with the first harvest.
harvest(KeySet.open(place / "few.mgk"), out=place / f"few-{number}", **settings)
print("ready", flush=True)
sys.stdin.readline()
harvest(KeySet.open(place / f"{number}.mgk"), out=place / f"bank-{number}", **settings)
"""


def growth(place, number):
    """Private bytes that harvesting ``number`` keys adds at most, as another process sees it."""

    def private():
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{child.pid}/status").read_text())
        return int(found[1]) << 10 if found else 0

    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(place), str(number)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=child_environment(),
    )
    assert child.stdout.readline() == "ready\n"
    before = most = private()
    child.stdin.write("\n")
    child.stdin.flush()
    while child.poll() is None:
        most = max(most, private())
        time.sleep(0.01)
    child.communicate()
    assert child.returncode == 0
    return most - before


@pytest.mark.slow
def test_a_harvest_of_more_keys_takes_no_more_than_is_said(tmp_path):
    """Sorting takes some 130 bytes a key where it may; lists of texts and tokens of all keys would take 600 more."""
    tiny_donor(tmp_path / "donor")
    byte_bpe([tiny_text(1)], 300).save(str(tmp_path / "tokenizer.json"))
    # Signs of ASCII alone: no key is cut inside a character.
    drawn = np.random.default_rng(0).integers(34, 127, (140_000, 3))
    listed = list(dict.fromkeys(map(tuple, drawn.tolist())))
    sizes = (20_000, 100_000)
    for name, number in (("few", 3000), *((number, number) for number in sizes)):
        KeySet.from_keys(listed[:number], vocab_size=300).save(tmp_path / f"{name}.mgk")
    little, much = (growth(tmp_path, number) for number in sizes)
    said = needed_memory(
        num_rows=sizes[1], order=3, num_taps=1, value_dim=32, dtype="bf16", chunk_rows=2048, memory="128MiB"
    )
    assert much < said["most"]
    assert much - little < 300 * (sizes[1] - sizes[0])

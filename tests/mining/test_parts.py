"""Parts mined apart and merged are what one process mines, byte for byte."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

import memgraft
from memgraft.corpus import CorpusWriter, write_sample
from memgraft.corpus.sample import sample_path
from memgraft.errors import ArgumentError, FingerprintError, FormatError, StorageError
from memgraft.mining import RunSet, merge_parts, mine_part, select_parts
from memgraft.mining.room import plan_merge, plan_part, plan_selection


def make_corpus(folder, documents, vocab_size=50, name="corpus", **facts):
    with CorpusWriter(folder / name, vocab_size=vocab_size, **facts) as writer:
        for document in documents:
            writer.add(np.array(document, np.uint32))
        return memgraft.Corpus.open(writer.finish())


def large_corpus(folder, **facts):
    rng = np.random.default_rng(3)
    documents = np.split((rng.zipf(1.3, 60_000) % 997).astype(np.uint32), np.arange(300, 60_000, 300))
    return make_corpus(folder, [*documents, [], [5]], vocab_size=997, **facts)


def saved(keys, path):
    keys.save(path)
    return path.read_bytes()


@settings(deadline=None, max_examples=15)
@given(
    documents=st.lists(st.lists(st.integers(0, 5), max_size=30), min_size=1, max_size=8).filter(any),
    world=st.integers(1, 5),
    budget=st.integers(2, 40),
)
def test_any_split_gives_the_bytes_of_one_process(tmp_path_factory, documents, world, budget):
    folder = tmp_path_factory.mktemp("parts")
    corpus = make_corpus(folder, documents, eos_id=5, tokenizer="ab" * 32)
    parts = [mine_part(corpus, folder / f"{rank}.mgr", (1, 3), rank=rank, world=world).path for rank in range(world)]
    want = saved(memgraft.mine(corpus, (1, 3), budget, min_count=1), folder / "one.mgk")
    assert saved(select_parts(parts[::-1], (1, 3), budget, min_count=1), folder / "parts.mgk") == want
    merged = merge_parts(parts, folder / "all.mgr")
    merged.verify()
    assert saved(select_parts([merged.path], budget=budget, min_count=1), folder / "merged.mgk") == want
    sample = write_sample(corpus, folder / "one.mgk").read_bytes()
    for name in ("parts", "merged"):
        assert (folder / f"{name}.mgk.sample").read_bytes() == sample


def test_shards_that_share_leaves_of_a_large_corpus_have_its_fingerprint(tmp_path):
    # A leaf has 2^20 tokens: shards start in one that a shard before began, and hold whole ones.
    tokens = np.random.default_rng(5).zipf(1.3, 2_400_000).clip(max=999).astype(np.uint16)
    with CorpusWriter(tmp_path / "large", vocab_size=1000) as writer:
        writer.add_many(tokens, np.full(2400, 1000))
        path = writer.finish()
    corpus = memgraft.Corpus.open(path)
    want = memgraft.mine(corpus, (1, 2), 500)
    for world in (2, 3, 7):
        parts = [
            mine_part(corpus, tmp_path / f"{world}-{rank}.mgr", (1, 2), rank=rank, world=world).path
            for rank in range(world)
        ]
        keys = select_parts(parts, budget=500)
        assert keys.metadata["corpus"] == want.metadata["corpus"]
        assert keys.fingerprint == want.fingerprint


@pytest.mark.parametrize("num_tokens", [1, 63, 64, 65_536, 65_537, 200_001])
def test_an_outline_is_what_the_format_says(tmp_path, num_tokens):
    tokens = np.random.default_rng(num_tokens).integers(0, 50, num_tokens, dtype=np.uint32)
    corpus = make_corpus(tmp_path, [tokens[: num_tokens // 3], tokens[num_tokens // 3 :]])
    part = mine_part(corpus, tmp_path / "part.mgr", (1,)).path
    want = blake3(b"memgraft corpus outline v1" + struct.pack("<QQQQ", num_tokens, 2, num_tokens // 3, num_tokens))
    if num_tokens <= 65_536:
        want.update(tokens.tobytes())
    else:
        for stretch in range(1024):
            start = stretch * (num_tokens - 64) // 1023
            want.update(tokens[start : start + 64].tobytes())
    assert f'"outline":"{want.hexdigest()}"'.encode() in part.read_bytes()


def test_parts_of_two_corpora_are_refused(tmp_path):
    corpora = {
        "a": make_corpus(tmp_path, [[1, 2, 3] * 10] * 20, name="a"),
        "b": make_corpus(tmp_path, [[7, 8, 9] * 10] * 20, name="b"),
    }
    mixed = [
        mine_part(corpora[name], tmp_path / f"{name}{rank}.mgr", (1, 2), rank=rank, world=2).path
        for rank, name in enumerate(corpora)
    ]
    for refused in (lambda: select_parts(mixed), lambda: merge_parts(mixed, tmp_path / "out.mgr")):
        with pytest.raises(FingerprintError, match=r"b1\.mgr: expected the corpus of .*a0\.mgr"):
            refused()
    assert not (tmp_path / "out.mgr").exists()
    apart = [
        mine_part(corpora["a"], tmp_path / f"apart{rank}.mgr", (1, 2), rank=rank, world=2, apart=True).path
        for rank in range(2)
    ]
    with pytest.raises(FingerprintError, match="found the same documents in shards 0 and 1"):
        select_parts(apart)


def test_split_memory_and_ranges_change_nothing(tmp_path):
    train, _ = large_corpus(tmp_path, eos_id=3).split(held_out=0.1, seed=2)
    want = saved(memgraft.mine(train, (2, 4), 3000), tmp_path / "one.mgk")
    parts = [
        mine_part(train, tmp_path / f"{rank}.mgr", (2, 4), rank=rank, world=3, memory=memory, threads=threads).path
        for rank, (memory, threads) in enumerate([("1200KB", 1), ("2MiB", 2), ("1GiB", 1)])
    ]
    assert saved(select_parts(parts, budget=3000, memory="4MiB", threads=2), tmp_path / "parts.mgk") == want
    ranges = [merge_parts(parts, tmp_path / f"range-{i}.mgr", part=(i, 3)).path for i in range(3)]
    assert saved(select_parts(ranges, budget=3000), tmp_path / "ranges.mgk") == want
    whole = mine_part(train, tmp_path / "whole.mgr", (2, 4))
    assert merge_parts(ranges, tmp_path / "merged.mgr").path.read_bytes() != whole.path.read_bytes()  # other shards
    assert whole.facts["shards"][0]["fingerprint"] == train.fingerprint


def test_parts_of_corpora_of_their_own(tmp_path):
    corpora = [make_corpus(tmp_path, [[rank, 1, 2, 1, 2]] * 3, name=f"c{rank}") for rank in range(3)]
    parts = [
        mine_part(corpus, tmp_path / f"{rank}.mgr", (2,), rank=rank, world=3, apart=True).path
        for rank, corpus in enumerate(corpora)
    ]
    together = make_corpus(tmp_path, [corpus.document(i) for corpus in corpora for i in range(3)], name="all")
    found, want = select_parts(parts), memgraft.mine(together, (2,))
    assert found.fingerprint == want.fingerprint
    assert found.metadata["mining"] == {**want.metadata["mining"]}
    assert found.metadata["corpus"]["num_tokens"] == together.num_tokens


@pytest.mark.slow
def test_kill_and_rerun_give_the_same_bytes(tmp_path):
    corpus = large_corpus(tmp_path)
    want = mine_part(corpus, tmp_path / "want.mgr").path.read_bytes()
    out = tmp_path / "part.mgr"
    code = (
        "import sys, memgraft.mining\n"
        "memgraft.mining.mine_part(memgraft.Corpus.open(sys.argv[1]), sys.argv[2], memory='1200KB', threads=1,\n"
        "    progress=lambda phase, done, total: print(phase, done > 0, total, flush=True))\n"
    )
    finished = 0
    for stop in ("sort True", "merge False"):
        command, sorts = [sys.executable, "-c", code, corpus.paths[0], out], set()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            while line := process.stdout.readline().split():
                sorts |= {int(line[2])} if line[0] == "sort" else set()
                if line[:2] == stop.split():
                    break
            process.send_signal(signal.SIGKILL)
        assert not out.exists() or process.returncode == 0
        # What lies in blocks that a killed process had finished is not sorted once more.
        assert sorts == {corpus.num_tokens - finished}
        if not out.exists():
            blocks = [name for name in os.listdir(tmp_path / "part.mgr.partial") if name.endswith(".block")]
            finished = sum(int(end) - int(start) for start, end, *_ in (block[:-6].split("-") for block in blocks))
            assert finished > 0
    assert mine_part(corpus, out).path.read_bytes() == want
    assert not (tmp_path / "part.mgr.partial").exists()
    before = out.stat().st_mtime_ns
    mine_part(corpus, out)
    assert out.stat().st_mtime_ns == before


def test_what_does_not_belong_together_is_refused(tmp_path):
    corpus = make_corpus(tmp_path, [[n % 7, 1, 2] for n in range(40)], tokenizer="ab" * 32)
    parts = [mine_part(corpus, tmp_path / f"{rank}.mgr", rank=rank, world=3).path for rank in range(3)]
    with pytest.raises(FingerprintError, match="shard 1 is missing"):
        select_parts([parts[0], parts[2]])
    with pytest.raises(FingerprintError, match="every shard once, found shard 0"):
        select_parts([*parts, parts[0]])
    other = make_corpus(tmp_path, [[1, 2, 3]] * 9, name="other", tokenizer="cd" * 32)
    foreign = mine_part(other, tmp_path / "foreign.mgr", rank=1, world=3).path
    with pytest.raises(FingerprintError, match="expected the tokenizer of"):
        select_parts([parts[0], foreign, parts[2]])
    with pytest.raises(FingerprintError, match="remove it, or choose another out"):
        mine_part(other, parts[0], rank=0, world=3)
    with pytest.raises(ArgumentError, match="at most 4, the longest that the parts hold, got 5"):
        select_parts(parts, (2, 5))
    with pytest.raises(ArgumentError, match="rank: expected 0 to 2"):
        mine_part(corpus, tmp_path / "x.mgr", rank=3, world=3)


@pytest.mark.parametrize("setting", ["orders", "split"])
def test_parts_of_other_settings_are_refused(tmp_path, setting):
    corpus = make_corpus(tmp_path, [[n % 7, 1, 2, n % 5] for n in range(60)], tokenizer="ab" * 32)
    (train, _), (other, _) = corpus.split(held_out=0.2, seed=0), corpus.split(held_out=0.2, seed=1)
    first = mine_part(train, tmp_path / "0.mgr", (2, 4), rank=0, world=2).path
    # Of the same longest order, so that its records alone do not tell.
    given = (other, (2, 4)) if setting == "split" else (train, (3, 4))
    second = mine_part(given[0], tmp_path / "1.mgr", given[1], rank=1, world=2).path
    for parts in ([first, second], [second, first]):
        refused = f"{parts[1]}: expected the {setting} of {parts[0]}, .*merge parts of one corpus"
        for work in (select_parts, lambda parts: merge_parts(parts, tmp_path / "merged.mgr")):
            with pytest.raises(FingerprintError, match=refused):
                work(parts)
    assert not (tmp_path / "merged.mgr").exists()
    with pytest.raises(FingerprintError, match="remove it, or choose another out"):
        mine_part(given[0], first, given[1], rank=0, world=2)


def test_a_merge_that_is_there_stays_whatever_the_order_of_its_parts(tmp_path):
    corpus = make_corpus(tmp_path, [[n % 7, 1, 2, n % 5] for n in range(60)])
    parts = [mine_part(corpus, tmp_path / f"{rank}.mgr", rank=rank, world=3).path for rank in range(3)]
    calls = [{"part": None}, {"part": (1, 2)}]
    outs = [merge_parts(parts, tmp_path / f"{number}-of-all.mgr", **call).path for number, call in enumerate(calls)]

    def state():
        # The sample is joined anew from those beside the parts, into the same bytes.
        untouched = [(out.stat().st_mtime_ns, out.stat().st_ino, out.read_bytes()) for out in outs]
        return untouched, [sample_path(out).read_bytes() for out in outs]

    before = state()
    for order in (parts, parts[::-1], [parts[1], parts[2], parts[0]]):
        for out, call in zip(outs, calls, strict=True):
            assert merge_parts(order, out, **call).path == out
        assert state() == before
    with pytest.raises(FingerprintError, match="expected the merge of the parts given, found one of others"):
        merge_parts(parts[:2], outs[0])
    assert state() == before


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_smallest_memory_changes_nothing(tmp_path, threads):
    corpus = large_corpus(tmp_path)
    needed = (1 << 20) + 997 * 16 * threads
    means = {"memory": needed, "threads": threads}
    want = saved(memgraft.mine(corpus, (2, 4), 3000, memory="4GiB", threads=threads), tmp_path / "want.mgk")
    assert saved(memgraft.mine(corpus, (2, 4), 3000, **means), tmp_path / "mined.mgk") == want
    parts = [mine_part(corpus, tmp_path / f"{rank}.mgr", (2, 4), rank=rank, world=2, **means).path for rank in range(2)]
    large = [mine_part(corpus, tmp_path / f"large-{rank}.mgr", (2, 4), rank=rank, world=2).path for rank in range(2)]
    assert [part.read_bytes() for part in parts] == [part.read_bytes() for part in large]
    assert saved(select_parts(parts, budget=3000, **means), tmp_path / "parts.mgk") == want
    merged = merge_parts(parts, tmp_path / "merged.mgr", **means).path
    assert merged.read_bytes() == merge_parts(large, tmp_path / "large.mgr").path.read_bytes()
    assert saved(select_parts([merged], budget=3000, **means), tmp_path / "merged.mgk") == want
    less = means | {"memory": needed - 1}
    for work in (
        lambda: memgraft.mine(corpus, (2, 4), 3000, **less),
        lambda: mine_part(corpus, tmp_path / "less.mgr", (2, 4), **less),
        lambda: select_parts(parts, budget=3000, **less),
        lambda: merge_parts(parts, tmp_path / "less.mgr", **less),
    ):
        with pytest.raises(ArgumentError, match=f"memory: expected at least {needed} bytes .* got {needed - 1}"):
            work()


@pytest.fixture
def with_free(monkeypatch):
    usage = shutil.disk_usage("/")
    return lambda free: monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))


def test_a_part_that_does_not_fit_is_refused_before_it_is_begun(tmp_path, with_free):
    corpus = large_corpus(tmp_path)
    out = tmp_path / "out" / "part.mgr"
    plan = plan_part(corpus, out, (2, 3))
    # Blocks, and the part that they are merged into.
    assert plan.bytes == int(2 * plan.bytes_per_token * corpus.num_tokens)
    half = plan_part(corpus, out, (2, 3), rank=1, world=2)
    assert abs(half.bytes - plan.bytes / 2) < plan.bytes / 10
    assert plan_part(corpus, out, (2, 3), rank=1, world=2, apart=True).bytes == plan.bytes
    with_free(1000)
    with pytest.raises(StorageError, match=rf"{out.parent}: expected about {plan.bytes:,} .* found 1,000; free some"):
        mine_part(corpus, out, (2, 3))
    assert list(out.parent.iterdir()) == []
    with_free(plan.least)
    part = mine_part(corpus, out, (2, 3))
    assert plan.least < 2 * part.facts["num_bytes"] < plan.bytes * 1.1
    # What is there is not written again.
    with_free(0)
    assert mine_part(corpus, out, (2, 3)).path == out


def test_what_an_unfinished_part_or_merge_left_is_there(tmp_path, with_free):
    corpus = large_corpus(tmp_path)
    out = tmp_path / "part.mgr"
    whole = plan_part(corpus, out, (2,))

    # The merge of its blocks cannot begin.
    (tmp_path / "part.mgr.partial" / "merged.records").mkdir(parents=True)
    with pytest.raises(StorageError):
        mine_part(corpus, out, (2,), memory="1200KiB", threads=1)
    (tmp_path / "part.mgr.partial" / "merged.records").rmdir()
    (tmp_path / "part.mgr.partial" / "merged.records").write_bytes(b"0" * 70)
    there = list((tmp_path / "part.mgr.partial").iterdir())
    blocks = [path.stat().st_size for path in there if path.suffix == ".block"]
    merged = sum(path.stat().st_size for path in there if path.suffix == ".records")
    plan = plan_part(corpus, out, (2,))
    # All blocks are there, and are still to be merged.
    assert plan.bytes == sum(blocks) - merged < whole.bytes
    assert plan.least == max(blocks) // 2 - merged
    with_free(plan.least)
    parts = [mine_part(corpus, out, (2,)).path]
    merged = tmp_path / "merged.mgr"
    [before] = plan_merge(parts, merged)
    (tmp_path / "merged.mgr.partial").mkdir()
    (tmp_path / "merged.mgr.partial" / "merged.records").write_bytes(b"0" * 500)
    [after] = plan_merge(parts, merged)
    assert (before.bytes - after.bytes, before.least - after.least) == (500, 500)


def test_a_rank_is_estimated_by_its_own_documents(tmp_path, with_free):
    rng = np.random.default_rng(0)
    repeated = [np.arange(200) % 50] * 400
    corpus = make_corpus(tmp_path, [*repeated, *rng.integers(0, 50, (400, 200))])
    plans = [plan_part(corpus, tmp_path / f"{rank}.mgr", (4,), rank=rank, world=2) for rank in range(2)]
    for rank, plan in enumerate(plans):
        with_free(plan.least)
        part = mine_part(corpus, tmp_path / f"{rank}.mgr", (4,), rank=rank, world=2)
        assert plan.least < part.facts["num_bytes"] + 5000
        assert part.facts["num_bytes"] < plan.bytes + 5000
    assert plans[0].bytes < plans[1].bytes / 50


def test_room_is_asked_of_the_folder_above_one_that_is_not_there_yet(tmp_path, with_free):
    corpus = large_corpus(tmp_path)
    parts = [mine_part(corpus, tmp_path / f"{rank}.mgr", (2,), rank=rank, world=2).path for rank in range(2)]
    with_free(1000)
    out = tmp_path / "new" / "folder" / "out.mgr"
    [plan] = plan_merge(parts, out, temporary=tmp_path)
    assert plan.free == 1000
    with pytest.raises(StorageError, match="found 1,000"):
        merge_parts(parts, out, temporary=tmp_path)


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 2), (0, 0), (5, 2**65), (2**64, 2)])
def test_ranks_that_cannot_be_are_refused_before_the_disk_is_asked(tmp_path, rank, world):
    corpus = large_corpus(tmp_path)
    for ask in (plan_part, mine_part):
        with pytest.raises(ArgumentError, match=r"rank|world"):
            ask(corpus, tmp_path / "part.mgr", (2,), rank=rank, world=world)


def test_orders_and_required_keys_may_be_iterators(tmp_path):
    corpus = make_corpus(tmp_path, [[1, 2, 3] * 10] * 20)
    part = mine_part(corpus, tmp_path / "part.mgr", iter((2, 3))).path
    assert part.read_bytes() == mine_part(corpus, tmp_path / "again.mgr", (2, 3)).path.read_bytes()
    required = [(9, 9), (8, 8, 8)]
    for policy in ("shares", "count", "documents", "gain"):
        for keys in (
            memgraft.mine(corpus, iter((2, 3)), 4, policy=policy, require=(key for key in required)),
            select_parts([part], iter((2, 3)), 4, policy=policy, require=(key for key in required)),
        ):
            assert all(key in keys for key in required)


def test_merges_that_do_not_fit_are_refused(tmp_path, with_free):
    corpus = large_corpus(tmp_path)
    parts = [mine_part(corpus, tmp_path / f"{rank}.mgr", (2,), rank=rank, world=5).path for rank in range(5)]
    size = sum(path.stat().st_size for path in parts)
    out = tmp_path / "all.mgr"
    [plan] = plan_merge(parts, out)
    assert plan.bytes == size
    assert plan.least == max(path.stat().st_size for path in parts) // 2
    with_free(1000)
    with pytest.raises(StorageError, match=r"for the merge of 5 parts, at least .* found 1,000; free some space"):
        merge_parts(parts, out)
    assert not (tmp_path / "all.mgr.partial").exists()
    # A selection writes nothing, unless there are more parts than it reads at a time.
    assert plan_selection(parts) == []
    select_parts(parts, (2,), 100)
    with_free(None)
    many = [parts[0]] * 400
    [most] = plan_selection(many, threads=1)
    assert "of which 256 are read at a time" in most.what
    assert most.bytes == 400 * parts[0].stat().st_size
    [joint] = plan_merge(many, out, temporary=tmp_path, threads=1)
    assert joint.bytes == 2 * most.bytes
    with_free(1000)
    with pytest.raises(StorageError, match="intermediate merges of 400 parts"):
        select_parts(many, (2,), 100, threads=1)
    with_free(plan.least)
    merged = merge_parts(parts, out)
    assert plan.least < merged.facts["num_bytes"] <= plan.bytes
    assert plan_merge(parts, out) == []
    with_free(0)
    merge_parts(parts, out)


def test_a_range_is_as_large_as_what_begins_with_its_tokens(tmp_path, with_free):
    # Half of all n-grams begin with token 1: no four ranges are of equal bytes. Sections have 2^20 bytes.
    documents = np.random.default_rng(0).integers(2, 5000, (5000, 400))
    documents[:, ::2] = 1
    corpus = make_corpus(tmp_path, documents, vocab_size=5000)
    parts = [mine_part(corpus, tmp_path / f"{rank}.mgr", (4,), rank=rank, world=2).path for rank in range(2)]
    plans = []
    for i in range(4):
        out = tmp_path / f"{i}-of-4.mgr"
        [plan] = plan_merge(parts, out, part=(i, 4))
        plans.append(plan)
        if plan.least > 0:
            with_free(plan.least - 1)
            with pytest.raises(StorageError, match=r"for the merge of 2 parts, at least .*; free some space"):
                merge_parts(parts, out, part=(i, 4))
        with_free(plan.least)
        assert plan.least < merge_parts(parts, out, part=(i, 4)).facts["num_bytes"] <= plan.bytes
    size = sum(path.stat().st_size for path in parts)
    assert size <= sum(plan.bytes for plan in plans) < 1.5 * size
    assert max(plan.bytes for plan in plans) > 0.4 * size
    assert max(plan.least for plan in plans) > 0.1 * size
    with pytest.raises(ArgumentError, match="range"):
        plan_merge(parts, tmp_path / "out.mgr", part=(4, 4))
    with pytest.raises(StorageError, match=r"missing\.mgr"):
        plan_merge([*parts, tmp_path / "missing.mgr"], tmp_path / "out.mgr", part=(0, 4))


@pytest.mark.parametrize("damage", ["cut", "flip", "version", "foreign"])
def test_damaged_parts_are_refused(tmp_path, damage):
    path = mine_part(make_corpus(tmp_path, [[1, 2, 1, 2, 3]]), tmp_path / "part.mgr").path
    content = bytearray(path.read_bytes())
    match damage:
        case "cut":
            del content[-9:]
        case "flip":
            content[70] ^= 4
        case "version":
            content[14] = 7
        case "foreign":
            content[:8] = b"MEMGRAFT"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=str(path)):
        select_parts([path])


def test_facts_of_a_part(tmp_path):
    corpus = make_corpus(tmp_path, [[1, 2, 3]] * 4, eos_id=9)
    part = RunSet.open(mine_part(corpus, tmp_path / "part.mgr", (2, 3)).path)
    assert part.facts["max_order"] == 3
    assert part.facts["reserved"] == [9]
    assert part.facts["settings"]["orders"] == [2, 3]
    assert json.loads(json.dumps(part.facts)) == part.facts

"""Corpora that are hard on a miner, from every reader, in every split: counts are those of a Counter."""

import collections
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import corpus_layouts as layouts
import memgraft
from memgraft.errors import FingerprintError, FormatError, MemgraftError, StorageError
from memgraft.mining import merge_parts, mine_part, select_parts

EOS = 7
READERS = {
    "megatron": (lambda folder, documents: layouts.write_megatron(folder / "c", documents), {}),
    "datatrove": (lambda folder, documents: layouts.write_datatrove(folder / "c.ds", documents), {}),
    "nanogpt": (
        lambda folder, documents: layouts.write_nanogpt(folder / "c.bin", ended(documents)),
        {"dtype": "uint16"},
    ),
    "llmc": (lambda folder, documents: layouts.write_llmc(folder / "c.bin", ended(documents)), {"delimiter": "end"}),
    "numpy": (lambda folder, documents: layouts.write_npy(folder / "c.npy", ended(documents)), {}),
    "parquet": (lambda folder, documents: write_parquet(folder / "c.parquet", documents), {}),
}


def ended(documents):
    return [[*document, EOS] for document in documents]


def write_parquet(path, documents):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"input_ids": pa.array(documents, pa.list_(pa.uint16()))}), path, row_group_size=3)
    return path


@pytest.fixture(scope="module")
def documents():
    """Of one token, empty, larger than the smallest memory, and with the last id that two bytes hold."""
    rng = np.random.default_rng(0)
    large = (rng.zipf(1.4, 40_000) % 5000 + 8).tolist()
    small = [(65_536 - rng.zipf(1.3, size).clip(max=60_000)).tolist() for size in rng.integers(0, 9, 40)]
    return [[65_535], [], *small[:20], large, [], *small[20:], [65_535] * 9, [8], []]


@pytest.fixture(scope="module")
def counted(documents):
    counts, frequency = collections.Counter(), collections.Counter()
    for document in documents:
        keys = [tuple(document[i : i + n]) for n in (1, 2, 3) for i in range(len(document) - n + 1)]
        counts.update(keys)
        frequency.update(set(keys))
    return {key: (count, frequency[key]) for key, count in counts.items()}


@pytest.mark.parametrize("orders", [(1, 3), (1, 2, 3)])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_in_every_split_counts_like_a_counter(tmp_path, documents, counted, reader, threads, orders):
    write, options = READERS[reader]
    path = write(tmp_path, documents)
    if reader in ("nanogpt", "llmc", "numpy"):
        options = options | {"eos_id": EOS}
    corpus = memgraft.Corpus.open(path, **options)
    # Little more than the least for these threads, whose histograms of the vocabulary take a megabyte each.
    given = {"vocab_size": 1 << 16, "memory": ("2200KB", "3200KB")[threads - 1], "threads": threads}
    whole = memgraft.mine(corpus, orders, None, min_count=1, **given)
    want = {key: found for key, found in counted.items() if len(key) in orders}
    assert {key: (whole.count(row), whole.documents(row)) for row, key in enumerate(whole)} == want
    for world in (3, 60) if (reader, threads) == ("megatron", 1) else (3,):
        parts = []
        for rank in range(world):
            out = tmp_path / f"{world}-{rank}.mgr"
            parts.append(mine_part(corpus, out, orders, rank=rank, world=world, **given).path)
        assert select_parts(parts, budget=None, min_count=1, threads=threads).fingerprint == whole.fingerprint
    if world == 60:
        # More ranks than documents with tokens: some have none.
        assert any(memgraft.mining.RunSet.open(part).facts["num_records"] == 0 for part in parts)


def test_what_is_no_part_is_refused(tmp_path):
    with memgraft.CorpusWriter(tmp_path / "c", vocab_size=50) as writer:
        writer.add(np.arange(40) % 7)
        corpus = memgraft.Corpus.open(writer.finish())
    part = mine_part(corpus, tmp_path / "0.mgr").path
    memgraft.mine(corpus).save(tmp_path / "keys.mgk")
    others = [tmp_path / "keys.mgk", corpus.paths[0], tmp_path / "empty.mgr", tmp_path / "half.mgr"]
    others[2].write_bytes(b"")
    others[3].write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    for other in others:
        for work in (lambda: select_parts([part, other]), lambda: merge_parts([part, other], tmp_path / "out.mgr")):  # noqa: B023
            with pytest.raises(FormatError, match=str(other)):
                work()
    with pytest.raises(MemgraftError, match=r"none\.mgr"):
        select_parts([tmp_path / "none.mgr"])
    assert not (tmp_path / "out.mgr").exists()


CODE = """
import sys, memgraft.mining
work, source, out, *more = sys.argv[1:]
def told(phase, done, total):
    # The process goes on when the test says so, or is killed here; its workers go on meanwhile.
    print(phase, done, flush=True)
    sys.stdin.readline()
if work == "part":
    memgraft.mining.mine_part(memgraft.Corpus.open(source), out, memory="1200KB", threads=2, progress=told)
else:
    memgraft.mining.merge_parts([source, *more], out, memory="1200KB", threads=2, progress=told)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_kills_at_random_points_change_no_byte(tmp_path, seed):
    rng, chance = np.random.default_rng(seed), random.Random(seed)
    with memgraft.CorpusWriter(tmp_path / "c", vocab_size=997) as writer:
        for size in [*rng.integers(0, 400, 300), 30_000]:
            writer.add((rng.zipf(1.2, size) % 997).astype(np.uint32))
        path = writer.finish()
    corpus = memgraft.Corpus.open(path)
    want = [mine_part(corpus, tmp_path / f"want-{rank}.mgr", rank=rank, world=2).path for rank in range(2)]
    want_merged = merge_parts(want, tmp_path / "want.mgr").path.read_bytes()
    whole = mine_part(corpus, tmp_path / "whole.mgr").path.read_bytes()
    # A first run reports four times at least for a part, twice for a merge.
    for arguments, expected, most in ((["part", path], whole, 4), (["merge", want[0]], want_merged, 2)):
        out = tmp_path / f"{arguments[0]}.mgr"
        command = [sys.executable, "-c", CODE, *map(str, arguments), str(out)]
        command += [str(want[1])] if arguments[0] == "merge" else []
        kills = 0
        for _ in range(4):
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
                for _ in range(chance.randrange(1, most)):
                    if process.stdout.readline():
                        process.stdin.write("\n")
                        process.stdin.flush()
                process.stdout.readline()
                time.sleep(chance.random() / 50)
                process.kill()
            kills += process.returncode == -signal.SIGKILL
            if out.exists():
                assert out.read_bytes() == expected
        assert kills
        done = subprocess.run(command, input="\n" * 9999, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert out.read_bytes() == expected
        assert not os.path.exists(f"{out}.partial")


def test_a_block_of_an_unfinished_part_is_no_part(tmp_path):
    with memgraft.CorpusWriter(tmp_path / "c", vocab_size=997) as writer:
        for _ in range(200):
            writer.add(np.random.default_rng(1).integers(0, 997, 300).astype(np.uint32))
        corpus = memgraft.Corpus.open(writer.finish())

    # The merge of its blocks cannot begin.
    (tmp_path / "0.mgr.partial" / "merged.records").mkdir(parents=True)
    with pytest.raises(StorageError):
        mine_part(corpus, tmp_path / "0.mgr", memory="1200KB", threads=1)
    (tmp_path / "0.mgr.partial" / "merged.records").rmdir()
    blocks = sorted((tmp_path / "0.mgr.partial").glob("*.block"))
    assert blocks
    with pytest.raises(FingerprintError, match="a block of the unfinished part"):
        select_parts(blocks[:1])
    # Finished blocks of another corpus beside the part: refused, not mixed in.
    with memgraft.CorpusWriter(tmp_path / "d", vocab_size=997) as writer:
        writer.add(np.arange(500) % 997)
        other = memgraft.Corpus.open(writer.finish())
    with pytest.raises(FingerprintError, match="remove the folder, or choose another out"):
        mine_part(other, tmp_path / "0.mgr", threads=1)

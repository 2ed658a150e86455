"""What a sample beside the keys says of text, against counting."""

import itertools
import json

import numpy as np
import pytest

from memgraft import Corpus, CorpusWriter, KeySet, NgramIndex, coverage, mine
from memgraft.corpus import CorpusSample, Shard, overlap, sample, sample_of, write_sample
from memgraft.errors import CorpusError, FormatError


def documents(seed, count, size=60):
    return list(np.random.default_rng(seed).integers(1, 5000, (count, size)))


def corpus(folder, listed, **facts):
    with CorpusWriter(folder, vocab_size=5000, **facts) as writer:
        for document in listed:
            writer.add(np.asarray(document, np.uint32))
        return Corpus.open(writer.finish())


@pytest.mark.parametrize("eos_id", [None, 0])
def test_a_sample_of_all_is_exact(tmp_path, eos_id):
    ours, new = documents(0, 50), documents(1, 30)
    end = [] if eos_id is None else [eos_id]
    mined = corpus(tmp_path / "mined", [[*each, *end] for each in ours], eos_id=eos_id)
    found = CorpusSample.of(mined)
    assert (found.num_tokens, len(found.documents)) == (mined.num_tokens, 50)
    for shared in (0, 1, 3, 30):
        other = corpus(tmp_path / str(shared), [*ours[:shared], *new[shared:]])
        assert found.share(other) == overlap(mined, other).share


def test_mining_takes_a_sample_unless_told_not_to(tmp_path):
    ours = [np.tile(each, 2) for each in documents(0, 50)]
    mined = corpus(tmp_path / "mined", ours)
    other = corpus(tmp_path / "other", [*ours[:10], *documents(1, 10, 120)])
    keys = mine(mined, budget=200)
    keys.save(tmp_path / "keys.mgk")
    for each in (keys, KeySet.open(tmp_path / "keys.mgk")):
        assert sample_of(each).to_bytes() == CorpusSample.of(mined).to_bytes()
        found = coverage(NgramIndex.build(each), other, keys=each)
        assert (found["mined_from_it"], found["shared_with_mined"]) == (False, 0.5)
    assert sample_of(mine(mined, budget=200, sample=False)) is None


def test_documents_cut_or_joined_are_found_by_runs(tmp_path):
    ours = documents(0, 40, 200)
    found = CorpusSample.of(corpus(tmp_path / "mined", ours))
    joined = corpus(tmp_path / "joined", [np.concatenate(ours[:20])[7:]])
    assert not set(found.documents.tolist()) & set(CorpusSample.of(joined).documents.tolist())
    assert found.share(joined) > 0.8
    found.refuse(joined, "text that shares runs alone")
    assert found.share(corpus(tmp_path / "new", documents(1, 40, 200))) == 0


def test_a_small_one_tells_about_how_much_also_of_what_recurs(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "MOST", 400)
    ours = documents(0, 2000)
    # A tenth of all documents is one and the same.
    mined = corpus(tmp_path / "mined", [*ours, *[ours[0]] * 200])
    found = CorpusSample.of(mined)
    assert len(found.documents) == len(found.runs) == 400
    for name, other in {
        "half": [*ours[::4], *documents(1, 500)],
        "recurring": [*[ours[0]] * 20, *documents(1, 980)],
        "new": documents(2, 1000),
    }.items():
        here = corpus(tmp_path / name, other)
        assert found.share(here) == pytest.approx(overlap(mined, here).share, abs=0.08)
    assert found.share(corpus(tmp_path / "little", ours[1:2])) is None


def test_of_a_large_corpus_some_blocks_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "MOST_READ", 3000)
    mined = corpus(tmp_path / "mined", documents(0, 100))
    found = CorpusSample.of(mined, block_tokens=600)
    assert (found.num_tokens, found.num_tokens_read, len(found.documents)) == (6000, 3000, 50)
    assert found.share(mined) == pytest.approx(0.5, abs=0.05)


def test_it_lies_beside_the_keys_and_goes_with_them(tmp_path):
    ours = documents(0, 50)
    mined = corpus(tmp_path / "mined", ours)
    keys = mine(mined, min_count=1, sample=False)
    keys.save(tmp_path / "keys.mgk")
    opened = KeySet.open(tmp_path / "keys.mgk")
    assert sample_of(keys) is sample_of(opened) is None
    written = write_sample(mined, tmp_path / "keys.mgk")
    found = sample_of(opened)
    assert CorpusSample.of(mined).to_bytes() == found.to_bytes() == written.read_bytes()
    other = corpus(tmp_path / "other", [*ours[:20], *documents(1, 20)])
    assert coverage(NgramIndex.build(opened), other, keys=opened)["shared_with_mined"] == pytest.approx(0.5)
    assert coverage(NgramIndex.build(opened), other, keys=keys)["shared_with_mined"] is None
    with pytest.raises(CorpusError, match=r"the text: expected documents .* about 50% of its tokens in such"):
        found.refuse(other, "the text")
    # One of another corpus says nothing.
    write_sample(other, tmp_path / "keys.mgk")
    assert sample_of(opened) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda facts: facts.pop("runs"), "found: 'runs'"),
        (lambda facts: facts.update(format_version=2), "expected a sample of version 1"),
        (lambda facts: facts.update(documents="%%%"), "expected the sample of a corpus"),
        (lambda facts: facts.update(documents="QUJD"), "expected the sample of a corpus"),
    ],
)
def test_a_damaged_one_is_named(tmp_path, change, says):
    mined = corpus(tmp_path / "mined", documents(0, 5))
    path = write_sample(mined, tmp_path / "keys.mgk")
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))
    with pytest.raises(FormatError, match=says):
        CorpusSample.open(path)


@pytest.mark.parametrize("world", [1, 2, 3, 7, 60])
def test_shards_hold_the_documents_that_end_after_their_share_begins(tmp_path, world):
    sizes = [int(size) for size in np.random.default_rng(world).integers(1, 90, 40)]
    whole = corpus(tmp_path / "whole", [[at + 1] * size for at, size in enumerate(sizes)])
    ends = np.cumsum(sizes)
    begin = [0, *(int((ends <= whole.num_tokens * rank // world).sum()) for rank in range(1, world)), len(sizes)]
    assert [whole.cut(rank, world) for rank in range(world + 1)] == begin
    for rank, (first, last) in enumerate(itertools.pairwise(begin)):
        shard = Shard(corpus=whole, rank=rank, world=world, fingerprint="")
        assert np.diff(shard.document_starts).tolist() == sizes[first:last]
        assert shard.tokens().tolist() == np.repeat(np.arange(first, last) + 1, sizes[first:last]).tolist()

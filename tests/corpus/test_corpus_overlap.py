"""What two corpora share, against a count by sets; and corpora written in two parts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memgraft import mine
from memgraft.corpus import Corpus, CorpusWriter, overlap, refuse_overlap, write_split
from memgraft.errors import ArgumentError, CorpusError

Texts = st.lists(st.lists(st.integers(1, 3), max_size=12), min_size=1, max_size=6)


class Stream:
    """Documents in memory, in the form that `overlap` asks for."""

    def __init__(self, documents, eos_id=None):
        self.eos_id = eos_id
        ends = [[eos_id]] * len(documents) if eos_id is not None else [[]] * len(documents)
        joined = [[*document, *end] for document, end in zip(documents, ends, strict=True)]
        self.document_starts = np.cumsum([0, *map(len, joined)]).astype(np.uint64)
        self.all = np.array([token for document in joined for token in document], np.uint32)
        self.num_tokens = len(self.all)

    def tokens(self, start=0, stop=None):
        return self.all[start:stop]


def runs(document, length):
    return [tuple(document[at : at + length]) for at in range(len(document) - length + 1)]


@settings(max_examples=60)
@given(Texts, Texts, st.integers(2, 5))
def test_overlap_is_what_sets_say(there, here, length):
    found = overlap(Stream(there), Stream(here, eos_id=0), length=length)
    known, known_runs = {tuple(d) for d in there}, {run for d in there for run in runs(d, length)}
    asked = [tuple(d) for d in here if d]
    shared = [d for d in asked if d in known]
    looked_for = [run for d in asked for run in runs(d, length)]
    assert (found.num_documents, found.num_shared_documents) == (len(asked), len(shared))
    assert (found.num_tokens, found.num_shared_tokens) == (sum(map(len, asked)), sum(map(len, shared)))
    assert (found.num_runs, found.num_shared_runs) == (len(looked_for), sum(run in known_runs for run in looked_for))
    assert 0 <= found.share <= 1


def test_documents_that_were_cut_otherwise_are_found_by_their_runs():
    generator = np.random.default_rng(0)
    documents = [generator.integers(1, 50000, 500).tolist() for _ in range(20)]
    windows = [document[at : at + 100] for document in documents[:10] for at in range(0, 500, 100)]
    fresh = [generator.integers(1, 50000, 500).tolist() for _ in range(10)]
    found = overlap(Stream(documents), Stream(windows + fresh))
    assert (found.num_shared_documents, found.num_shared_runs) == (0, 50 * 69)
    assert found.num_runs == 50 * 69 + 10 * 469
    assert overlap(Stream(documents), Stream(documents)).share == 1
    with pytest.raises(ArgumentError, match="at least 2"):
        overlap(Stream(documents), Stream(documents), length=1)


def test_sampled_runs_are_the_same_in_both():
    generator = np.random.default_rng(1)
    documents = [generator.integers(1, 50000, 400).tolist() for _ in range(10)]
    found = overlap(
        Stream(documents), Stream([*documents[5:], generator.integers(1, 50000, 400).tolist()]), most_runs=64
    )
    assert 0 < found.num_runs < 6 * 369 / 16
    assert 0.5 < found.share < 1


def write(path, documents):
    with CorpusWriter(path, vocab_size=100, eos_id=99, tokenizer="a" * 64, special_ids=[99]) as writer:
        for document in documents:
            writer.add(document)
        return writer.finish()


def test_written_parts_are_those_of_the_split(tmp_path):
    generator = np.random.default_rng(0)
    corpus = Corpus.open(write(tmp_path / "all", [generator.integers(0, 99, 1 + n % 9) for n in range(40)]))
    paths = write_split(corpus, tmp_path / "train", tmp_path / "held", held_out=0.25, seed=3)
    for path, part in zip(paths, corpus.split(held_out=0.25, seed=3), strict=True):
        opened = Corpus.open(path)
        assert opened.fingerprint == part.fingerprint
        assert opened.split_facts == part.split_facts
        for name in ("eos_id", "vocab_size", "tokenizer", "special_ids", "num_documents"):
            assert getattr(opened, name) == getattr(part, name)
    held = Corpus.open(paths[1])
    assert overlap(corpus, held).num_shared_documents == held.num_documents == 10
    options = {"orders": (2,), "min_count": 1}
    apart = mine(Corpus.open(paths[0]), **options)
    together = mine(corpus.split(held_out=0.25, seed=3)[0], **options)
    assert apart.fingerprint == together.fingerprint
    assert apart.metadata["split"] == together.metadata["split"]


def test_a_vocabulary_that_is_not_known_stays_so(tmp_path):
    np.array([5, 6, 0, 7, 0, 8, 9, 0], np.uint16).tofile(tmp_path / "c.bin")
    paths = write_split(Corpus.open(tmp_path / "c.bin", eos_id=0), tmp_path / "t", tmp_path / "h", held_out=0.3)
    assert [Corpus.open(path).vocab_size for path in paths] == [None, None]


def corpus_of(folder, documents):
    with CorpusWriter(folder, vocab_size=500, eos_id=0) as writer:
        for document in documents:
            writer.add(np.array(document, np.uint32))
        return Corpus.open(writer.finish())


def test_text_that_was_learnt_from_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, 500, 60) for _ in range(40)]
    train = corpus_of(tmp_path / "a", texts[:20])
    assert refuse_overlap(train, corpus_of(tmp_path / "b", texts[20:]), "A", "B").share == 0
    few = refuse_overlap(train, corpus_of(tmp_path / "c", texts[19:]), "A", "C")
    assert few.num_shared_documents == 1
    assert few.warning("A", "C").startswith("C shares 1 of 21 documents and 5% of its runs of 32 tokens with A")
    with pytest.raises(CorpusError, match=r"B: expected documents .* not in A, found 5 of 25 there \(20% of the"):
        refuse_overlap(train, corpus_of(tmp_path / "d", texts[15:]), "A", "B")


def test_parts_of_one_split_may_share_what_occurs_twice(tmp_path):
    document = np.arange(1, 61)
    both = corpus_of(tmp_path / "a", [document] * 10).split(held_out=0.3)
    found = refuse_overlap(*both, "A", "B")
    assert found.share == 1
    assert found.facts()["num_shared_documents"] == 3

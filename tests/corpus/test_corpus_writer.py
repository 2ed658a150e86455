import json
import os
import subprocess
import sys

import numpy as np
import pytest

import corpus_layouts as layouts
import memgraft
from memgraft.corpus import CorpusWriter, writer
from memgraft.errors import ArgumentError, CorpusError, StorageError, TokenError

DOCUMENTS = [[5, 7, 9], [], [40000, 1, 2, 3]]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, "uint16"), (65_537, "int32")])
def test_the_pair_is_what_megatron_writes(vocab_size, dtype, tmp_path):
    with CorpusWriter(tmp_path / "ours", vocab_size=vocab_size) as corpus:
        for document in DOCUMENTS:
            corpus.add(np.array(document, np.int64))
        corpus.finish()
    layouts.write_megatron(tmp_path / "theirs", DOCUMENTS, dtype)
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"ours{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()
    read = memgraft.Corpus.open(tmp_path / "ours")
    assert [read.document(number).tolist() for number in range(3)] == DOCUMENTS
    assert read.vocab_size == vocab_size


def test_documents_beyond_one_sequence(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "MAX_SEQUENCE", 2)
    with CorpusWriter(tmp_path / "c.bin", vocab_size=50_000) as corpus:
        for document in DOCUMENTS:
            corpus.add(document)
        path = corpus.finish()
    assert path == tmp_path / "c.bin"
    read = memgraft.Corpus.open(path)
    assert [read.document(number).tolist() for number in range(3)] == DOCUMENTS


def test_facts_travel_with_the_tokens(tmp_path):
    options = {"vocab_size": 50, "eos_id": 4, "tokenizer": "ab" * 32, "special_ids": [4, 5]}
    for name in ("a", "b"):
        with CorpusWriter(tmp_path / name, **options) as corpus:
            corpus.add([1, 4])
            corpus.finish()
    read = memgraft.Corpus.open(tmp_path)
    assert (read.vocab_size, read.eos_id, read.tokenizer, read.special_ids) == (50, 4, "ab" * 32, (4, 5))
    facts = json.loads((tmp_path / "b.json").read_text())
    (tmp_path / "b.json").write_text(json.dumps({**facts, "tokenizer": "cd" * 32}))
    with pytest.raises(TokenError, match="open corpora of different tokenizers apart"):
        memgraft.Corpus.open(tmp_path)
    (tmp_path / "b.json").write_text("[1")
    assert memgraft.Corpus.open(tmp_path / "b").vocab_size is None


def test_facts_of_another_corpus_are_noticed(tmp_path):
    for name, tokens in (("a", [1, 2]), ("b", [1, 2, 3])):
        with CorpusWriter(tmp_path / name, vocab_size=9) as corpus:
            corpus.add(tokens)
            corpus.finish()
    (tmp_path / "a.json").write_bytes((tmp_path / "b.json").read_bytes())
    with pytest.raises(CorpusError, match=r"a\.bin: expected the 3 tokens that the \.json beside it records, found 2"):
        memgraft.Corpus.open(tmp_path / "a")


def test_nothing_stands_under_its_final_name_before_the_end(tmp_path):
    with CorpusWriter(tmp_path / "c", vocab_size=9) as corpus:
        corpus.add([1, 2])
        assert all(name.startswith(".") for name in os.listdir(tmp_path))
        corpus.abort()
    assert os.listdir(tmp_path) == []
    with pytest.raises(TokenError), CorpusWriter(tmp_path / "c", vocab_size=9) as corpus:
        corpus.add_many([1, 2, 9], [2, 1])
    assert os.listdir(tmp_path) == []


def test_the_end_of_the_block_finishes(tmp_path):
    with CorpusWriter(tmp_path / "c", vocab_size=9) as corpus:
        corpus.add([1, 2])
        corpus.add([3])
        assert repr(corpus) == f"CorpusWriter({tmp_path / 'c'}, 3 tokens, 2 documents)"
    assert memgraft.Corpus.open(tmp_path / "c").tokens().tolist() == [1, 2, 3]
    for late in (lambda: corpus.add([1]), lambda: corpus.add_many([1], [1]), corpus.finish):
        with pytest.raises(ArgumentError, match="has finished or was given up; make another one"):
            late()
    assert sorted(os.listdir(tmp_path)) == ["c.bin", "c.idx", "c.json"]
    with pytest.raises(CorpusError, match="expected at least one token"), CorpusWriter(tmp_path / "d", vocab_size=9):
        pass


def test_replacing_a_corpus(tmp_path):
    for tokens in ([1, 2, 3], [4]):
        with CorpusWriter(tmp_path / "c", vocab_size=9) as corpus:
            corpus.add(tokens)
            corpus.finish()
        assert memgraft.Corpus.open(tmp_path / "c").tokens().tolist() == tokens
    assert sorted(os.listdir(tmp_path)) == ["c.bin", "c.idx", "c.json"]


def test_refusals(tmp_path):
    with pytest.raises(ArgumentError, match="vocab_size"):
        CorpusWriter(tmp_path / "c", vocab_size=0)
    with pytest.raises(StorageError, match=r"nowhere/c.*choose a folder"):
        CorpusWriter(tmp_path / "nowhere" / "c", vocab_size=9)
    with CorpusWriter(tmp_path / "c", vocab_size=9) as corpus:
        with pytest.raises(TokenError, match="document 0: expected tokens below vocab_size 9, found 9"):
            corpus.add([1, 9])
        with pytest.raises(TokenError, match="found -1"):
            corpus.add([-1, 3])
        with pytest.raises(ArgumentError, match="1-D integer array, got float64"):
            corpus.add([0.5])
        corpus.add([])
        with pytest.raises(CorpusError, match="at least one token"):
            corpus.finish()
    assert os.listdir(tmp_path) == []


def test_full_disk(tmp_path):
    code = (
        "import resource, sys, numpy, memgraft\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try:\n"
        "    with memgraft.CorpusWriter(sys.argv[1] + '/c', vocab_size=9) as corpus:\n"
        "        corpus.add(numpy.zeros(100_000, int)); corpus.finish()\n"
        "except memgraft.errors.StorageError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert f"{tmp_path}/c: File too large" in result.stdout
    assert os.listdir(tmp_path) == []

"""Fingerprints and splits are fixed by docs/FORMAT.md: computed here from its words, not from the code."""

import copy
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest

import memgraft
from memgraft.corpus import CorpusWriter
from memgraft.errors import ArgumentError, FingerprintError
from tiny import byte_bpe

blake3 = pytest.importorskip("blake3").blake3

LEAF = 1 << 20
MASK = (1 << 64) - 1


def make_corpus(folder, documents, vocab_size=60_000):
    with CorpusWriter(folder / "corpus", vocab_size=vocab_size) as writer:
        for document in documents:
            writer.add(document)
        return memgraft.Corpus.open(writer.finish())


def fingerprint(documents):
    tokens = np.concatenate([np.asarray(document, "<u4") for document in documents])
    root = blake3(b"memgraft corpus v1" + struct.pack("<QQ", len(tokens), len(documents)))
    for start in range(0, len(tokens), LEAF):
        root.update(blake3(tokens[start : start + LEAF].tobytes()).digest())
    root.update(np.cumsum([len(document) for document in documents]).astype("<u8").tobytes())
    return root.hexdigest()


def mix(value):
    z = (value + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def held_out(num_documents, share, seed):
    count = max(int(np.floor(share * num_documents + 0.5)), 1)
    order = sorted(range(num_documents), key=lambda index: (mix(mix(seed) ^ index), index))
    return sorted(order[:count])


@pytest.mark.parametrize("lengths", [[3], [0, 5, 0, 2], [LEAF - 1, 1, 4], [LEAF, LEAF + 3]])
def test_fingerprint(lengths, tmp_path):
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 60_000, length).astype(np.uint32) for length in lengths]
    assert make_corpus(tmp_path, documents).fingerprint == fingerprint(documents)


@pytest.mark.parametrize(("share", "seed"), [(0.02, 0), (0.3, 7), (0.001, 2**64 - 1), (0.99, 5)])
def test_split(share, seed, tmp_path):
    documents = [[number, number] for number in range(101)]
    train, held = make_corpus(tmp_path, documents).split(held_out=share, seed=seed)
    chosen = held_out(101, share, seed)
    assert [int(held.document(place)[0]) for place in range(held.num_documents)] == chosen
    assert [int(train.document(place)[0]) for place in range(train.num_documents)] == sorted(
        set(range(101)) - set(chosen)
    )
    assert held.fingerprint == fingerprint([documents[number] for number in chosen])


def test_a_larger_share_holds_out_a_superset(tmp_path):
    corpus = make_corpus(tmp_path, [[number] for number in range(200)])
    few, many = (set(corpus.split(held_out=share, seed=3)[1].tokens().tolist()) for share in (0.1, 0.3))
    assert few < many


def test_ctrl_c_ends_a_long_fingerprint(tmp_path):
    """The handler runs while the core still reads, not after it."""
    np.zeros(200_000_000, np.uint8).tofile(tmp_path / "c.bin")
    code = (
        "import resource, signal, sys, memgraft\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def read():\n"
        "    corpus, before = memgraft.Corpus.open(sys.argv[1], dtype='uint8', documents='file'), faults()\n"
        "    try: corpus.fingerprint\n"
        "    except KeyboardInterrupt: print('stopped')\n"
        "    return faults() - before\n"
        "whole = read()\n"
        "signal.signal(signal.SIGPROF, signal.default_int_handler); signal.setitimer(signal.ITIMER_PROF, 0.01)\n"
        "print('early', read() < whole / 2)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "c.bin"], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["stopped", "early", "True"], "pages that were mapped tell how far it read"


def test_a_corpus_pickles_by_its_files(tmp_path, monkeypatch):
    documents = [[number, number + 1] * (1 + number % 3) for number in range(101)]
    make_corpus(tmp_path, documents)
    monkeypatch.chdir(tmp_path)
    whole = memgraft.Corpus.open("corpus", eos_id=7)
    train, held = whole.split(held_out=0.3, seed=5)
    inner = train.split(held_out=0.5, seed=1)[1]
    pickled = [pickle.dumps(each) for each in (whole, train, held, inner, whole.without_documents())]
    assert max(map(len, pickled)) < 1000
    monkeypatch.chdir("/")
    for each, data in zip((whole, train, held, inner), pickled, strict=False):
        for again in (pickle.loads(data), copy.deepcopy(each)):
            assert np.array_equal(again.tokens(), each.tokens())
            assert np.array_equal(again.document_starts, each.document_starts)
            assert (again.eos_id, again.vocab_size, again.split_facts) == (7, 60_000, each.split_facts)
            assert again.fingerprint == each.fingerprint
    assert len(pickle.loads(pickled[-1])) == 0

    make_corpus(tmp_path, [[1, *documents[0][1:]], *documents[1:]])
    with pytest.raises(
        FingerprintError, match=r"corpus: expected the corpus that was pickled, \d+ tokens .* were replaced"
    ):
        pickle.loads(pickled[0])


def test_a_corpus_without_files_does_not_pickle(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("the king of the hill", encoding="utf-8")
    byte_bpe(["the king of the hill"], 300).save(str(tmp_path / "tokenizer.json"))
    corpus = memgraft.Corpus.open(tmp_path / "texts", tokenizer=tmp_path / "tokenizer.json")
    for make in (pickle.dumps, copy.deepcopy):
        with pytest.raises(ArgumentError, match=r"texts \(text\) lie in one without a name: .*tokenize_folder"):
            make(corpus)

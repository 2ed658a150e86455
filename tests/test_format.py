"""docs/FORMAT.md: an independent reader finds the same keys and matches, and files of versions 1.x stay readable."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from format_reader import IndexFile, KeyFile, RunFile
from index_cases import key_sets, small_set, texts
from memgraft import Corpus, KeySet, NgramIndex, mine
from memgraft.corpus import CorpusWriter
from memgraft.mining import RunSet, merge_parts, mine_part, select_parts
from oracle import longest_match, rows_of

GOLDEN = Path(__file__).parent / "data" / "format" / "v1"
"""Format 1.0."""
NEWER = GOLDEN.with_name("v1.1")
"""Format 1.1: archives, whose sections are packed since, and run files, without key bytes that hold no token since."""


@given(key_sets(), st.integers(0, 2**32))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_independent_reader_agrees(tmp_path, case, seed):
    vocab_size, keys, counts = case
    made = KeySet.from_keys(keys, counts, [count // 2 for count in counts], vocab_size=vocab_size)
    made.save(tmp_path / "keys.mgk")
    read = KeyFile(tmp_path / "keys.mgk")
    assert (read.keys, read.counts, read.documents) == (list(made), *(a.tolist() for a in made.arrays()[2:]))
    index = NgramIndex.build(made)
    for form in ("archive", "fast"):
        index.save(tmp_path / "index.mgi", form)
        found = IndexFile(tmp_path / "index.mgi")
        assert (found.keys, found.counts, found.documents) == (read.keys, read.counts, read.documents)
        assert found.fingerprint.hex() == index.fingerprint
        assert found.keyset_fingerprint.hex() == made.fingerprint
    tokens = texts(vocab_size, keys, seed, 150).tolist()
    want = index.lookup(tokens)
    assert found.lookup(tokens) == (want[0].tolist(), want[1].tolist())


def golden_set() -> KeySet:
    """Orders 1 to 5, a large block that spills, a hole, documents, a reserved token."""
    base = small_set(200, vocab_size=60, seed=11)
    keys = [*base, *((3, t) for t in range(40) if (3, t) not in set(base)), (50, 51, 52, 53, 54)]
    counts = [*base.arrays().counts.tolist(), *(1 + t % 3 for t in range(len(keys) - len(base)))]
    return KeySet.from_keys(
        keys, counts, [(c + 1) // 2 for c in counts], vocab_size=60, reserved=[59], metadata={"golden": 1}
    )


@pytest.mark.parametrize(
    "golden", [GOLDEN / "keys.mgk", GOLDEN / "index.mgi", NEWER / "archive.mgi"], ids=lambda path: path.name
)
def test_the_same_set_still_gives_the_same_bytes(tmp_path, golden):
    made = golden_set()
    if golden.name == "keys.mgk":
        made.save(tmp_path / golden.name)
    else:
        NgramIndex.build(made).save(tmp_path / golden.name, "fast" if golden.name == "index.mgi" else "archive")
    old, new = (bytearray((folder / golden.name).read_bytes()) for folder in (golden.parent, tmp_path))
    for data in (old, new):
        data[256:320] = bytes(64)  # the writer's name and version
        data[4064:4096] = bytes(32)  # the checksum over it
    assert old == new


def test_golden_files_open_verify_and_answer():
    keys, index = KeySet.open(GOLDEN / "keys.mgk"), NgramIndex.open(GOLDEN / "index.mgi")
    archives = [NgramIndex.open(folder / "archive.mgi") for folder in (GOLDEN, NEWER)]
    assert [one.is_archive for one in (index, *archives)] == [False, True, True]
    rows = rows_of(list(keys), keys.arrays().counts.tolist())
    tokens = np.random.default_rng(3).integers(0, 59, 3000)
    want = longest_match(rows, tokens)
    for one in (index, *archives):
        one.verify()
        assert one.keyset_fingerprint == keys.fingerprint
        assert list(one) == list(keys) == list(one.key_set())
        for found, expected in zip(one.lookup(tokens), want, strict=True):
            np.testing.assert_array_equal(found, expected)
    keys.verify()
    read = IndexFile(GOLDEN / "index.mgi")
    assert read.lookup(tokens.tolist()) == tuple(a.tolist() for a in want)
    assert KeyFile(GOLDEN / "keys.mgk").keys == list(keys)


@pytest.mark.parametrize("folder", [GOLDEN, NEWER], ids=lambda folder: folder.name)
def test_expand_gives_the_fast_bytes(tmp_path, folder):
    expanded = NgramIndex.expand(folder / "archive.mgi", tmp_path / "index.mgi")
    assert not expanded.is_archive
    NgramIndex.open(GOLDEN / "index.mgi").save(tmp_path / "again.mgi")
    assert (tmp_path / "index.mgi").read_bytes() == (tmp_path / "again.mgi").read_bytes()


def golden_corpus(folder: Path) -> Corpus:
    """Vocabulary and order that leave bytes of a key's last word empty; counts of several digits, a document of one."""
    draws = np.random.default_rng(5)
    documents = [draws.zipf(1.6, n).clip(1, 1000) - 1 for n in (700, 1, 0, 300)]
    with CorpusWriter(folder / "corpus", vocab_size=1000) as writer:
        for document in [*documents, np.full(400, 3)]:
            writer.add(document)
        return Corpus.open(writer.finish())


def longest_ngrams(corpus: Corpus, order: int) -> dict[tuple[int, ...], int]:
    counts: dict[tuple[int, ...], int] = {}
    for number in range(corpus.num_documents):
        tokens = corpus.document(number).tolist()
        for at in range(len(tokens)):
            key = tuple(tokens[at : at + order])
            counts[key] = counts.get(key, 0) + 1
    return counts


def test_golden_run_files_hold_what_the_corpus_holds(tmp_path):
    corpus = golden_corpus(tmp_path)
    made = mine_part(corpus, tmp_path / "part.mgr", (2, 7), reserved=[9])
    assert RunFile(made.path).body == RunFile(NEWER / "part.mgr").body
    for folder, minor in ((GOLDEN, 0), (NEWER, 1)):
        read = RunFile(folder / "part.mgr")
        assert read.minor == minor
        counts: dict[tuple[int, ...], int] = {}
        for tokens, tag, count in read.records:
            assert tag <= len(tokens)
            counts[tokens] = counts.get(tokens, 0) + count
        cut = {}
        for tokens, count in longest_ngrams(corpus, 7).items():
            kept = tokens[: tokens.index(9)] if 9 in tokens else tokens
            cut[kept] = cut.get(kept, 0) + count
        cut.pop((), None)
        assert counts == cut
        RunSet.open(folder / "part.mgr").verify()
        keys = select_parts([folder / "part.mgr"], (2, 7))
        assert keys.fingerprint == mine(corpus, (2, 7), reserved=[9]).fingerprint
        # A merge writes the newer form.
        merged = merge_parts([folder / "part.mgr"], tmp_path / f"{folder.name}.mgr")
        assert RunFile(merged.path).body == RunFile(made.path).body


if __name__ == "__main__":  # writes the golden files of a new version; never again for this one
    NgramIndex.build(golden_set()).save(NEWER / "archive.mgi", "archive")
    mine_part(golden_corpus(NEWER), NEWER / "part.mgr", (2, 7), reserved=[9])

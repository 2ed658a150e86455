"""docs/FORMAT.md: an independent reader finds the same keys and matches, and files of versions 1.x stay readable."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from format_reader import IndexFile, KeyFile
from index_cases import key_sets, small_set, texts
from memgraft import KeySet, NgramIndex
from oracle import longest_match, rows_of

GOLDEN = Path(__file__).parent / "data" / "format" / "v1"
"""Format 1.0."""
NEWER = GOLDEN.with_name("v1.1")
"""Format 1.1: archives alone, whose sections are packed since."""


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


if __name__ == "__main__":  # writes the golden files of a new version; never again for this one
    NgramIndex.build(golden_set()).save(NEWER / "archive.mgi", "archive")

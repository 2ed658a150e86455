"""Key sets: order, checks, files."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings

from index_cases import key_sets, small_set
from memgraft import KeySet
from memgraft.errors import ArgumentError, FingerprintError, FormatError, KeySetError, StorageError, TokenError
from oracle import rows_of


@given(key_sets())
@settings(max_examples=60)
def test_rows_run_by_count_then_by_tuple(case):
    vocab_size, keys, counts = case
    made = KeySet.from_keys(keys, counts, vocab_size=vocab_size)
    rows = rows_of(keys, counts)
    assert list(made) == sorted(rows, key=rows.__getitem__)
    by_key = dict(zip(keys, counts, strict=True))
    assert [made.count(row) for row in range(len(made))] == [by_key[key] for key in made]
    assert made.orders == tuple(sorted({len(key) for key in keys}))
    assert sum(made.num_keys_by_order.values()) == len(made) == len(keys)


def test_counts_beyond_32_bits_sort_too():
    made = KeySet.from_keys([(1,), (2,), (3,)], [2**33, 2**40, 2**33], vocab_size=9)
    assert list(made) == [(2,), (1,), (3,)]


def test_arrays_come_back():
    keys = small_set()
    tokens, offsets, counts, documents = keys.arrays()
    again = KeySet.from_arrays(tokens, offsets, counts, documents, vocab_size=50, reserved=[49])
    assert again.fingerprint == keys.fingerprint
    part = keys.arrays(70, 200)
    assert part.offsets[0] == 0
    assert len(part.counts) == 130
    assert tuple(part.tokens[: part.offsets[1]]) == keys.key(70)
    assert [keys.key(row) for row in (0, 63, 64, len(keys) - 1)] == [list(keys)[i] for i in (0, 63, 64, -1)]
    with pytest.raises(ArgumentError, match="rows"):
        keys.arrays(5, len(keys) + 1)


def test_select_keeps_the_order():
    keys = small_set()
    mask = np.random.default_rng(2).random(len(keys)) < 0.5
    some = keys.select(mask)
    assert list(some) == [key for key, kept in zip(keys, mask, strict=True) if kept]
    assert keys.select(np.flatnonzero(mask)[::-1]).fingerprint == some.fingerprint
    assert some.metadata == keys.metadata == {"made": "here"}
    assert len(keys.select(np.zeros(len(keys), bool))) == 0
    for bad, message in ((mask[:-1], "shape"), ([0, 0], "twice"), ([len(keys)], "less than"), ([-1], "expected")):
        with pytest.raises(ArgumentError, match=message):
            keys.select(bad)


def test_fingerprint_is_of_the_content():
    base = small_set()
    arrays = base.arrays()
    assert base.with_metadata({}).fingerprint == base.fingerprint
    counts = arrays.counts.copy()
    counts[0] += 1
    documents = arrays.documents.copy()
    documents[3] += 1
    others = [
        KeySet.from_arrays(arrays.tokens, arrays.offsets, counts, arrays.documents, vocab_size=50, reserved=[49]),
        KeySet.from_arrays(arrays.tokens, arrays.offsets, arrays.counts, documents, vocab_size=50, reserved=[49]),
        KeySet.from_arrays(arrays.tokens, arrays.offsets, arrays.counts, arrays.documents, vocab_size=50),
        KeySet.from_arrays(*arrays, vocab_size=51, reserved=[49]),
    ]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 5


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ([(1, 2), (3,), (1, 2)], KeySetError, r"keys 0 and 2 are both \(1, 2\)"),
        ([(1,), ()], KeySetError, "key 1: expected 1 to 16 tokens, got 0"),
        ([(1,) * 17], KeySetError, "got 17"),
        ([(1, 9)], KeySetError, "reserved token 9"),
        ([(1,), (2, 10)], TokenError, r"key 1 \(2, 10\): token 10 lies outside the vocabulary of 10"),
        ([(-1,)], TokenError, "token -1"),
        ([("a",)], KeySetError, "integer"),
        ([(1.5,)], KeySetError, "integer"),
    ],
)
def test_bad_keys_are_refused_by_name(keys, error, message):
    with pytest.raises(error, match=message):
        KeySet.from_keys(keys, vocab_size=10, reserved=[9])


def test_bad_arrays_are_refused():
    good = {"tokens": [1, 2], "offsets": [0, 1, 2], "counts": [1, 1]}
    for change, message in (
        ({"offsets": [0, 2, 1]}, "offsets"),
        ({"offsets": [1, 1, 2]}, "from 0 to 2"),
        ({"offsets": []}, "offsets"),
        ({"counts": [1]}, "counts: expected 2"),
        ({"counts": [1, -1]}, "counts"),
        ({"counts": [1, 2**63]}, "2\\^63|expected"),
        ({"documents": [1]}, "documents: expected 2"),
        ({"tokens": [[1], [2]]}, "1-D"),
        ({"tokens": [1.0, 2.0]}, "integers"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"vocab_size": 2**20 + 1}, "vocab_size"),
        ({"metadata": {"x": object()}}, "metadata"),
    ):
        with pytest.raises(ArgumentError, match=message):
            KeySet.from_arrays(**{"vocab_size": 10, **good, **change})
    with pytest.raises(TokenError, match="reserved"):
        KeySet.from_arrays(**good, vocab_size=10, reserved=[10])


def test_files_and_pickles(tmp_path):
    keys = small_set()
    path = tmp_path / "keys.mgk"
    with pytest.raises(ArgumentError, match="save"):
        pickle.dumps(keys)
    keys.save(path)
    opened = KeySet.open(path)
    opened.verify()
    assert list(opened) == list(keys)
    assert opened.metadata == keys.metadata
    assert opened.path == path
    assert opened.reserved == (49,)
    assert [entry.name for entry in tmp_path.iterdir()] == ["keys.mgk"]
    blob = pickle.dumps(opened)
    assert len(blob) < 400
    assert pickle.loads(blob).fingerprint == keys.fingerprint
    small_set(seed=3).save(path)
    with pytest.raises(FingerprintError, match="was replaced"):
        pickle.loads(blob)
    assert list(opened) == list(keys), "an open map keeps the file it opened"
    with pytest.raises(StorageError, match=r"nothing\.mgk"):
        KeySet.open(tmp_path / "nothing.mgk")
    with pytest.raises(StorageError):
        keys.save(tmp_path / "no" / "such" / "folder.mgk")
    path.write_bytes(b"hello")
    with pytest.raises(FormatError, match="5 bytes"):
        KeySet.open(path)

"""The index against brute force, and the manners of its arguments."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index_cases import key_sets, small_set, texts
from memgraft import KeySet, NgramIndex
from memgraft.errors import ArgumentError, TokenError
from oracle import longest_match, rows_of


def make(vocab_size: int, keys: list[tuple[int, ...]], counts: list[int]) -> NgramIndex:
    return NgramIndex.build(KeySet.from_keys(keys, counts, vocab_size=vocab_size))


@given(key_sets(), st.integers(0, 2**32), st.integers(0, 300), st.data())
@settings(max_examples=60)
def test_lookup_equals_brute_force_under_every_segmentation(case, seed, length, data):
    vocab_size, keys, counts = case
    index, rows = make(vocab_size, keys, counts), rows_of(keys, counts)
    tokens = texts(vocab_size, keys, seed, length)
    cuts = sorted(data.draw(st.lists(st.integers(0, length), max_size=6)))
    starts = {cut for cut in cuts if cut < length}
    by_id = np.searchsorted(np.array(cuts, dtype=np.int64), np.arange(length), side="right") % 2
    flips = set((np.flatnonzero(by_id[1:] != by_id[:-1]) + 1).tolist()) if length else set()
    for options, begins in (
        ({}, set()),
        ({"cu_seqlens": [0, *cuts, length]}, starts),
        ({"segments": by_id}, flips),
        ({"eos_id": 1}, set((np.flatnonzero(tokens == 1) + 1).tolist())),
    ):
        found = index.lookup(tokens, threads=2, **options)
        want = longest_match(rows, tokens, begins)
        np.testing.assert_array_equal(found[0], want[0], err_msg=str(options))
        np.testing.assert_array_equal(found[1], want[1], err_msg=str(options))


@given(key_sets())
@settings(max_examples=25)
def test_what_the_file_will_weigh_is_known_before_it_is_written(tmp_path_factory, case):
    vocab_size, keys, counts = case
    index = make(vocab_size, keys, counts)
    path = tmp_path_factory.mktemp("index") / "index.mgi"
    index.save(path)
    assert index.stats()["file_bytes"] == path.stat().st_size == NgramIndex.open(path).stats()["file_bytes"]


@given(key_sets(), st.integers(0, 2**32), st.lists(st.integers(-2, 1), min_size=1, max_size=60))
@settings(max_examples=40)
def test_negative_segments_are_padding(case, seed, segments):
    vocab_size, keys, counts = case
    index, by_key = make(vocab_size, keys, counts), rows_of(keys, counts)
    segments = np.repeat(segments, 3)
    tokens = texts(vocab_size, keys, seed, len(segments))
    starts = set((np.flatnonzero(np.diff(segments)) + 1).tolist())
    want_rows, want_orders = longest_match(by_key, tokens, starts)
    want_rows[segments < 0], want_orders[segments < 0] = -1, 0
    tokens[segments < 0] = -100
    rows, orders = index.lookup(tokens, segments=segments)
    np.testing.assert_array_equal(rows, want_rows)
    np.testing.assert_array_equal(orders, want_orders)


@given(key_sets(), st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 40))
@settings(max_examples=40)
def test_rows_of_a_batch_are_segments_and_advance_equals_lookup(case, seed, batch, length):
    vocab_size, keys, counts = case
    index = make(vocab_size, keys, counts)
    tokens = texts(vocab_size, keys, seed, batch * length).reshape(batch, length)
    found_rows, found_orders = index.lookup(tokens)
    states = index.start(batch)
    for t in range(length):
        rows, orders = index.advance(states, tokens[:, t])
        np.testing.assert_array_equal(rows, found_rows[:, t])
        np.testing.assert_array_equal(orders, found_orders[:, t])
    for b in range(batch):
        np.testing.assert_array_equal(index.lookup(tokens[b])[0], found_rows[b])


@pytest.mark.parametrize("lag", range(5))
def test_a_key_depends_on_its_own_tokens_and_no_others(lag):
    index = make(100, [(7, 8, 9, 10)], [1])
    tokens = np.array([1, 7, 8, 9, 10, 1])
    assert index.lookup(tokens)[1].tolist() == [0, 0, 0, 0, 4, 0]
    changed = tokens.copy()
    changed[4 - lag] = 50
    assert (index.lookup(changed)[0][4] == 0) == (lag > 3)
    changed = tokens.copy()
    changed[5] = 50
    assert index.lookup(changed)[0][4] == 0


@pytest.mark.parametrize("dtype", ["uint16", "int32", "uint32", "int64", "uint8", "int16", "uint64"])
def test_every_token_dtype_says_the_same(dtype):
    index = NgramIndex.build(small_set())
    tokens = np.random.default_rng(1).integers(0, 49, (4, 333))
    want = index.lookup(tokens)
    found = index.lookup(tokens.astype(dtype))
    assert [a.tolist() for a in found] == [a.tolist() for a in want]
    strided = np.repeat(tokens.astype(dtype), 2, axis=1)[:, ::2]
    assert not strided.flags.c_contiguous
    assert index.lookup(strided)[0].tolist() == want[0].tolist()


def test_explains_itself():
    keys = small_set()
    index = NgramIndex.build(keys)
    assert list(index) == list(keys)
    assert len(index) == index.num_keys == len(keys)
    assert (index.vocab_size, index.orders) == (keys.vocab_size, keys.orders)
    assert index.num_keys_by_order == keys.num_keys_by_order
    assert index.keyset_fingerprint == keys.fingerprint != index.fingerprint
    for row in range(len(keys)):
        key = keys.key(row)
        assert index.find(key) == row
        assert (index.count(row), index.documents(row)) == (keys.count(row), keys.documents(row))
    known = set(keys)
    assert index.find((7,) * 9) is None
    assert index.find(()) is None
    assert index.find((10**9,)) is None
    assert all(index.find(key[:-1]) is None for key in keys if key[:-1] not in known)
    stats = index.stats()
    assert stats["num_keys"] == len(keys)
    assert stats["bytes"] > stats["table_bytes"] > 0
    assert "NgramIndex" in repr(index)
    with pytest.raises(ArgumentError, match=f"expected 0 to {len(keys) - 1}"):
        index.key(len(keys))
    with pytest.raises(ArgumentError, match="row"):
        index.count(-1)


def test_the_same_set_gives_the_same_bytes(tmp_path):
    keys = small_set()
    again = KeySet.from_keys(list(keys)[::-1], keys.arrays().counts[::-1], keys.arrays().documents[::-1],
                             vocab_size=keys.vocab_size, reserved=keys.reserved)  # fmt: skip
    assert again.fingerprint == keys.fingerprint
    for i, one in enumerate((keys, again)):
        NgramIndex.build(one).save(tmp_path / f"{i}.mgi")
    assert (tmp_path / "0.mgi").read_bytes() == (tmp_path / "1.mgi").read_bytes()


def test_empty_set_misses_everywhere(tmp_path):
    index = make(10, [], [])
    rows, orders = index.lookup([[1, 2], [3, 4]])
    assert rows.tolist() == [[-1, -1], [-1, -1]]
    assert orders.tolist() == [[0, 0], [0, 0]]
    assert index.advance(index.start(2), [1, 2])[0].tolist() == [-1, -1]
    for form in ("fast", "archive"):
        index.save(tmp_path / "empty.mgi", form)
        opened = NgramIndex.open(tmp_path / "empty.mgi")
        opened.verify()
        assert (len(opened), opened.max_order, opened.orders) == (0, 0, ())


@pytest.mark.parametrize("tokens", [[], np.empty((0, 5), np.int32), np.empty((3, 0), np.int64)])
def test_empty_batches(tokens):
    index = make(10, [(1,)], [1])
    rows, orders = index.lookup(tokens)
    assert rows.shape == orders.shape == np.asarray(tokens).shape


def test_token_outside_the_vocabulary_names_its_position():
    index = make(10, [(1, 2)], [1])
    with pytest.raises(TokenError, match=r"tokens\[2\]: 10 lies outside the vocabulary of 10"):
        index.lookup([1, 2, 10])
    with pytest.raises(TokenError, match=r"tokens\[1, 0\]: -1 "):
        index.lookup(np.array([[1, 2], [-1, 2]]))
    with pytest.raises(TokenError, match=rf"tokens\[0\]: {2**40}"):
        index.lookup([2**40])
    states = index.start(1)
    index.advance(states, [1])
    before = states.copy()
    with pytest.raises(TokenError):
        index.advance(states, [10])
    assert states.tolist() == before.tolist()
    assert index.lookup([1, 99, 2, 1, 2, -5, 2**40], unknown="miss")[0].tolist() == [-1, -1, -1, -1, 0, -1, -1]
    assert index.advance(states, [99], unknown="miss")[0].tolist() == [-1]
    assert states.tolist() == [0]


def test_out_is_filled_in_place():
    index = make(10, [(1, 2), (2,)], [1, 2])
    rows, orders = np.full((2, 3), 9, np.int32), np.full((2, 3), 9, np.uint8)
    found = index.lookup([[1, 2, 3], [2, 1, 2]], out=(rows, orders))
    assert found[0] is rows
    assert found[1] is orders
    assert rows.tolist() == [[-1, 1, -1], [0, -1, 1]]


def read_only(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ((np.empty(3, np.int64), np.empty(3, np.uint8)), "out rows: expected int32"),
        ((np.empty(3, np.int32), np.empty(3, np.int8)), "out orders: expected uint8"),
        ((np.empty(4, np.int32), np.empty(3, np.uint8)), r"of shape \(3,\), got int32 \(4,\)"),
        ((np.empty(6, np.int32)[::2], np.empty(3, np.uint8)), "not C-contiguous"),
        ((read_only(np.empty(3, np.int32)), np.empty(3, np.uint8)), "read-only"),
        ((np.empty(3, np.int32), read_only(np.empty(3, np.uint8))), "read-only"),
        (([1, 2, 3], np.empty(3, np.uint8)), "expected a numpy array, got list"),
        (np.empty(3, np.int32), "expected a pair"),
    ],
)
def test_bad_out_is_refused(out, message):
    with pytest.raises(ArgumentError, match=message):
        make(10, [(1,)], [1]).lookup([1, 2, 3], out=out)


def test_out_over_the_tokens_is_refused():
    index = make(10, [(1,)], [1])
    memory = bytearray(np.array([1, 2, 1], np.int32).tobytes())
    # Two arrays with nothing in common but the bytes.
    tokens, rows = np.frombuffer(memory, np.int32), np.frombuffer(memory, np.int32)
    for out in ((rows, np.empty(3, np.uint8)), (np.empty(3, np.int32), tokens.view(np.uint8)[4:7])):
        with pytest.raises(ArgumentError, match="its memory is that of the tokens"):
            index.lookup(tokens, out=out)
    assert tokens.tolist() == [1, 2, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segments": [0, 0]}, r"segments: expected integers of shape \(3,\)"),
        ({"segments": [0.0, 0.0, 1.0]}, "segments: expected integers"),
        ({"cu_seqlens": [0, 2]}, "from 0 to 3"),
        ({"cu_seqlens": [0, 3, 2, 3]}, "ascending"),
        ({"cu_seqlens": [-1, 3]}, "non-negative"),
        ({"eos_id": 10}, "eos_id: expected 0 to 9"),
        ({"threads": 0}, "threads: expected at least 1"),
        ({"unknown": "guess"}, "unknown: expected"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        make(10, [(1,)], [1]).lookup([1, 2, 3], **options)


@pytest.mark.parametrize("tokens", [[1.0, 2.0], ["a"], np.zeros((2, 2, 2), np.int64), np.int64(3), [True, False]])
def test_bad_tokens_are_refused(tokens):
    with pytest.raises(ArgumentError, match="tokens: expected"):
        make(10, [(1,)], [1]).lookup(tokens)


def test_bad_states_are_refused():
    index = make(10, [(1, 2)], [1])
    with pytest.raises(ArgumentError, match="expected a 1-D uint32 array"):
        index.advance(np.zeros(1, np.int64), [1])
    with pytest.raises(ArgumentError, match=r"expected shape \(2,\)"):
        index.advance(index.start(2), [1])
    with pytest.raises(ArgumentError, match="is no state of index"):
        index.advance(np.array([4_000_000_000], np.uint32), [1])
    with pytest.raises(ArgumentError, match="batch"):
        index.start(-1)
    with pytest.raises(ArgumentError, match="load: expected"):
        NgramIndex.open("x.mgi", load="disk")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="form: expected"):
        index.save("x.mgi", "tiny")  # type: ignore[arg-type]

"""Decode states: chunks, beams, rolling back, other indexes."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index_cases import key_sets, small_set, texts
from memgraft import Cursor, KeySet, NgramIndex
from memgraft.errors import ArgumentError, FingerprintError, TokenError


def index_of(case) -> NgramIndex:
    vocab_size, keys, counts = case
    return NgramIndex.build(KeySet.from_keys(keys, counts, vocab_size=vocab_size))


@given(key_sets(), st.integers(0, 2**32), st.data())
@settings(max_examples=50)
def test_any_history_of_steps_beams_and_rollbacks_equals_the_full_lookup(case, seed, data):
    index = index_of(case)
    tokens = texts(case[0], case[1], seed, 200).tolist()
    prefixes: list[list[int]] = [[], []]
    cursor = Cursor(index, 2, history=8)
    for _ in range(data.draw(st.integers(1, 30))):
        move = data.draw(st.sampled_from(["step", "step", "step", "beams", "back", "back each"]))
        if move == "step":
            read = [tokens[data.draw(st.integers(0, 199))] for _ in prefixes]
            prefixes = [[*prefix, token] for prefix, token in zip(prefixes, read, strict=True)]
            rows, orders = cursor.advance(index, read)
            for i, prefix in enumerate(prefixes):
                want = index.lookup(prefix)
                assert (rows[i], orders[i]) == (want[0][-1], want[1][-1])
        elif move == "beams":
            chosen = data.draw(st.lists(st.integers(0, len(prefixes) - 1), min_size=1, max_size=4))
            cursor.reorder(chosen)
            prefixes = [list(prefixes[i]) for i in chosen]
        elif move == "back":
            steps = data.draw(st.integers(0, cursor.history))
            cursor.rollback(steps)
            prefixes = [prefix[: len(prefix) - steps] for prefix in prefixes]
        else:
            each = [data.draw(st.integers(0, cursor.history)) for _ in prefixes]
            before = cursor.history
            cursor.rollback(each)
            assert cursor.history == before - max(each)
            prefixes = [prefix[: len(prefix) - back] for prefix, back in zip(prefixes, each, strict=True)]
        states = index.start(len(prefixes))
        for i, prefix in enumerate(prefixes):
            one = index.start(1)
            for token in prefix:
                index.advance(one, [token])
            states[i] = one[0]
        assert cursor.states.tolist() == states.tolist()


def test_speculative_decoding_leaves_no_trace():
    keys = small_set()
    index = NgramIndex.build(keys)
    accepted = list(keys.key(5)) + list(keys.key(9))
    cursor = Cursor(index, 1, history=4)
    found = []
    for token in accepted:
        for draft in (1, 2, 3):
            cursor.advance(index, [draft])
        cursor.rollback(3)
        found.append(int(cursor.advance(index, [token])[0][0]))
    assert found == index.lookup(accepted)[0].tolist()


def test_refuses_another_index_and_bad_arguments():
    index, other = NgramIndex.build(small_set()), NgramIndex.build(small_set(seed=1))
    cursor = Cursor(index, 2, history=3)
    with pytest.raises(FingerprintError, match=other.fingerprint):
        cursor.advance(other, [1, 2])
    with pytest.raises(TokenError):
        cursor.advance(index, [1, 50])
    assert cursor.history == 0
    assert cursor.states.tolist() == [0, 0]
    for call, message in (
        (lambda: cursor.rollback(1), "larger history"),
        (lambda: cursor.rollback(-1), "steps"),
        (lambda: cursor.rollback([0]), "steps"),
        (lambda: cursor.reorder([2]), "indices: expected 0 to 1"),
        (lambda: cursor.reorder([0.5]), "integers"),
        (lambda: cursor.reset([1, 0]), "boolean"),
        (lambda: Cursor(index, 1, history=-1), "history"),
        (lambda: cursor.advance(index, [1]), r"shape \(2,\)"),
    ):
        with pytest.raises(ArgumentError, match=message):
            call()


def test_copies_are_independent_and_travel():
    index = NgramIndex.build(small_set())
    cursor = Cursor(index, 3)
    cursor.advance(index, [1, 2, 3])
    twins = [cursor.copy(), copy.copy(cursor), copy.deepcopy(cursor), pickle.loads(pickle.dumps(cursor))]
    states = cursor.states.tolist()
    cursor.reset(np.array([True, False, True]))
    assert cursor.states.tolist() == [0, states[1], 0]
    cursor.reset()
    assert cursor.states.tolist() == [0, 0, 0]
    for twin in twins:
        assert twin.states.tolist() == states
        assert (twin.history, len(twin), twin.fingerprint) == (1, 3, index.fingerprint)
        twin.advance(index, [4, 5, 6])
        twin.rollback(2)
        assert twin.states.tolist() == [0, 0, 0]

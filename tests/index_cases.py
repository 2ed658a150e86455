"""Key sets and texts for the index tests."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

import memgraft

Keys = list[tuple[int, ...]]


@st.composite
def key_sets(draw: st.DrawFn) -> tuple[int, Keys, list[int]]:
    """(vocab_size, keys, counts): holes, missing unigrams, chains, wide fans, tokens at the vocabulary's end."""
    vocab_size = draw(st.sampled_from([2, 5, 200, 1 << 16, 1 << 20]))
    token = st.one_of(st.integers(0, min(vocab_size, 4) - 1), st.integers(0, vocab_size - 1))
    short = st.lists(token, min_size=1, max_size=4).map(tuple)
    chain = st.tuples(st.integers(0, 1), st.integers(5, 16)).map(lambda pair: (pair[0],) * pair[1])
    keys = draw(st.lists(st.one_of(short, short, chain), max_size=40, unique=True))
    fan = [(1, t) for t in range(draw(st.integers(0, min(vocab_size, 50))))]
    keys = list(dict.fromkeys([*keys, *fan]))
    counts = draw(st.lists(st.integers(0, 5), min_size=len(keys), max_size=len(keys)))
    return vocab_size, keys, counts


def texts(vocab_size: int, keys: Keys, seed: int, length: int) -> np.ndarray:
    """A text made of keys, pieces of keys and noise."""
    rng = np.random.default_rng(seed)
    out: list[int] = []
    while len(out) < length:
        if keys and rng.random() < 0.7:
            key = keys[rng.integers(len(keys))]
            out.extend(key[: rng.integers(len(key) + 1)])
        else:
            out.append(int(rng.integers(min(vocab_size, 6))))
    return np.array(out[:length], dtype=np.int64)


def small_set(num_keys: int = 300, vocab_size: int = 50, seed: int = 0) -> memgraft.KeySet:
    """A set with all orders up to 5 and documents."""
    rng = np.random.default_rng(seed)
    keys = list({tuple(map(int, rng.integers(0, vocab_size - 1, rng.integers(1, 6)))) for _ in range(num_keys)})
    keys.sort()
    counts = rng.integers(1, 40, len(keys))
    return memgraft.KeySet.from_keys(
        keys, counts, (counts + 1) // 2, vocab_size=vocab_size, reserved=[vocab_size - 1], metadata={"made": "here"}
    )

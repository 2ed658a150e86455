"""Longest match from Python: the index beside a dict of tuples, a numpy search in sorted arrays, and tokengrams.

The first contest's contenders hold the same keys and read the same text. A suffix array holds a corpus instead of keys
and gives no rows; what compares is the length of the longest n-gram that ends at a position and occurs twice there.
"""

import os
from contextlib import suppress
from typing import Any

import numpy as np
from contest import Contender, check_equal, contest
from settings import Settings, main

from memgraft import Corpus, KeySet, NgramIndex, mine

with suppress(ImportError):
    import tokengrams


class TupleDict:
    """The public re-implementation's way: a dict of tuples, longest first, position by position."""

    def __init__(self, keys: KeySet) -> None:
        self.rows = {key: row for row, key in enumerate(keys)}
        self.max_order = max(keys.orders)

    def lookup(self, tokens: list[int]) -> list[int]:
        out = []
        for at in range(len(tokens)):
            for order in range(min(self.max_order, at + 1), 0, -1):
                row = self.rows.get(tuple(tokens[at + 1 - order : at + 1]))
                if row is not None:
                    out.append(row)
                    break
            else:
                out.append(-1)
        return out


class SortedArrays:
    """Every prefix of a key is (rank of the prefix one shorter, token), sorted; one ``searchsorted`` an order."""

    def __init__(self, keys: KeySet) -> None:
        self.vocab_size = keys.vocab_size
        tokens, offsets, _, _ = keys.arrays()
        starts, lengths = offsets[:-1].astype(np.int64), np.diff(offsets).astype(np.int64)
        ranks = np.zeros(len(keys), np.int64)
        self.levels: list[tuple[np.ndarray, np.ndarray]] = []
        for depth in range(int(lengths.max())):
            alive = np.flatnonzero(lengths > depth)
            codes = ranks[alive] * self.vocab_size + tokens[starts[alive] + depth]
            level, found = np.unique(codes, return_inverse=True)
            ranks[alive] = found
            rows = np.full(len(level), -1, np.int32)
            whole = lengths[alive] == depth + 1
            rows[found[whole]] = alive[whole]
            self.levels.append((level, rows))

    def lookup(self, tokens: np.ndarray) -> np.ndarray:
        best = np.full(len(tokens), -1, np.int32)
        ranks = np.zeros(len(tokens), np.int64)
        for depth, (level, rows) in enumerate(self.levels):
            # ranks[t]: the prefix that starts at t, -1 where there is none.
            ends = tokens[depth:].astype(np.int64)
            ranks = ranks[: len(ends)]
            codes = np.where(ranks >= 0, ranks * self.vocab_size + ends, -1)
            places = np.minimum(np.searchsorted(level, codes), len(level) - 1)
            ranks = np.where(level[places] == codes, places, -1)
            found = np.where(ranks >= 0, rows[ranks], -1)
            best[depth:] = np.where(found >= 0, found, best[depth:])
        return best


def group(settings: Settings) -> dict[str, Any]:
    num_keys = 50_000 if settings.quick else 3_000_000
    every = KeySet.open(settings.keys)
    keys = every.select(np.arange(min(num_keys, len(every))))
    index, large = NgramIndex.build(keys), NgramIndex.open(settings.index)
    text = np.fromfile(f"{settings.corpus}.bin", dtype=np.uint16)
    text = text[-min(1 << 20, len(text) // 2048 * 2048) :]
    few = text[: 1 << 16]
    listed = few.tolist()
    peers = {"dict of tuples": TupleDict(keys), "numpy sorted arrays": SortedArrays(keys)}
    reference, _ = index.lookup(few)
    check_equal("dict of tuples", reference, np.array(peers["dict of tuples"].lookup(listed), np.int32))
    check_equal("numpy sorted arrays", reference, peers["numpy sorted arrays"].lookup(few))
    rows, orders = np.empty(len(text), np.int32), np.empty(len(text), np.uint8)
    batch = text[: 1 << 16].reshape(-1, 2048)
    states = index.start(8)
    step = np.ascontiguousarray(text[: 8 * 2048].reshape(8, -1).T)
    timings = contest(
        [
            Contender("index.lookup, 1 thread", len(text), lambda: index.lookup(text, out=(rows, orders), threads=1)),
            Contender("index.lookup", len(text), lambda: index.lookup(text, out=(rows, orders))),
            Contender(f"index.lookup, {len(large):,} keys", len(text), lambda: large.lookup(text, out=(rows, orders))),
            Contender("index.lookup, batch of 64 k, fresh arrays", 1 << 16, lambda: index.lookup(batch)),
            Contender("index.advance, 8 sequences", step.size, lambda: [index.advance(states, one) for one in step]),
            Contender("numpy sorted arrays", len(few), lambda: peers["numpy sorted arrays"].lookup(few)),
            Contender("dict of tuples", len(few), lambda: peers["dict of tuples"].lookup(listed)),
        ],
        settings.rounds,
    )
    coverage = float((reference >= 0).mean())
    report = {"unit": "token", "num_keys": len(keys), "orders": keys.orders, "coverage": coverage, "timings": timings}
    if "tokengrams" in globals():
        del peers
        report["suffix array"] = suffix_array_contest(settings, text)
    return report


def suffix_array_contest(settings: Settings, text: np.ndarray) -> list[dict[str, Any]]:
    """Longest n-gram, up to 8 tokens, that occurs at least twice in the first part of ``text``: nanoseconds a token."""
    corpus, queries = text[: -(1 << 14)], text[-(1 << 12) :]
    path = settings.scratch_path / "suffix-array-corpus.npy"
    np.save(path, corpus)
    raw = path.with_suffix(".raw")
    corpus.tofile(raw)
    vocab_size = int(text.max()) + 1
    keys = mine(Corpus.open(path, documents="file"), tuple(range(1, 9)), None, min_count=2, vocab_size=vocab_size)
    index = NgramIndex.build(keys)
    # It prints to the standard output whatever it is told; that is where the results go.
    results = os.dup(1)
    os.dup2(2, 1)
    suffixes = tokengrams.MemmapIndex.build(str(raw), str(path.with_suffix(".idx")))
    os.dup2(results, 1)
    os.close(results)
    listed = queries.tolist()

    def longest() -> list[int]:
        # The match grows by at most one a token: every part of a frequent n-gram is frequent.
        orders, order = [], 0
        for at in range(len(listed)):
            order = min(order + 1, 8)
            while order and suffixes.count(listed[at + 1 - order : at + 1]) < 2:
                order -= 1
            orders.append(order)
        return orders

    check_equal("tokengrams, longest match", index.lookup(queries)[1], np.array(longest(), np.uint8))
    return contest(
        [
            Contender("index.lookup, 1 thread", len(text), lambda: index.lookup(text, threads=1)),
            Contender("tokengrams MemmapIndex.count", len(queries), longest),
        ],
        settings.rounds,
    )


if __name__ == "__main__":
    main(group)

"""Longest match from Python: the index beside a dict of tuples and a numpy search in sorted arrays.

All hold the same keys (the most frequent ones: the dict needs a kilobyte or two a key) and read the same text.
"""

from typing import Any

import numpy as np
from contest import Contender, check_equal, contest
from settings import Settings, main

from memgraft import KeySet, NgramIndex


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
    num_keys = 50_000 if settings.quick else 500_000
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
    return {"unit": "token", "num_keys": len(keys), "orders": keys.orders, "coverage": coverage, "timings": timings}


if __name__ == "__main__":
    main(group)

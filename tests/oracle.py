"""Brute force: what every lookup must answer, written without looking at the index."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def rows_of(keys: Sequence[tuple[int, ...]], counts: Sequence[int]) -> dict[tuple[int, ...], int]:
    """Key to row: descending count, ties by the key as a tuple."""
    order = sorted(zip(keys, counts, strict=True), key=lambda pair: (-pair[1], pair[0]))
    return {key: row for row, (key, _) in enumerate(order)}


def longest_match(
    rows: dict[tuple[int, ...], int], tokens: Sequence[int], starts: set[int] = frozenset()
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, orders) at every position; look-back stops at 0 and at every position in ``starts``."""
    longest = max(map(len, rows), default=0)
    found_rows = np.full(len(tokens), -1, dtype=np.int32)
    found_orders = np.zeros(len(tokens), dtype=np.uint8)
    begin = 0
    for at in range(len(tokens)):
        if at in starts:
            begin = at
        for order in range(min(longest, at + 1 - begin), 0, -1):
            row = rows.get(tuple(int(t) for t in tokens[at + 1 - order : at + 1]))
            if row is not None:
                found_rows[at], found_orders[at] = row, order
                break
    return found_rows, found_orders

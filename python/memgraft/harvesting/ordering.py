"""The order in which keys are read: by their donor tokens, equal ones by row, sorted within a bounded memory.

Keys that do not fit are distributed by their next token, and each group that does not fit either by the one after it.
So the order is the same for every memory, and keys that share a beginning are neighbours, however many there are.
"""

from collections.abc import Iterator

import numpy as np

from memgraft.harvesting.packing import SORTED_TOKENS, IntArray, Ragged, shared_lengths, sorted_order

_BLOCK = 1 << 18
_ROW_BYTES, _TOKEN_BYTES = 80, 16
"""What sorting takes for a row and for each token that its words have: both measured, see the test of memory."""
_FEWEST = 1024


def longest_place(keys: Ragged) -> int:
    """The place of the first of the longest keys."""
    best = most = 0
    for start in range(0, len(keys), _BLOCK):
        lengths = np.diff(keys.offsets[start : start + _BLOCK + 1])
        place = int(lengths.argmax())
        if lengths[place] > most:
            best, most = start + place, int(lengths[place])
    return best


def longest(keys: Ragged) -> int:
    """The most tokens of a key, at least 1."""
    place = longest_place(keys)
    return max(1, int(keys.offsets[place + 1] - keys.offsets[place]))


def order_keys(keys: Ragged, out: IntArray, spare: IntArray, memory: int) -> None:
    """Fills ``out`` with the places of ``keys``, sorted.

    Args:
        keys: N lists of tokens; may be mapped files.
        out: (N,) the result; may be a mapped file.
        spare: (N,) scratch, likewise; not touched where all keys fit.
        memory: bytes that may be allocated.
    """
    for start in range(0, len(keys), _BLOCK):
        stop = min(start + _BLOCK, len(keys))
        out[start:stop] = np.arange(start, stop)
    width = min(longest(keys), SORTED_TOKENS)
    fit = max(_FEWEST, memory // (_ROW_BYTES + _TOKEN_BYTES * width))
    _order(keys, out, spare, (0, len(keys)), 0, fit)


def _order(keys: Ragged, out: IntArray, spare: IntArray, bounds: tuple[int, int], depth: int, fit: int) -> None:
    """Sorts ``out[bounds]``, keys that have their first ``depth`` tokens in common; at most ``fit`` of them at once."""
    first, last = bounds
    if last - first <= fit:
        rows = np.array(out[first:last])
        out[first:last] = rows[sorted_order(keys.take(rows))]
        return
    sizes = _distribute(keys, out, spare, bounds, depth, fit)
    ends = first + np.cumsum(sizes)
    start = int(ends[0])  # the keys that end here are equal, and in order
    while start < last:
        together = int(ends[np.searchsorted(ends, start + fit, side="right") - 1])
        stop = together if together > start else int(ends[np.searchsorted(ends, start, side="right")])
        _order(keys, out, spare, (start, stop), depth + 1, fit)
        start = stop


def _distribute(
    keys: Ragged, out: IntArray, spare: IntArray, bounds: tuple[int, int], depth: int, step: int
) -> IntArray:
    """Groups ``out[bounds]`` by the token at ``depth``, each group in the order it had.

    Returns:
        Sizes of the groups: first those that have no such token, then token 0, 1, …
    """
    first, last = bounds
    blocks = [(start, min(start + step, last)) for start in range(first, last, step)]
    sizes: IntArray = np.zeros(1, np.int64)
    for start, stop in blocks:
        counted = np.bincount(_next_tokens(keys, out[start:stop], depth), minlength=len(sizes))
        counted[: len(sizes)] += sizes
        sizes = counted
    free = first + np.cumsum(sizes) - sizes
    for start, stop in blocks:
        rows = np.array(out[start:stop])
        tokens = _next_tokens(keys, rows, depth)
        by_token = np.argsort(tokens, kind="stable")
        tokens = tokens[by_token]
        spare[free[tokens] + np.arange(len(tokens)) - np.searchsorted(tokens, tokens)] = rows[by_token]
        free += np.bincount(tokens, minlength=len(free))
    for start, stop in blocks:
        out[start:stop] = spare[start:stop]
    return sizes


def _next_tokens(keys: Ragged, rows: IntArray, depth: int) -> IntArray:
    """For each of ``rows`` the token at ``depth`` plus one; 0 where the key has no more."""
    places = keys.offsets[rows] + depth
    there = places < keys.offsets[np.asarray(rows) + 1]
    tokens: IntArray = np.zeros(len(rows), np.int64)
    tokens[there] = keys.tokens[places[there]].astype(np.int64) + 1
    return tokens


def neighbours(keys: Ragged, order: IntArray) -> Iterator[tuple[IntArray, IntArray, IntArray]]:
    """Block by block of ``order``: tokens of each key, of the key before it, and those that both begin with."""
    for start in range(0, len(order), _BLOCK):
        part = keys.take(np.array(order[max(start - 1, 0) : start + _BLOCK]))
        lengths, shared = part.lengths, shared_lengths(part)
        if start:
            yield lengths[1:], lengths[:-1], shared[1:]
        else:
            yield lengths, np.concatenate([[0], lengths[:-1]]), shared


def count_prefixes(keys: Ragged, order: IntArray) -> int:
    """Distinct beginnings of ``keys``."""
    return sum(int((lengths - shared).sum()) for lengths, _, shared in neighbours(keys, order))

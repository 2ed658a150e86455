"""Keys sorted by donor tokens, so that each distinct prefix is one node of a tree, and trees packed into sequences.

Under a causal donor the state of "a b" is computed inside "a b c". Keys in the order of their donor tokens visit the
tree of their prefixes depth first: a key adds only the tokens past what it shares with the key before it. A sequence
holds consecutive keys' nodes; a node stands at its depth and sees its ancestors and itself.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
TokenArray = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]

SEQUENCE_TOKENS = 256
"""Upper bound of a sequence: longer ones pay for attention, shorter ones repeat more of the first key's prefix."""
SORTED_TOKENS = 16
"""Tokens by which keys are sorted as bytes; what is equal in them is compared as lists."""


@dataclass(frozen=True)
class Ragged:
    """N lists of tokens end to end.

    Attributes:
        tokens: int32, all lists.
        offsets: (N + 1,) int64, where each starts and the last ends.
    """

    tokens: TokenArray
    offsets: IntArray

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]]) -> "Ragged":
        """The lists of ``lists``."""
        offsets = np.zeros(len(lists) + 1, np.int64)
        np.cumsum([len(tokens) for tokens in lists], out=offsets[1:])
        return cls(np.fromiter((token for tokens in lists for token in tokens), np.int32, int(offsets[-1])), offsets)

    @classmethod
    def joined(cls, parts: Sequence["Ragged"]) -> "Ragged":
        """The lists of all ``parts``."""
        lengths = np.concatenate([part.lengths for part in parts])
        return cls(np.concatenate([part.tokens for part in parts]), np.concatenate([[0], np.cumsum(lengths)]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> IntArray:
        """(N,) tokens of each list."""
        return np.diff(self.offsets)

    def take(self, places: IntArray) -> "Ragged":
        """The lists at ``places``, in that order."""
        starts = self.offsets[places]
        lengths = self.offsets[places + 1] - starts
        offsets = np.zeros(len(places) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        inside = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return Ragged(self.tokens[np.repeat(starts, lengths) + inside], offsets)

    def part(self, start: int, stop: int) -> "Ragged":
        """The lists ``start .. stop``."""
        first, last = int(self.offsets[start]), int(self.offsets[stop])
        return Ragged(self.tokens[first:last], self.offsets[start : stop + 1] - first)

    def headed(self, head: Sequence[int]) -> "Ragged":
        """Every list behind ``head``."""
        if not head:
            return self
        lengths = self.lengths + len(head)
        offsets = np.zeros(len(self) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        tokens = np.empty(int(offsets[-1]), np.int32)
        own = np.ones(len(tokens), bool)
        places = offsets[:-1, None] + np.arange(len(head))
        tokens[places] = np.asarray(head, np.int32)
        own[places.ravel()] = False
        tokens[own] = self.tokens
        return Ragged(tokens, offsets)

    def padded(self, width: int, fill: int) -> TokenArray:
        """(N, width) the first ``width`` tokens of each list, then ``fill``."""
        matrix = np.full((len(self), width), fill, np.int32)
        there = np.arange(width) < self.lengths[:, None]
        if width >= self.lengths.max(initial=0):
            matrix[there] = self.tokens
        else:
            inside = np.arange(len(self.tokens)) - np.repeat(self.offsets[:-1], self.lengths)
            matrix[there] = self.tokens[inside < width]
        return matrix


def sorted_order(keys: Ragged) -> IntArray:
    """The places of ``keys`` in lexicographic order of their tokens, equal ones by place."""
    width = min(int(keys.lengths.max(initial=1)), SORTED_TOKENS)
    # A big-endian word a token, zero past the end: bytes compare like tuples, and a prefix comes first.
    words = keys.padded(width, -1)
    words += 1
    if sys.byteorder == "little":
        words.byteswap(inplace=True)
    order = np.argsort(words.view(f"S{4 * width}").ravel(), kind="stable").astype(np.int64)
    if (keys.lengths > width).any():
        _sort_ties(keys, order, words)
    return order


def _sort_ties(keys: Ragged, order: IntArray, words: TokenArray) -> None:
    """Puts runs of ``order`` that are equal in ``words`` in order of all their tokens."""
    same = np.ones(len(order) - 1, bool)
    for column in words.T:
        sorted_column = column[order]
        same &= sorted_column[1:] == sorted_column[:-1]
    edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
    for first, last in edges.reshape(-1, 2):
        run = order[first : last + 1].tolist()
        run.sort(key=lambda place: (keys.tokens[keys.offsets[place] : keys.offsets[place + 1]].tolist(), place))
        order[first : last + 1] = run


def shared_lengths(keys: Ragged) -> IntArray:
    """(N,) leading tokens that each key shares with the key before it; 0 for the first."""
    shared = np.zeros(len(keys), np.int64)
    step = 1 << 16
    for start in range(0, len(keys) - 1, step):
        part = keys.part(start, min(start + step + 1, len(keys)))
        matrix = part.padded(int(part.lengths.max()), -1)
        same = (matrix[1:] == matrix[:-1]) & (matrix[1:] >= 0)
        shared[start + 1 : start + len(part)] = np.logical_and.accumulate(same, axis=1).sum(axis=1)
    return shared


@dataclass(frozen=True)
class TreeBatch:
    """B sequences of up to L nodes each.

    Attributes:
        tokens: (B, L) int64, 0 where padded.
        positions: (B, L) int64, the depth of each node.
        sees: (B, L, L) bool, whether a node (second axis) sees another (third): its ancestors and itself.
        lanes: (N,) the sequence of each key's last node.
        places: (N,) that node's place in it.
        num_tokens: nodes, without padding.
    """

    tokens: IntArray
    positions: IntArray
    sees: BoolArray
    lanes: IntArray
    places: IntArray
    num_tokens: int


def tree_batches(keys: Ragged, max_tokens: int, sequence_tokens: int = SEQUENCE_TOKENS) -> Iterator[TreeBatch]:
    """Packs sorted keys (none empty) into batches of at most ``max_tokens`` padded tokens (or one key), in order.

    The split depends on the arguments alone. Batch after batch, ``lanes`` and ``places`` run over all keys.
    """
    bounds = _sequence_bounds(keys, min(sequence_tokens, max_tokens))
    starts, stops, sizes = bounds
    first = 0
    while first < len(starts):
        last, width = first + 1, int(sizes[first])
        while last < len(starts) and (last + 1 - first) * max(width, int(sizes[last])) <= max_tokens:
            width = max(width, int(sizes[last]))
            last += 1
        yield _build(keys.part(int(starts[first]), int(stops[last - 1])), starts[first:last] - starts[first], width)
        first = last


def _sequence_bounds(keys: Ragged, limit: int) -> tuple[IntArray, IntArray, IntArray]:
    """First and past-the-last key and the nodes of each sequence; sizes are evened out, so that little is padded."""
    lengths = keys.lengths
    added = lengths - shared_lengths(keys)
    total = np.concatenate([[0], np.cumsum(added)])
    # Sequences end where the nodes pass an even share, which leaves room for the prefix that the first key repeats.
    number = max(1, -(-int(total[-1]) // limit))
    even = min(limit, -(-int(total[-1]) // number) + int(lengths.mean()) + 1)
    starts, stops, sizes = [], [], []
    start = 0
    while start < len(keys):
        # Nodes of start .. stop: the first key whole, of the others what they add.
        room = total[start + 1] + even - lengths[start]
        stop = max(start + 1, int(np.searchsorted(total, room, side="right")) - 1)
        starts.append(start)
        stops.append(stop)
        sizes.append(int(lengths[start] + total[stop] - total[start + 1]))
        start = stop
    return np.array(starts, np.int64), np.array(stops, np.int64), np.array(sizes, np.int64)


def _build(keys: Ragged, starts: IntArray, width: int) -> TreeBatch:
    """The batch of ``keys`` whose sequences begin at the keys ``starts``, ``width`` nodes wide."""
    lengths, depth = keys.lengths, int(keys.lengths.max())
    shared = shared_lengths(keys)
    shared[starts] = 0
    matrix, columns = keys.padded(depth, 0), np.arange(depth)
    new = (columns >= shared[:, None]) & (columns < lengths[:, None])
    of_key, at_depth = np.nonzero(new)
    lane_of_key = np.searchsorted(starts, np.arange(len(keys)), side="right") - 1
    nodes = np.arange(len(of_key))
    lanes = lane_of_key[of_key]
    firsts = np.searchsorted(lanes, np.arange(len(starts)))
    places = nodes - firsts[lanes]
    # The node at each depth of a key's path is the latest one made there, since keys come depth first.
    path = np.zeros(new.shape, np.int64)
    path[of_key, at_depth] = nodes
    np.maximum.accumulate(path, axis=0, out=path)
    tokens = np.zeros((len(starts), width), np.int64)
    positions = np.zeros_like(tokens)
    tokens[lanes, places] = matrix[new]
    positions[lanes, places] = at_depth
    sees = np.zeros((len(starts), width, width), bool)
    sees[:, np.arange(width), np.arange(width)] = True
    for ancestor in range(depth - 1):
        below = at_depth > ancestor
        lane = lanes[below]
        sees[lane, places[below], path[of_key[below], ancestor] - firsts[lane]] = True
    ends = path[np.arange(len(keys)), lengths - 1]
    return TreeBatch(tokens, positions, sees, lane_of_key, ends - firsts[lane_of_key], len(nodes))

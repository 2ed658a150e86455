"""Which occurrences of its keys a harvest in contexts reads: chosen exactly, in one pass over the mined corpus.

Every position of the corpus has a number, a hash of the seed and the position. A key is read at those k of its
occurrences whose last tokens have the smallest numbers: a sample without replacement that depends on nothing but seed
and corpus. Since the number belongs to the position and not to the key, keys that end together are chosen together, and
one window serves them all.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from memgraft.corpus import Corpus
from memgraft.corpus.blocks import BLOCK, windows_with_lead
from memgraft.distinct import distinct
from memgraft.errors import ArgumentError, KeySetError
from memgraft.harvesting.packing import IntArray
from memgraft.index import NgramIndex
from memgraft.keyset import KeySet
from memgraft.mixing import GAMMA, mix64
from memgraft.progress import Progress

HashArray = npt.NDArray[np.uint64]

_MOST = 1 << 16
_NONE = np.uint64(2**64 - 1)
_INDEX_BYTES, _FEWEST_KEYS = 130, 1024


@dataclass(frozen=True, kw_only=True)
class Contexts:
    """A value is the mean over up to ``occurrences`` places in the corpus, read behind up to ``left`` tokens.

    Attributes:
        occurrences: k, places a key at most.
        left: L, tokens of left context in the recipient's tokens, which the corpus is made of; the donor reads their
            text. The shortest keys have L of them, longer ones less by what they are longer, so that keys of different
            orders that end together are read in one window.
        seed: of the choice of places.
        shortest: tokens of the shortest keys that windows are cut for; None: of the keys that are read. A bank records
            it, so that its rows, and those of an overlay, are read in the same windows whichever keys are left.
    """

    occurrences: int
    left: int
    seed: int = 0
    shortest: int | None = None

    def __post_init__(self) -> None:
        for name, least, most in (("occurrences", 1, _MOST), ("left", 0, _MOST), ("seed", 0, 2**63)):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or not least <= value <= most:
                raise ArgumentError(f"contexts: expected {name} of {least} to {most}, found {value!r}")

    @classmethod
    def recorded(cls, donor: Mapping[str, Any], keys: KeySet) -> "Contexts | None":
        """How the bank of ``keys`` with these donor facts was read; None where keys were read alone."""
        around = donor.get("contexts")
        if not around:
            return None
        # Banks from before it was recorded were not cut since, as far as one can tell.
        shortest = int(donor.get("shortest_key") or min(keys.orders))
        return cls(**around, seed=int(donor["windows"]["seed"]), shortest=shortest)

    @classmethod
    def of(cls, given: "Contexts | Sequence[int] | None") -> "Contexts | None":
        """What is asked for; None where the key is read alone, which ``left=0`` says too.

        Raises:
            ArgumentError: it is not two whole numbers, fewer than one occurrence, less than no context.
        """
        if given is not None and not isinstance(given, Contexts):
            try:
                occurrences, left = (operator.index(number) for number in given)
            except (TypeError, ValueError):
                raise ArgumentError(f"contexts: expected two whole numbers (k, L), found {given!r}") from None
            given = cls(occurrences=occurrences, left=left)
        return given if given is not None and given.left else None

    def facts(self, corpus: Corpus) -> dict[str, Any]:
        """What a harvest's settings, and so ``bank.json``, say; what begins with ``context`` is of the value space."""
        return {
            "contexts": {"occurrences": int(self.occurrences), "left": int(self.left)},
            "windows": {"seed": int(self.seed), "corpus": corpus.fingerprint},
        }


def numbers_of(positions: IntArray, seed: int) -> HashArray:
    """The number of each position, 63 bits (SplitMix64 of seed and position); the smallest are read."""
    numbers: HashArray = mix64(positions.astype(np.uint64) + np.uint64((seed + 1) * GAMMA % 2**64)) >> np.uint64(1)
    return numbers


def find_occurrences(
    keys: KeySet,
    corpus: Corpus,
    contexts: Contexts,
    progress: Progress | None = None,
    *,
    memory: int = 1 << 30,
    block_tokens: int = BLOCK,
    out: IntArray | None = None,
) -> IntArray:
    """Where each key is read: (R, k) int64 positions of last tokens, by their numbers; -1 where it occurs less often.

    Streams over the corpus once for as many keys as fit into ``memory``: 16 bytes for each of their k places, and
    about 130 for the key's index while it is built.

    Args:
        keys: R keys.
        corpus: the documents they were mined from.
        contexts: how many places, and the seed.
        progress: called as ``progress("occurrences", positions done, positions in all)``.
        memory: bytes that may be allocated; the places do not depend on it.
        block_tokens: positions looked up at a time; nor on this.
        out: (R, k), where places are put.

    Raises:
        KeySetError: no key occurs.
    """
    number, k = len(keys), contexts.occurrences
    ends: IntArray = np.empty((number, k), np.int64) if out is None else out
    together = max(_FEWEST_KEYS, memory // (_INDEX_BYTES + 16 * k))
    parts = [(start, min(start + together, number)) for start in range(0, number, together)]
    there = False
    for place, (first, last) in enumerate(parts):
        part = keys if len(parts) == 1 else keys.select(np.arange(first, last))

        def report(done: int, total: int, place: int = place) -> None:
            if progress is not None:
                progress("occurrences", place * total + done, len(parts) * total)

        found = _find(part, corpus, contexts, block_tokens, report)
        there = there or bool((found[:, 0] >= 0).any())
        ends[first:last] = found
    if not there:
        raise KeySetError(f"{corpus.paths[0]}: no key occurs in it; name the corpus that the keys were mined from")
    return ends


def _find(
    keys: KeySet, corpus: Corpus, contexts: Contexts, block_tokens: int, report: Callable[[int, int], None]
) -> IntArray:
    """The places of keys that fit into memory, in one pass over the corpus."""
    indexes = []
    lengths = np.diff(keys.arrays().offsets.astype(np.int64))
    for order in keys.orders:
        rows = np.flatnonzero(lengths == order)
        indexes.append((rows, NgramIndex.build(keys.select(rows))))
    best = _Smallest(len(keys), contexts.occurrences)
    for window in windows_with_lead(corpus, max(keys.orders) - 1, block_tokens):
        tokens = corpus.tokens(window.first, window.stop)
        numbers = numbers_of(np.arange(window.start, window.stop), contexts.seed)
        for rows, index in indexes:
            # One order an index: the longest match is the key of that order.
            found = index.lookup(tokens, cu_seqlens=window.edges, unknown="miss")[0][window.lead :]
            hits = np.flatnonzero(found >= 0)
            best.add(rows[found[hits]], numbers[hits], hits + window.start)
        report(window.stop, corpus.num_tokens)
    return best.ends


class _Smallest:
    """For each of R rows the k places with the smallest numbers among those added, in ascending blocks of places."""

    def __init__(self, num_rows: int, k: int) -> None:
        self.ends: IntArray = np.full((num_rows, k), -1, np.int64)
        self._numbers: HashArray = np.full((num_rows, k), _NONE, np.uint64)

    def add(self, rows: IntArray, numbers: HashArray, ends: IntArray) -> None:
        """Adds occurrences: their rows, numbers and places, (n,) each."""
        near = numbers < self._numbers[rows, -1]
        rows, numbers, ends = rows[near], numbers[near], ends[near]
        if not len(rows):
            return
        k = self.ends.shape[1]
        touched = distinct(rows)
        rows = np.concatenate([np.repeat(touched, k), rows])
        numbers = np.concatenate([self._numbers[touched].ravel(), numbers])
        ends = np.concatenate([self.ends[touched].ravel(), ends])
        order = np.lexsort((ends, numbers, rows))
        rank = np.arange(len(rows)) - np.searchsorted(rows[order], rows[order], side="left")
        kept = order[rank < k]
        self._numbers[touched] = numbers[kept].reshape(-1, k)
        self.ends[touched] = ends[kept].reshape(-1, k)

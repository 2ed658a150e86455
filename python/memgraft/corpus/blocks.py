"""A corpus read a block at a time: whole documents, or windows of one size with the positions before them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

BLOCK = 1 << 20
"""Tokens read at a time."""


class Documents(Protocol):
    """What is asked of a corpus; `memgraft.Corpus` has it."""

    @property
    def num_tokens(self) -> int:
        """Tokens in all."""

    @property
    def document_starts(self) -> npt.NDArray[np.uint64]:
        """Where documents start, and the number of tokens."""

    def tokens(self, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """The tokens ``start .. stop``."""


def documents_in_blocks(corpus: Documents, size: int = BLOCK) -> Iterator[IntArray]:
    """Where consecutive whole documents begin, and where the last of them ends: as many as fit into ``size`` tokens.

    A document that is longer comes alone.
    """
    starts = corpus.document_starts.astype(np.int64)
    first = 0
    while first < len(starts) - 1:
        last = max(first + 1, int(np.searchsorted(starts, starts[first] + size, side="right")) - 1)
        yield starts[first : last + 1]
        first = last


@dataclass(frozen=True, eq=False)
class Window:
    """Positions of a corpus, and those before them that a key which ends inside may reach back to.

    Attributes:
        first: where the lead begins.
        start: the first position of the window.
        stop: behind its last.
        starts: where the corpus's documents start, (D + 1,) int64.
    """

    first: int
    start: int
    stop: int
    starts: IntArray

    @property
    def lead(self) -> int:
        """Positions before the window that are read with it."""
        return self.start - self.first

    @cached_property
    def edges(self) -> IntArray:
        """The ``cu_seqlens`` of ``first .. stop``: edges between documents, counted from ``first``."""
        begin, end = np.searchsorted(self.starts, self.first, "right"), np.searchsorted(self.starts, self.stop, "left")
        inner = np.unique(self.starts[begin:end]) - self.first
        return np.concatenate(([0], inner, [self.stop - self.first])).astype(np.int64)

    def documents(self) -> IntArray:
        """The document of each of the positions ``first .. stop``; of several that begin at one, the last has it."""
        return np.searchsorted(self.starts, np.arange(self.first, self.stop), side="right").astype(np.int64) - 1


def windows_with_lead(
    corpus: Documents, lead: int, size: int = BLOCK, *, begin: int = 0, ahead: int = 0
) -> Iterator[Window]:
    """Windows of ``size`` positions one after another, from ``begin`` to the end of the corpus.

    Args:
        corpus: the tokens.
        lead: positions before a window that are read with it: the longest key, less one, so that every match that ends
            in the window lies in what is read.
        size: positions.
        begin: where the first window starts.
        ahead: positions behind a window that are read with it.
    """
    starts, total = corpus.document_starts.astype(np.int64), corpus.num_tokens
    for start in range(begin, total, size):
        yield Window(max(start - lead, 0), start, min(start + size + ahead, total), starts)

"""Decode states of a batch of sequences, tied to the index they belong to."""

from __future__ import annotations

from collections import deque
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memgraft.errors import ArgumentError, FingerprintError
from memgraft.index import NgramIndex

__all__ = ["Cursor"]


class Cursor:
    """Where each of B sequences stands: one uint32 a sequence, and the states of the last steps for rolling back.

    Holds no pointer into the index; it names the index by fingerprint and is refused by any other, so that it can
    travel (pickle, copy) with a key-value cache.
    """

    __slots__ = ("_fingerprint", "_history", "_states")

    def __init__(self, index: NgramIndex, batch: int, *, history: int = 64) -> None:
        """B sequences before their first token.

        Args:
            index: whose states these are.
            batch: number of sequences.
            history: steps that :meth:`rollback` can undo; each costs 4 bytes a sequence.

        Raises:
            ArgumentError: a negative ``batch`` or ``history``.
        """
        if history < 0:
            raise ArgumentError(f"history: expected at least 0, got {history}")
        self._fingerprint = index.fingerprint
        self._states = index.start(batch)
        self._history: deque[NDArray[np.uint32]] = deque(maxlen=history)

    @property
    def fingerprint(self) -> str:
        """The index these states belong to."""
        return self._fingerprint

    @property
    def states(self) -> NDArray[np.uint32]:
        """(B,) states, (B, banks) for a stack; a copy."""
        return self._states.copy()

    @property
    def history(self) -> int:
        """Steps that can be rolled back now."""
        return len(self._history)

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self._states)

    def __repr__(self) -> str:
        """Sequences, steps that can be undone, and the head of the index's fingerprint."""
        return f"Cursor({len(self)} sequences, {self.history} steps to roll back, index {self._fingerprint[:12]}…)"

    def advance(
        self,
        index: NgramIndex,
        tokens: ArrayLike,
        *,
        out: tuple[NDArray[np.int32], NDArray[np.uint8]] | None = None,
        unknown: Literal["error", "miss"] = "error",
    ) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """Reads one token for each sequence; rows int32 (B,) and orders uint8 (B,) as ``lookup`` on the whole prefix.

        Nothing moves on an error.

        Raises:
            FingerprintError: another index than the one the cursor was made with.
            TokenError: a token outside the vocabulary.
            ArgumentError: a wrong shape or dtype.
        """
        self._check(index)
        after = self._states.copy()
        found = index.advance(after, tokens, out=out, unknown=unknown)
        self._history.append(self._states)
        self._states = after
        return found

    def reorder(self, indices: ArrayLike) -> None:
        """Sequence i goes on from sequence ``indices[i]`` (beams); the batch may grow or shrink, the history follows.

        Raises:
            ArgumentError: indices that are no integers or outside ``0..B``.
        """
        chosen = np.asarray(indices)
        if chosen.ndim != 1 or (chosen.size and chosen.dtype.kind not in "iu"):
            raise ArgumentError(f"indices: expected 1-D integers, got {chosen.ndim}-D {chosen.dtype}")
        if chosen.size and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise ArgumentError(f"indices: expected 0 to {len(self) - 1}, got {chosen.min()} to {chosen.max()}")
        chosen = chosen.astype(np.intp)
        self._states = self._states[chosen]
        self._history = deque((states[chosen] for states in self._history), maxlen=self._history.maxlen)

    def rollback(self, steps: int | ArrayLike) -> None:
        """Undoes the last ``steps`` tokens exactly (speculative decoding): of all sequences, or (B,) a number for each.

        After unequal steps the shared history is gone up to the shortest: a sequence that went back less keeps the
        state it has, and no sequence can go back further than ``history - max(steps)`` more steps.

        Raises:
            ArgumentError: more steps than :attr:`history`, or a wrong shape.
        """
        counts = np.asarray(steps)
        if counts.dtype.kind not in "iu" or counts.shape not in ((), (len(self),)):
            raise ArgumentError(f"steps: expected one integer or {len(self)}, got {counts.dtype} {counts.shape}")
        furthest = int(counts.max(initial=0))
        if int(counts.min(initial=0)) < 0 or furthest > len(self._history):
            raise ArgumentError(
                f"steps: expected 0 to {len(self._history)} (the steps kept), got {counts.tolist()}; "
                "make the cursor with a larger history="
            )
        if furthest == 0:
            return
        past = [*self._history, self._states]
        back = np.broadcast_to(counts, (len(self),))
        depth = len(past) - 1
        # Each sequence's own timeline, aligned at its new end.
        aligned = [
            np.array([past[depth - int(back[i]) - age][i] for i in range(len(self))], dtype=np.uint32)
            for age in range(depth - furthest + 1)
        ]
        self._states = aligned[0]
        self._history = deque(reversed(aligned[1:]), maxlen=self._history.maxlen)

    def reset(self, which: ArrayLike | None = None) -> None:
        """Starts a new segment in all sequences, or where the (B,) boolean mask says; can be rolled back over.

        Raises:
            ArgumentError: a mask of another shape or dtype.
        """
        if which is None:
            self._states = np.zeros_like(self._states)
            return
        mask = np.asarray(which)
        if mask.dtype != np.bool_ or mask.shape != (len(self),):
            raise ArgumentError(f"which: expected a boolean mask of shape ({len(self)},), got {mask.dtype}")
        self._states = self._states.copy()
        self._states[mask] = 0

    def copy(self) -> Cursor:
        """An independent cursor at the same place."""
        twin = object.__new__(Cursor)
        twin._fingerprint = self._fingerprint
        twin._states = self._states.copy()
        twin._history = deque(self._history, maxlen=self._history.maxlen)
        return twin

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> Cursor:
        """As :meth:`copy`: states are never changed in place."""
        return self.copy()

    def __getstate__(self) -> tuple[str, NDArray[np.uint32], list[NDArray[np.uint32]], int | None]:
        """Fingerprint, states and history."""
        return self._fingerprint, self._states, list(self._history), self._history.maxlen

    def __setstate__(self, state: tuple[str, NDArray[np.uint32], list[NDArray[np.uint32]], int | None]) -> None:
        """Takes what :meth:`__getstate__` gave."""
        self._fingerprint, self._states, history, limit = state
        self._history = deque(history, maxlen=limit)

    def _check(self, index: NgramIndex) -> None:
        if index.fingerprint != self._fingerprint:
            raise FingerprintError(
                f"cursor: expected the index {self._fingerprint}, got {index.fingerprint}; states mean something to "
                "their own index alone: make a new Cursor and read the sequence again"
            )

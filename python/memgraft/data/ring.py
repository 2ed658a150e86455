"""Staging memory that is used again: slots of power-of-two bytes, pinned where CUDA is there.

A slot is free again when nothing refers to it any more: on the CPU when the last tensor over its memory is gone
(autograd's saved tensors included), with CUDA when the copy out of it has passed its event. Nobody has to give a
slot back, so none is lost or reused too early.
"""

import contextlib
import mmap
import os
import weakref
from collections import deque

import numpy as np
import numpy.typing as npt
import torch

from memgraft.bank import Memory, Staged

_MIN_SLOT_BYTES = 1 << 16
_HUGE_PAGE = 2 << 20


class StagingRing:
    """A pool of staging slots of one process.

    A caller never waits for a slot: where all are in use, another is made, and at most ``num_slots`` free ones are
    kept.

    Args:
        num_slots: free slots to keep.
        pinned: page-lock the slots; by default where CUDA is available.
    """

    def __init__(self, num_slots: int = 3, *, pinned: bool | None = None) -> None:
        self.num_slots = num_slots
        self.pinned = torch.cuda.is_available() if pinned is None else pinned
        self._pid = os.getpid()
        self._free: deque[_Slot] = deque()
        self._live: set[int] = set()
        self._copying: _Copies = deque()
        self._expected = _MIN_SLOT_BYTES
        # Page-locked memory goes back to torch's cache with the ring: not while a device still reads it.
        weakref.finalize(self, _finish, self._copying, self._pid).atexit = False

    @property
    def num_leased(self) -> int:
        """Slots that something still refers to, a copy on its way included."""
        self.drop_copied()
        return len(self._live)

    @property
    def num_free(self) -> int:
        """Slots kept for reuse."""
        return len(self._free)

    @property
    def num_bytes(self) -> int:
        """Bytes of the free slots."""
        return sum(slot.num_bytes for slot in list(self._free))

    def lease(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        """``num_bytes`` writable bytes; the slot behind them is free again once no array or tensor refers to it."""
        if os.getpid() != self._pid:
            # A forked child must not hand out what the parent still writes to.
            self._pid = os.getpid()
            self._free, self._live, self._copying = deque(), set(), deque()
            # Once the parent has used CUDA, a forked child cannot.
            self.pinned = False
        self.drop_copied()
        slot = self._take(num_bytes)
        # A view's base is the oldest array over foreign memory, so this one outlives every view of it.
        array = np.frombuffer(slot.memory, dtype=np.uint8)
        self._live.add(id(slot))
        weakref.finalize(array, _release, weakref.ref(self), slot).atexit = False
        return array[:num_bytes]

    def stage(
        self, bank: Memory, *, rows: npt.NDArray[np.int32], orders: npt.NDArray[np.uint8] | None, threads: int | None
    ) -> Staged:
        """`Bank.stage` into a slot: one native call unless the batch is larger than any before."""
        out = self.lease(self._expected)

        def grow(needed: int) -> npt.NDArray[np.uint8]:
            self._expected = _slot_bytes(needed)
            return self.lease(needed)

        return bank.stage(rows=rows, orders=orders, out=out, grow=grow, threads=threads)

    def hold(self, event: torch.cuda.Event, *tensors: torch.Tensor | None) -> None:
        """Keeps the memory of ``tensors`` from being used again until ``event`` has passed."""
        self._copying.append((event, tensors))

    def drop_copied(self) -> None:
        """Lets go of memory whose copies have ended."""
        # Two threads may be here: each decides about the copy that it took out, and puts it back if it is not done.
        for _ in range(len(self._copying)):
            try:
                copy = self._copying.popleft()
            except IndexError:
                break
            if not copy[0].query():  # type: ignore[no-untyped-call]
                self._copying.append(copy)

    def _take(self, num_bytes: int) -> "_Slot":
        for _ in range(len(self._free)):
            try:
                slot = self._free.popleft()
            except IndexError:
                break
            if slot.num_bytes >= num_bytes:
                return slot
            # Batches have outgrown it; let it go.
        return _Slot(_slot_bytes(num_bytes), pinned=self.pinned)

    def _give_back(self, slot: "_Slot") -> None:
        # Runs in whatever thread drops the last reference, even inside the garbage collector: no locks.
        self._live.discard(id(slot))
        if len(self._free) < self.num_slots:
            self._free.append(slot)


class _Slot:
    """Memory of a power of two bytes, page-locked or on huge pages where the system gives them."""

    def __init__(self, num_bytes: int, *, pinned: bool) -> None:
        self.num_bytes = num_bytes
        self.memory: memoryview | mmap.mmap
        if pinned:
            self.memory = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True).numpy().data
            return
        # Private: a forked child that inherits the slot must not write into the parent's.
        self.memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if num_bytes >= _HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):
                self.memory.madvise(mmap.MADV_HUGEPAGE)


_Copies = deque[tuple[torch.cuda.Event, tuple[torch.Tensor | None, ...]]]


def _finish(copies: _Copies, pid: int) -> None:
    """Waits for the copies of a ring that is gone, in the process that started them."""
    if os.getpid() == pid:
        for event, _ in copies:
            event.synchronize()
        copies.clear()


def _slot_bytes(num_bytes: int) -> int:
    return max(_MIN_SLOT_BYTES, 1 << (num_bytes - 1).bit_length())


def _release(ring: "weakref.ref[StagingRing]", slot: _Slot) -> None:
    owner = ring()
    if owner is not None:
        owner._give_back(slot)

"""The two background threads of a `PrefetchLoader`'s pass: one draws batches from the loader, one stages them.

Drawing a batch from worker processes unpickles it, which takes about a millisecond and holds the interpreter. Staging
runs native code, which releases the interpreter. Because each has a thread, drawing takes no time of its own.
"""

import atexit
import threading
from collections import deque
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from memgraft.bank import Memory
from memgraft.data.batch import KEY, MemoryBatch
from memgraft.data.hot import HotRows
from memgraft.data.ring import StagingRing
from memgraft.errors import GraftError


@dataclass(frozen=True, kw_only=True)
class Item:
    """One batch between the loader and the training loop.

    Attributes:
        batch: the batch that the loader gave.
        memory: its memory batch, before or after staging.
        state: the loader's state after this batch, where the loader has one.
        event: the CUDA event that is complete once the rows are on the device.
    """

    batch: Any
    memory: MemoryBatch
    state: Any = None
    event: torch.cuda.Event | None = None


class Queue:
    """Items between two threads; either thread can end the queue at any time."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.items: deque[Item] = deque()
        self.changed = threading.Condition()
        self.closed = False
        self.ended = False
        self.error: BaseException | None = None
        self.last_state: Any = None

    @property
    def num_staged(self) -> int:
        """Items whose values are here."""
        with self.changed:
            return sum(item.memory.staged for item in self.items)

    def put(self, item: Item) -> bool:
        """Waits for room and appends; returns False, and appends nothing, once the queue is closed."""
        with self.changed:
            self.changed.wait_for(lambda: self.closed or len(self.items) < self.depth)
            if not self.closed:
                self.items.append(item)
                self.changed.notify_all()
            return not self.closed

    def end(self, error: BaseException | None, last_state: Any) -> None:
        """Ends the items: after the last, `get` raises ``error`` or returns None; ``last_state`` is the loader's."""
        with self.changed:
            self.ended, self.error, self.last_state = True, error, last_state
            self.changed.notify_all()

    def get(self) -> Item | None:
        """The next item, or None at the end; raises what ended the other side."""
        with self.changed:
            self.changed.wait_for(lambda: self.items or self.ended or self.closed)
            if self.items and not self.closed:
                item = self.items.popleft()
                self.changed.notify_all()
                return item
            error, self.error = self.error, None
        if error is not None:
            raise error
        return None

    def close(self) -> None:
        """Drops all items and lets both sides go."""
        with self.changed:
            self.closed = True
            self.items.clear()
            self.changed.notify_all()


@dataclass(frozen=True, kw_only=True)
class Stager:
    """What staging a batch takes."""

    bank: Memory
    ring: StagingRing
    threads: int | None
    device: torch.device | None
    hot: HotRows | None = None

    def stage(self, item: Item, stream: torch.cuda.Stream | None) -> Item:
        """``item`` with its memory staged, and on its way to the device where there is one."""
        rows: torch.Tensor | None = None
        if self.hot is None or item.memory.staged:
            memory = item.memory.stage(self.bank, self.ring, threads=self.threads)
        else:
            memory, rows = self.hot.stage(item.memory, self.bank, self.ring, threads=self.threads)
        event = None
        if stream is not None:
            memory, event = upload(memory, self.ring, stream, self.hot, rows)
        elif self.device is not None:
            memory = memory.to(self.device)
        if stream is None and self.hot is not None and rows is not None:
            memory = self.hot.join(memory.to(self.hot.device), rows.to(self.hot.device))
        item.batch[KEY] = memory
        return replace(item, memory=memory, event=event)


def start(
    loader: Iterable[Any], stager: Stager, depth: int
) -> tuple[Queue, Callable[[], None], list[threading.Thread]]:
    """Starts both threads; they know the queues and not their owner, which can therefore be dropped.

    Returns:
        The queue of staged batches, what closes both queues, and the threads.
    """
    drawn, staged = Queue(1), Queue(depth)

    def close() -> None:
        staged.close()
        drawn.close()

    cuda_device = _cuda_device()
    threads = [
        threading.Thread(target=_draw, args=(drawn, loader, cuda_device), name="memgraft-prefetch-draw", daemon=True),
        threading.Thread(
            target=_stage, args=(drawn, staged, stager, cuda_device), name="memgraft-prefetch", daemon=True
        ),
    ]
    for thread in threads:
        _running[thread] = close
        thread.start()
    return staged, close, threads


_running: dict[threading.Thread, Callable[[], None]] = {}
_EXIT_SECONDS = 10.0


@atexit.register
def _end_all() -> None:
    # A thread that the interpreter stops inside native code ends the process with an abort.
    for thread, close in list(_running.items()):
        # After a fork the parent's threads are none of the child's, and their locks may be held for ever.
        if thread.is_alive():
            close()
            thread.join(_EXIT_SECONDS)


def memory_of(batch: Any) -> MemoryBatch:
    """The memory that the collator put into ``batch``.

    Raises:
        GraftError: there is none.
    """
    if not isinstance(batch, MutableMapping) or KEY not in batch:
        raise GraftError(
            f"prefetch: the loader gave a batch without {KEY!r}: collate it with GraftCollator(bank, inner)"
        )
    return MemoryBatch.wrap(batch[KEY])


def _draw(drawn: Queue, loader: Iterable[Any], cuda_device: int | None) -> None:
    error: BaseException | None = None
    state: Any = None
    try:
        _use(cuda_device)
        state_dict = getattr(loader, "state_dict", None)
        for batch in loader:
            state = None if state_dict is None else state_dict()
            if not drawn.put(Item(batch=batch, memory=memory_of(batch), state=state)):
                return
            del batch
        state = None if state_dict is None else state_dict()
    except BaseException as caught:
        error = caught
    finally:
        drawn.end(error, state)
        _running.pop(threading.current_thread(), None)


def _stage(drawn: Queue, staged: Queue, stager: Stager, cuda_device: int | None) -> None:
    error: BaseException | None = None
    try:
        _use(cuda_device)
        stream = _copy_stream(stager.device)
        while (item := drawn.get()) is not None:
            item = stager.stage(item, stream)
            if not staged.put(item):
                return
            del item
    except BaseException as caught:
        error = caught
    finally:
        drawn.close()
        staged.end(error, drawn.last_state)
        _running.pop(threading.current_thread(), None)


def _use(cuda_device: int | None) -> None:
    # A new thread starts on device 0; the loader's pinning and the copies belong to the process's own device.
    if cuda_device is not None:
        torch.cuda.set_device(cuda_device)


def _cuda_device() -> int | None:
    initialized = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.cuda.current_device() if initialized else None


def _copy_stream(device: torch.device | None) -> torch.cuda.Stream | None:
    if device is None or device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def upload(
    memory: MemoryBatch,
    ring: StagingRing,
    stream: torch.cuda.Stream,
    hot: HotRows | None = None,
    rows: torch.Tensor | None = None,
) -> tuple[MemoryBatch, torch.cuda.Event]:
    """Starts the copy to the device on ``stream``; the slot stays taken until the event has passed.

    Args:
        memory: staged on the host; without the values of ``rows``, where there are any.
        ring: whose slot the values lie in.
        stream: of the copy.
        hot: rows that are on the device already.
        rows: those of them that the batch reads, int64 (H,).
    """
    with torch.cuda.stream(stream):
        moved = memory.start_copy(stream.device)
        if hot is not None and rows is not None:
            moved = hot.join(moved, rows.to(stream.device))
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(stream)
    ring.hold(event, *memory.tensors())
    return moved, event

"""Stages batch t + 1 while the trainer computes batch t."""

import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import torch

from memgraft.bank import Bank
from memgraft.data.handle import KEY, MemoryBatch
from memgraft.data.ring import StagingRing
from memgraft.errors import ConfigError, GraftError

BatchT = TypeVar("BatchT")


@dataclass(kw_only=True)
class PrefetchFacts:
    """Telemetry of a `prefetch` loader, summed over its iterators.

    Attributes:
        num_batches: batches given to the trainer.
        num_positions: positions in them.
        num_hits: positions with a row.
        num_unique: distinct rows staged.
        num_bytes: bytes of values staged.
        num_cold_rows: rows read from the device.
        stage_seconds: time spent staging, in the background.
        wait_seconds: time the trainer waited for a batch.
    """

    num_batches: int = 0
    num_positions: int = 0
    num_hits: int = 0
    num_unique: int = 0
    num_bytes: int = 0
    num_cold_rows: int = 0
    stage_seconds: float = 0.0
    wait_seconds: float = 0.0

    @property
    def unique_share(self) -> float:
        """Distinct rows per hit."""
        return self.num_unique / self.num_hits if self.num_hits else 0.0

    def add(self, memory: MemoryBatch, waited: float) -> None:
        """Counts one batch."""
        self.num_batches += 1
        self.wait_seconds += waited
        if (facts := memory.facts) is not None:
            self.num_positions += facts.num_positions
            self.num_hits += facts.num_hits
            self.num_unique += facts.num_unique
            self.num_bytes += facts.num_bytes
            self.num_cold_rows += facts.num_cold_rows
            self.stage_seconds += facts.seconds


def prefetch(
    loader: Iterable[BatchT],
    bank: Bank,
    *,
    depth: int = 2,
    device: torch.device | str | None = None,
    threads: int | None = None,
    ring: StagingRing | None = None,
) -> "PrefetchLoader[BatchT]":
    """``loader`` with the memory of its batches staged ahead by a background thread.

    A loader that accelerate has prepared keeps its own order of things (device placement, end-of-epoch flags,
    collectives) in the caller's thread: staging goes underneath it. With ``dispatch_batches=True``, where only one
    process reads, batches are staged as they arrive, without overlap.

    Args:
        loader: gives mappings with ``"memgraft"``, as `GraftCollator` makes them in either mode.
        bank: the bank of the collator.
        depth: staged batches to hold ready.
        device: copy the memory there on a stream of its own; by default the device of a prepared loader, else none.
        threads: threads of the gather.
        ring: staging memory to share; by default one of this loader.

    Raises:
        ConfigError: ``depth`` below 1, or ``dispatch_batches=True`` around a collator in handle mode.
    """
    return PrefetchLoader(loader, bank, depth=depth, device=device, threads=threads, ring=ring)


class PrefetchLoader(Generic[BatchT]):
    """See `prefetch`; passes on whatever else the loader offers (``dataset``, ``set_epoch``, ``state_dict``)."""

    def __init__(
        self,
        loader: Iterable[BatchT],
        bank: Bank,
        *,
        depth: int,
        device: torch.device | str | None,
        threads: int | None,
        ring: StagingRing | None,
    ) -> None:
        if depth < 1:
            raise ConfigError(f"depth {depth}: expected at least 1 batch ahead")
        self.loader = loader
        self.bank = bank
        self.depth = depth
        self.device = None if device is None else torch.device(device)
        self.threads = threads
        self.ring = StagingRing(depth + 1) if ring is None else ring
        self.facts = PrefetchFacts()
        self._prepared = _prepared_by_accelerate(loader)
        if self._prepared == "DataLoaderShard":
            self._stage_underneath(cast(Any, loader))
        elif self._prepared == "DataLoaderDispatcher" and _mode(loader) == "handle":
            raise ConfigError(
                "accelerate's dispatch_batches=True cannot slice a MemoryBatch: use GraftCollator(mode='ids'), "
                "or dispatch_batches=False"
            )

    def _stage_underneath(self, prepared: Any) -> None:
        """Puts staging between a prepared loader and the torch loader that it reads; once, however often called."""
        inner = prepared.base_dataloader
        if not isinstance(inner, PrefetchLoader):
            device = prepared.device if self.device is None else self.device
            inner = PrefetchLoader(
                inner, self.bank, depth=self.depth, device=device, threads=self.threads, ring=self.ring
            )
            prepared.base_dataloader = inner
        self.facts, self.ring = inner.facts, inner.ring

    def __iter__(self) -> Iterator[BatchT]:
        if self._prepared == "DataLoaderShard":
            return iter(self.loader)
        if self._prepared == "DataLoaderDispatcher":
            return self._stage_on_arrival()
        return _PrefetchIterator(self)

    def _stage_on_arrival(self) -> Iterator[BatchT]:
        for batch in self.loader:
            started = time.perf_counter()
            memory = _staged(batch, self.bank, self.ring, self.threads)
            if self.device is not None:
                memory = memory.to(self.device)
            cast(Any, batch)[KEY] = memory
            self.facts.add(memory, time.perf_counter() - started)
            yield batch

    def __len__(self) -> int:
        return len(cast(Any, self.loader))

    def __getattr__(self, name: str) -> Any:
        if name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)


def _prepared_by_accelerate(loader: Any) -> str | None:
    """The name of accelerate's loader class that ``loader`` is, if it is one."""
    names = [base.__name__ for base in type(loader).__mro__ if base.__module__.startswith("accelerate.")]
    return next((name for name in names if name in ("DataLoaderShard", "DataLoaderDispatcher")), None)


def _mode(loader: Any) -> str | None:
    return getattr(getattr(loader, "collate_fn", None), "mode", None)


def _staged(batch: Any, bank: Bank, ring: StagingRing, threads: int | None) -> MemoryBatch:
    """The memory of ``batch`` with its values, on the CPU."""
    if not isinstance(batch, MutableMapping) or KEY not in batch:
        raise GraftError(
            f"prefetch: the loader gave a batch without {KEY!r}: collate it with GraftCollator(bank, inner)"
        )
    return MemoryBatch.wrap(batch[KEY]).stage(bank, ring, threads=threads)


class _Queue:
    """Staged batches between the two threads; the trainer's side can close it at any time."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.items: deque[tuple[Any, MemoryBatch, torch.cuda.Event | None]] = deque()
        self.changed = threading.Condition()
        self.closed = False
        self.ended = False
        self.error: BaseException | None = None

    def put(self, item: tuple[Any, MemoryBatch, torch.cuda.Event | None]) -> bool:
        """Waits for room; False once closed."""
        with self.changed:
            self.changed.wait_for(lambda: self.closed or len(self.items) < self.depth)
            if not self.closed:
                self.items.append(item)
                self.changed.notify_all()
            return not self.closed

    def end(self, error: BaseException | None) -> None:
        with self.changed:
            self.ended, self.error = True, error
            self.changed.notify_all()

    def get(self) -> tuple[Any, MemoryBatch, torch.cuda.Event | None] | None:
        """The next batch, or None at the end; raises what the background thread raised."""
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
        with self.changed:
            self.closed = True
            self.items.clear()
            self.changed.notify_all()


class _PrefetchIterator(Iterator[BatchT]):
    """One pass. Dropping it, or `close`, ends its thread and frees its slots."""

    def __init__(self, owner: PrefetchLoader[BatchT]) -> None:
        self._facts = owner.facts
        self._device = owner.device
        self._queue = _Queue(owner.depth)
        self._thread = threading.Thread(
            target=_run,
            args=(self._queue, owner.loader, owner.bank, owner.ring, owner.threads, owner.device, _cuda_device()),
            name="memgraft-prefetch",
            daemon=True,
        )
        self._finalizer = weakref.finalize(self, _Queue.close, self._queue)
        self._thread.start()

    def __iter__(self) -> "_PrefetchIterator[BatchT]":
        return self

    def __next__(self) -> BatchT:
        started = time.perf_counter()
        item = self._queue.get()
        if item is None:
            self.close()
            raise StopIteration
        batch, memory, event = item
        if event is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(event)
            for tensor in memory.tensors():
                tensor.record_stream(stream)
        self._facts.add(memory, time.perf_counter() - started)
        return cast(BatchT, batch)

    def close(self) -> None:
        """Ends the thread, after the batch it is at."""
        self._finalizer()
        if self._thread is not threading.current_thread():
            self._thread.join()


def _run(
    queue: _Queue,
    loader: Iterable[Any],
    bank: Bank,
    ring: StagingRing,
    threads: int | None,
    device: torch.device | None,
    cuda_device: int | None,
) -> None:
    """The background thread; knows the queue and not the iterator, which can therefore be dropped."""
    error: BaseException | None = None
    try:
        if cuda_device is not None:
            # A new thread starts on device 0; the loader's pinning belongs to the process's own device.
            torch.cuda.set_device(cuda_device)
        stream = _copy_stream(device)
        for batch in loader:
            memory = _staged(batch, bank, ring, threads)
            event = None
            if stream is not None:
                memory, event = _upload(memory, ring, stream)
            elif device is not None:
                memory = memory.to(device)
            batch[KEY] = memory
            if not queue.put((batch, memory, event)):
                return
            del batch, memory
    except BaseException as caught:
        error = caught
    finally:
        queue.end(error)


def _cuda_device() -> int | None:
    initialized = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.cuda.current_device() if initialized else None


def _copy_stream(device: torch.device | None) -> torch.cuda.Stream | None:
    if device is None or device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _upload(memory: MemoryBatch, ring: StagingRing, stream: torch.cuda.Stream) -> tuple[MemoryBatch, torch.cuda.Event]:
    """Starts the copy to the device on ``stream``; the slot stays taken until the event has passed."""
    with torch.cuda.stream(stream):
        moved = memory.to(stream.device, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(stream)
    ring.hold(event, *memory.tensors())
    return moved, event

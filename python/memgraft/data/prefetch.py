"""Stages batch t + 1 while the trainer computes batch t."""

import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import torch
from torch.utils.data import DataLoader

from memgraft.bank import Memory, open_memory
from memgraft.bank.overlay import Where
from memgraft.data.batch import MemoryBatch
from memgraft.data.dispatch import DISPATCHER, SHARD, prepared_by_accelerate, refuse_dispatched_handles
from memgraft.data.hot import HotRows
from memgraft.data.pipeline import Item, Stager, memory_of, start
from memgraft.data.ring import StagingRing
from memgraft.errors import ConfigError

BatchT = TypeVar("BatchT")

_ASKED_BY_PREPARE = "_is_accelerate_prepared"
"""What accelerate's ``prepare`` asks a loader before it makes one of its own out of the loader's parts."""


@dataclass(kw_only=True)
class PrefetchFacts:
    """Telemetry of a `prefetch` loader, summed over its iterators.

    Attributes:
        num_batches: batches given to the trainer.
        num_positions: positions in them.
        num_hits: positions with a row.
        num_unique: distinct rows staged.
        num_bytes: bytes of values staged.
        num_hot_rows: distinct rows of batches that were on the device already.
        hot_bytes: what such rows take there for this process; 0 where another process holds them.
        num_cold_rows: rows read from the device.
        cold_reader: what reads them (`Bank.cold_reader`).
        stage_seconds: time spent staging, in the background.
        wait_seconds: time the trainer waited for a batch.
    """

    num_batches: int = 0
    num_positions: int = 0
    num_hits: int = 0
    num_unique: int = 0
    num_bytes: int = 0
    num_hot_rows: int = 0
    hot_bytes: int = 0
    num_cold_rows: int = 0
    cold_reader: str = ""
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
            self.num_hot_rows += facts.num_hot_rows
            self.num_cold_rows += facts.num_cold_rows
            self.cold_reader = facts.cold_reader
            self.stage_seconds += facts.seconds


def prefetch(
    loader: Iterable[BatchT],
    bank: Memory | Where,
    *,
    depth: int = 2,
    device: torch.device | str | None = None,
    threads: int | None = None,
    ring: StagingRing | None = None,
    hot_rows: int | HotRows | None = None,
) -> "PrefetchLoader[BatchT]":
    """``loader`` with the memory of its batches drawn and staged ahead by two background threads.

    A loader that accelerate has prepared keeps its own order of things (device placement, end-of-epoch flags,
    collectives) in the caller's thread: staging goes underneath it. With ``dispatch_batches=True``, where only one
    process reads, batches are staged as they arrive, without overlap.

    Args:
        loader: gives mappings with ``"memgraft"``, as `GraftCollator` makes them in either mode.
        bank: the bank of the collator, or its path.
        depth: staged batches to hold ready.
        device: copy the memory there on a stream of its own; by default the device of a prepared loader, else none.
        threads: threads of the gather.
        ring: staging memory to share; by default one of this loader.
        hot_rows: how many of the most frequent rows to keep on the device, in storage dtype, or such rows that another
            loader, or another process on the device, keeps already. Batches read these there, and only the others cross
            the bus; values are the same.

    Raises:
        ConfigError: ``depth`` below 1, ``hot_rows`` without a device or of another one, or ``dispatch_batches=True``
            around a collator in handle mode; later, where the loader that this returns is prepared by accelerate:
            prepare first, then prefetch.
    """
    return PrefetchLoader(
        loader, open_memory(bank), depth=depth, device=device, threads=threads, ring=ring, hot_rows=hot_rows
    )


class PrefetchLoader(Generic[BatchT]):
    """See `prefetch`; passes on whatever else the loader offers (``dataset``, ``set_epoch``).

    A loader's ``state_dict`` (torchdata's StatefulDataLoader) is that of the last batch given out: batches that were
    drawn ahead are seen again by who resumes from it.
    """

    def __init__(
        self,
        loader: Iterable[BatchT],
        bank: Memory,
        *,
        depth: int,
        device: torch.device | str | None,
        threads: int | None,
        ring: StagingRing | None,
        hot_rows: int | HotRows | None = None,
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
        self._reached: Any = None
        self._prepared = prepared_by_accelerate(loader)
        refuse_dispatched_handles(loader)
        place = getattr(loader, "device", None) if self.device is None and self._prepared else self.device
        self.hot = _hot_rows(hot_rows, self.bank, place)
        self.facts.hot_bytes = 0 if self.hot is None or self.hot.shared else self.hot.num_bytes
        if self._prepared == SHARD:
            self._stage_underneath(cast(Any, loader))

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """The loader's class: accelerate asks it whether this is a loader, and lets others pass unsharded."""
        loader = self.__dict__.get("loader")
        return loader.__class__ if isinstance(loader, DataLoader) else PrefetchLoader

    def _stage_underneath(self, prepared: Any) -> None:
        """Puts staging between a prepared loader and the torch loader that it reads; once, however often called."""
        inner = prepared.base_dataloader
        if not isinstance(inner, PrefetchLoader):
            device = prepared.device if self.device is None else self.device
            inner = PrefetchLoader(
                inner,
                self.bank,
                depth=self.depth,
                device=device,
                threads=self.threads,
                ring=self.ring,
                hot_rows=self.hot,
            )
            prepared.base_dataloader = inner
        self.facts, self.ring = inner.facts, inner.ring

    def __iter__(self) -> Iterator[BatchT]:
        if self._prepared == SHARD:
            return iter(self.loader)
        if self._prepared == DISPATCHER:
            return self._stage_on_arrival()
        if self._reached is None and hasattr(self.loader, "state_dict"):
            # From here on the loader runs ahead of the trainer.
            self._reached = self.loader.state_dict()
        return _PrefetchIterator(self)

    @property
    def stager(self) -> Stager:
        """What staging a batch of this loader takes."""
        return Stager(bank=self.bank, ring=self.ring, threads=self.threads, device=self.device, hot=self.hot)

    def _stage_on_arrival(self) -> Iterator[BatchT]:
        for batch in self.loader:
            started = time.perf_counter()
            item = self.stager.stage(Item(batch=cast(Any, batch), memory=memory_of(batch), state=None), None)
            self.facts.add(item.memory, time.perf_counter() - started)
            yield cast(BatchT, item.batch)

    def __len__(self) -> int:
        return len(cast(Any, self.loader))

    def __repr__(self) -> str:
        """The loader's class, the bank, and how far and where it stages ahead."""
        place = "" if self.device is None else f", device={str(self.device)!r}"
        return f"PrefetchLoader({type(self.loader).__name__}, {self.bank!r}, depth={self.depth}{place})"

    def __getattr__(self, name: str) -> Any:
        if name in ("loader", "_prepared"):
            raise AttributeError(name)
        if name == _ASKED_BY_PREPARE and self._prepared is None and isinstance(self.loader, DataLoader):
            raise ConfigError(
                "accelerator.prepare(prefetch(loader, bank)) would lose the prefetching, or every process would read "
                "everything: turn it round, prefetch(accelerator.prepare(loader), bank)"
            )
        found = getattr(self.loader, name)
        if self._prepared is None and name in ("state_dict", "load_state_dict"):
            return self._state_dict if name == "state_dict" else self._load_state_dict
        return found

    def _state_dict(self) -> Any:
        """The loader's state after the last batch that the trainer got, whatever was drawn ahead of it."""
        return cast(Any, self.loader).state_dict() if self._reached is None else self._reached

    def _load_state_dict(self, state: Any) -> None:
        self._reached = None
        cast(Any, self.loader).load_state_dict(state)


def _hot_rows(asked: int | HotRows | None, bank: Memory, device: torch.device | None) -> HotRows | None:
    if asked is None or asked == 0:
        return None
    if device is None:
        raise ConfigError("hot_rows: expected device= too, the one that keeps them, found none")
    if isinstance(asked, HotRows):
        if asked.fingerprint != bank.fingerprint:
            raise ConfigError(f"hot_rows: rows of bank {asked.fingerprint}, expected {bank.fingerprint}")
        if asked.device.type != device.type or (device.index is not None and asked.device != device):
            raise ConfigError(f"hot_rows: rows on {asked.device}, expected {device}")
        return asked
    return HotRows.load(bank, asked, device)


class _PrefetchIterator(Iterator[BatchT]):
    """One pass. Dropping it, or `close`, ends its threads and frees its slots."""

    def __init__(self, owner: PrefetchLoader[BatchT]) -> None:
        self._owner = owner
        self._queue, close, self._threads = start(owner.loader, owner.stager, owner.depth)
        self._finalizer = weakref.finalize(self, close)
        self._finalizer.atexit = False

    @property
    def num_staged(self) -> int:
        """Batches that are ready ahead: drawn, and their values here."""
        return self._queue.num_staged

    def __iter__(self) -> "_PrefetchIterator[BatchT]":
        return self

    def __next__(self) -> BatchT:
        started = time.perf_counter()
        item = self._queue.get()
        if item is None:
            if self._finalizer.alive:
                self._owner._reached = self._queue.last_state
            self.close()
            raise StopIteration
        if item.event is not None:
            stream = torch.cuda.current_stream(self._owner.device)
            stream.wait_event(item.event)
            for tensor in item.memory.tensors():
                # Made on the copy stream: its memory must not be given to that stream again while this one reads it.
                tensor.record_stream(stream)
        self._owner._reached = item.state
        self._owner.facts.add(item.memory, time.perf_counter() - started)
        return cast(BatchT, item.batch)

    def close(self) -> None:
        """Ends the threads, after the batches they are at."""
        self._finalizer()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

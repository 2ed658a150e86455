"""Harvesting on a Ray cluster: a pool of donors computes chunks of rows, write tasks put them into one bank."""

import functools
import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Datasink

from memgraft.bank import Bank, BankWriter
from memgraft.errors import ArgumentError, MemgraftError
from memgraft.harvesting.job import Job, partial_of, prepare
from memgraft.harvesting.packing import IntArray
from memgraft.harvesting.run import harvest as harvest_alone
from memgraft.harvesting.selecting import kept_path
from memgraft.keyset import KeySet

PathLike = str | os.PathLike[str]

_WRITERS = 1 << 31
"""Attempts of write tasks are ranks of a world of so many, each by a number drawn anew: one that hangs hinders none."""
_WRITE_TASKS, _MOST_BLOCKS = 1024, 4096


def harvest(
    keys: PathLike | KeySet,
    *,
    out: PathLike,
    actors: int | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
    **settings: Any,
) -> Bank:
    """Harvests on the running Ray cluster: the bank that one process makes, byte for byte on processors of one kind.

    An actor or a task that dies is replaced, and its chunk computed again; what was written stays. Call it again with
    the same settings after the driver has died: rows that are there are not computed again.

    Args:
        keys: the key set's file, where every worker can read it.
        out: the bank directory to be, where every worker and the caller can write.
        actors: donors that run at once; default: as many as the cluster has GPUs, or CPUs, for.
        num_cpus: CPUs of an actor.
        num_gpus: GPUs of an actor.
        settings: as for `memgraft.harvest`: ``recipient_tokenizer`` and ``donor`` (paths that every worker can read),
            ``taps`` …, but for ``rank``, ``world_size``, ``resume``, ``progress`` and ``note``.

    Raises:
        ArgumentError: Ray is not initialised, or options out of range.
        MemgraftError: as for `memgraft.harvest`.
    """
    if not ray.is_initialized():
        raise ArgumentError("ray: expected a running cluster, found none; call ray.init() first")
    if taken := sorted(settings.keys() & {"rank", "world_size", "resume", "progress", "note"}):
        raise ArgumentError(f"{', '.join(taken)}: not for a harvest on Ray; leave it out")
    source = keys if isinstance(keys, KeySet) else KeySet.open(keys)
    if source.path is None:
        raise ArgumentError("keys: expected a key set in a file, which workers can read; save() it and open() the file")
    path, target = str(Path(source.path).absolute()), Path(out).absolute()
    needs = {"num_cpus": num_cpus, "num_gpus": num_gpus}
    if actors is None:
        total: dict[str, float] = ray.cluster_resources()
        room = [total.get(name, 0.0) // each for name, each in (("GPU", num_gpus), ("CPU", num_cpus)) if each > 0]
        actors = max(int(min(room, default=1)), 1)
    if actors < 1:
        raise ArgumentError(f"actors: expected at least 1, found {actors}")
    try:
        # The order stays in Ray's store, which tasks of one host share; this process owns it.
        facts, order = ray.remote(num_returns=2, **needs)(_begin).remote(path, target, settings)
        begun: _Begun | None = ray.get(facts)
        if begun is not None and begun.chunks:
            number = len(begun.chunks)
            chunks = pa.table(
                {"start": [start for start, _ in begun.chunks], "stop": [stop for _, stop in begun.chunks]}
            )
            values = (
                ray.data.from_arrow(chunks)
                .repartition(min(number, _MOST_BLOCKS))
                .map_batches(
                    _Donor,
                    fn_constructor_kwargs={"keys": path, "out": target, "settings": settings},
                    batch_size=1,
                    batch_format="pyarrow",
                    compute=ActorPoolStrategy(size=min(actors, number)),
                    **needs,
                )
            )
            values.write_datasink(_RowRanges(begun, order))
        # Seals, and computes what a lost task may have left.
        ray.get(ray.remote(**needs)(_end).remote(path, target, settings))
    except Exception as error:
        own = _own_error(error)
        if own is None:
            raise
        raise own from error
    return Bank.open(target)


def _own_error(error: BaseException | None) -> MemgraftError | None:
    """The worker's own error inside what Ray wraps it into, so that a caller meets the same types as without Ray."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        cause = getattr(error, "cause", None) or error.__cause__
        if isinstance(cause, MemgraftError):
            return cause
        seen.add(id(error))
        error = cause
    return None


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """What write tasks need of a harvest that is laid out."""

    out: Path
    keys: str
    facts: dict[str, Any]
    chunks: list[tuple[int, int]]
    """Chunks with rows that are not written yet."""


def _begin(keys: str, out: Path, settings: dict[str, Any]) -> tuple[_Begun | None, IntArray | None]:
    """Judges the keys and lays the bank out, once; also the order of rows. None where the bank is finished."""
    job = prepare(KeySet.open(keys), out=out, **_for_job(settings))
    if isinstance(job, Bank):
        return None, None
    with _writer(job.writer) as writer:
        chunks = job.chunks(writer)
    begun = _Begun(out=out, keys=str(kept_path(partial_of(out))), facts=job.bank_facts, chunks=chunks)
    return begun, np.asarray(job.reader.order)


def _writer(make: Callable[..., BankWriter]) -> BankWriter:
    return make(rank=random.SystemRandom().randrange(1, _WRITERS), world_size=_WRITERS)


def _end(keys: str, out: Path, settings: dict[str, Any]) -> None:
    harvest_alone(KeySet.open(keys), out=out, rank=0, world_size=_WRITERS, **settings)


def _for_job(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "keep_tokenizer"}


class _Donor:
    """An actor: a donor that is opened once and computes chunks."""

    def __init__(self, keys: str, out: Path, settings: dict[str, Any]) -> None:
        job = prepare(KeySet.open(keys), out=out, **_for_job(settings))
        if isinstance(job, Bank):
            raise ArgumentError(f"{out}: another process has finished this bank; open it")
        self._job: Job = job

    def __call__(self, chunks: pa.Table) -> pa.Table:
        """Values of the chunks as bytes beside their bounds."""
        starts, stops = chunks["start"].to_pylist(), chunks["stop"].to_pylist()
        values = [self._job.values(start, stop) for start, stop in zip(starts, stops, strict=True)]
        return pa.table(
            {
                "start": pa.array(starts, pa.int64()),
                "type": [each.dtype.str for each in values],
                "values": pa.array([np.ascontiguousarray(each).tobytes() for each in values], pa.large_binary()),
            }
        )


class _RowRanges(Datasink[int]):  # type: ignore[misc]
    """Writes chunks into the unfinished bank, by the locks and logs that ranks use."""

    def __init__(self, begun: _Begun, order: Any) -> None:
        self._begun, self._order = begun, order

    @property
    def min_rows_per_write(self) -> int:
        """A write task opens the bank; few of them share many chunks."""
        return -(-len(self._begun.chunks) // _WRITE_TASKS)

    def write(self, blocks: Iterable[Any], ctx: Any) -> int:
        """Writes what is not there yet; returns the rows."""
        begun, number = self._begun, 0
        shape = (-1, len(begun.facts["taps"]), begun.facts["value_dim"])
        keys, order = KeySet.open(begun.keys), ray.get(self._order)
        with _writer(functools.partial(BankWriter, begun.out, keys=keys, order=order, **begun.facts)) as writer:
            for block in blocks:
                starts, kinds = block["start"].to_pylist(), block["type"].to_pylist()
                for start, kind, stored in zip(starts, kinds, block["values"], strict=True):
                    values = np.frombuffer(stored.as_buffer(), np.dtype(kind)).reshape(shape)
                    # Where another attempt of this task is at it or was, the rows are the same.
                    if writer.claim(start, start + len(values)):
                        writer.write(start, values)
                        writer.give_back(start)
                        number += len(values)
        return number

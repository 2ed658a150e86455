"""Harvesting on a Ray cluster: a pool of donors computes chunks of rows, write tasks put them into one bank.

What needs torch is imported where the donor runs: the driver and the write tasks do without.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from memgraft.bank import Bank
from memgraft.corpus import Corpus
from memgraft.errors import ArgumentError, MemgraftError
from memgraft.integrations.ray.writing import WRITERS, Begun, RowRanges, any_rank
from memgraft.keyset import KeySet

if TYPE_CHECKING:
    from memgraft.harvesting.packing import IntArray

PathLike = str | os.PathLike[str]

_MOST_BLOCKS = 4096
_SAME = "same as"
"""Where a corpus's source says which fingerprint it must have."""
_KEYS_FOR_A_JUDGE = 1 << 17
"""Keys that are worth one more task that opens the donor and judges: seconds of work."""


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
            ``taps`` …, but for ``rank``, ``world_size``, ``resume``, ``progress`` and ``note``. ``corpus`` is a path
            that every worker can read, several, arguments of `Corpus.open` as a mapping, or a `Corpus` of such files.

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
    settings = {**settings, "corpus": _source_of(settings.get("corpus"))}
    path, target = str(Path(source.path).absolute()), Path(out).absolute()
    needs = {"num_cpus": num_cpus, "num_gpus": num_gpus}
    if actors is None:
        total: dict[str, float] = ray.cluster_resources()
        room = [total.get(name, 0.0) // each for name, each in (("GPU", num_gpus), ("CPU", num_cpus)) if each > 0]
        actors = max(int(min(room, default=1)), 1)
    if actors < 1:
        raise ArgumentError(f"actors: expected at least 1, found {actors}")
    try:
        # Large sets are judged by several tasks. The order stays in Ray's store, which tasks of one host share; this
        # process owns it.
        judges = min(actors, 1 + len(source) // _KEYS_FOR_A_JUDGE)
        task = ray.remote(num_returns=2, **needs)(_begin)
        begin = [task.remote(path, target, settings, (number, judges)) for number in range(judges)]
        order = begin[0][1]
        begun: Begun | None = ray.get([facts for facts, _ in begin])[0]
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
            values.write_datasink(RowRanges(begun, order))
        # Seals, and computes what a lost task may have left.
        ray.get(ray.remote(**needs)(_end).remote(path, target, settings))
    except Exception as error:
        own = _own_error(error)
        if own is None:
            raise
        raise own from error
    from memgraft.harvesting.reading import warn_of_health

    bank = Bank.open(target)
    warn_of_health(bank)
    return bank


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


def _begin(
    keys: str, out: Path, settings: dict[str, Any], share: tuple[int, int]
) -> "tuple[Begun | None, IntArray | None]":
    """Judges the keys, with others, and lays the bank out, once; also the order of rows. None where it is finished."""
    from memgraft.harvesting.job import partial_of, prepare
    from memgraft.harvesting.selecting import kept_path

    job = prepare(KeySet.open(keys), out=out, share=share, **_for_job(settings))
    if isinstance(job, Bank) or share[0]:
        return None, None
    with any_rank(job.writer) as writer:
        chunks = job.chunks(writer)
    begun = Begun(out=out, keys=str(kept_path(partial_of(out))), facts=job.bank_facts, chunks=chunks)
    return begun, np.asarray(job.reader.order)


def _end(keys: str, out: Path, settings: dict[str, Any]) -> None:
    from memgraft.harvesting.run import harvest as harvest_alone

    harvest_alone(KeySet.open(keys), out=out, rank=0, world_size=WRITERS, **_for_harvest(settings))


def _source_of(corpus: Any) -> dict[str, Any] | None:
    """What a worker opens ``corpus`` with; a fingerprint where it must be the same as here."""
    if corpus is None or isinstance(corpus, dict):
        return corpus
    if isinstance(corpus, Corpus):
        files = [str(path.absolute()) for path in corpus.paths]
        return {"path": files, "eos_id": corpus.eos_id, _SAME: corpus.fingerprint}
    paths = [corpus] if isinstance(corpus, (str, os.PathLike)) else list(corpus)
    return {"path": [str(Path(path).absolute()) for path in paths]}


def _for_harvest(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with the corpus opened.

    Raises:
        ArgumentError: the files alone do not make the corpus that was given.
    """
    source = settings["corpus"]
    if source is None:
        return settings
    corpus = Corpus.open(**{name: value for name, value in source.items() if name != _SAME})
    if source.get(_SAME, corpus.fingerprint) != corpus.fingerprint:
        raise ArgumentError(
            f"corpus: expected one that its files make again, found a part of them, or options; give the whole, or the "
            f"arguments of Corpus.open: corpus={{'path': {str(source['path'][0])!r}, …}}"
        )
    return {**settings, "corpus": corpus}


def _for_job(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in _for_harvest(settings).items() if name != "keep_tokenizer"}


class _Donor:
    """An actor: a donor that is opened once and computes chunks."""

    def __init__(self, keys: str, out: Path, settings: dict[str, Any]) -> None:
        from memgraft.harvesting.job import prepare

        job = prepare(KeySet.open(keys), out=out, **_for_job(settings))
        if isinstance(job, Bank):
            raise ArgumentError(f"{out}: another process has finished this bank; open it")
        self._job = job

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

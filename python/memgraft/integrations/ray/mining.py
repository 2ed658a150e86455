"""Mining on a Ray cluster: a task for each part, one selection at the end."""

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from memgraft.corpus import Corpus
from memgraft.errors import ArgumentError
from memgraft.keyset import KeySet
from memgraft.mining import mine_part, options, select_parts

PathLike = str | os.PathLike[str]


def mine(
    paths: PathLike | Sequence[PathLike],
    folder: PathLike,
    *,
    orders: Sequence[int] = (2, 3, 4),
    world: int | None = None,
    open_options: dict[str, Any] | None = None,
    vocab_size: int | None = None,
    reserved: Sequence[int] = (),
    memory: int | str = "4GiB",
    cpus: int = 1,
    retries: int = 3,
    **selection: Any,
) -> KeySet:
    """Mines a corpus on the workers of the running Ray cluster: the key set that one process mines.

    A worker that dies is replaced, and its part goes on from its last finished block. Call it again with the same
    folder after the driver has died: parts that are there are not mined again.

    Args:
        paths: the corpus, where every worker can read it.
        folder: for the parts, where every worker and the caller can write.
        orders: lengths of keys.
        world: parts; default: the cluster's CPUs over ``cpus``.
        open_options: for :meth:`Corpus.open`, such as ``eos_id``.
        vocab_size: as for :func:`memgraft.mine`.
        reserved: as for :func:`memgraft.mine`.
        memory: working memory of a worker.
        cpus: threads of a worker.
        retries: how often a part is begun again after its worker has died.
        selection: which keys, as for :func:`memgraft.mining.select_parts`: ``budget``, ``min_count``, ``policy`` …

    Raises:
        ArgumentError: Ray is not initialised, or options out of range: before anything is mined.
        TypeError: an option that ``select_parts`` does not have.
        MemgraftError: as :func:`memgraft.mining.mine_part` and :func:`memgraft.mining.select_parts`.
    """
    orders, target = tuple(orders), Path(folder).absolute()
    if "require" in selection and not isinstance(selection["require"], KeySet):
        selection["require"] = list(selection["require"])
    _check_selection(orders, target, selection)
    if not ray.is_initialized():
        raise ArgumentError("ray: expected a running cluster, found none; call ray.init() first")
    listed = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    sources = [os.fspath(Path(path).absolute()) for path in listed]
    target.mkdir(parents=True, exist_ok=True)
    if world is None:
        resources: dict[str, float] = ray.cluster_resources()
        world = max(int(resources.get("CPU", 1)) // cpus, 1)
    given: dict[str, Any] = {
        "orders": orders,
        "vocab_size": vocab_size,
        "reserved": tuple(reserved),
        "memory": memory,
        "threads": cpus,
        "world": world,
    }
    # The number of parts is in their names: with another number they are others.
    outs = [os.fspath(target / f"part-{rank:05d}-of-{world:05d}.mgr") for rank in range(world)]
    task = ray.remote(num_cpus=cpus, max_retries=retries)(_part)
    waiting = [task.remote(sources, open_options or {}, out, rank, given) for rank, out in enumerate(outs)]
    try:
        parts = ray.get(waiting)
    except ray.exceptions.RayTaskError as error:
        # The worker's own error, so that a caller meets the same types as without Ray.
        raise error.cause from error
    return select_parts(parts, temporary=target, **selection)


def _check_selection(orders: Sequence[int], target: Path, selection: Mapping[str, Any]) -> None:
    """Refuses what the selection would refuse once every part is mined."""
    given = inspect.signature(select_parts).bind((), orders, temporary=target, **selection)
    given.apply_defaults()
    for check in (options.choice, options.means):
        names = inspect.signature(check).parameters.keys() & given.arguments.keys()
        check(**{name: given.arguments[name] for name in names})


def _part(sources: list[str], open_options: dict[str, Any], out: str, rank: int, given: dict[str, Any]) -> str:
    corpus = Corpus.open(sources if len(sources) > 1 else sources[0], **open_options)
    return os.fspath(mine_part(corpus, out, rank=rank, **given).path)

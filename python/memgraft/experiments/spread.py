"""Arms and seeds of a comparison over several processes; each has its share of the processors and one GPU."""

import dataclasses
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memgraft.experiments.compare import Comparison
    from memgraft.experiments.train import Progress


def spread(
    comparison: "Comparison", processes: int, *, seconds: float | None = None, progress: "Progress | None" = None
) -> None:
    """Train every arm of every seed that is not finished, ``processes`` at a time; results are left in its folder.

    Args:
        comparison: has a number of steps, so that no process measures speeds of its own.
        processes: arms that train at the same moment.
        seconds: no arm is started later than this.
        progress: called as ``progress("train arms", done, total)``.
    """
    context = multiprocessing.get_context("spawn")
    parts = [
        dataclasses.replace(comparison, arms=(arm,), seeds=(seed,))
        for seed in comparison.seeds
        for arm in comparison.arms
    ]
    # Monotonic clocks of two processes have no common zero on every system; the wall clock has.
    until = None if seconds is None else time.time() + seconds
    with ProcessPoolExecutor(
        min(processes, len(parts)), context, _take_share, (context.Value("i", 0), processes)
    ) as pool:
        jobs = [pool.submit(_train, part, part.seeds[0] == comparison.seeds[0], until) for part in parts]
        try:
            for done, job in enumerate(as_completed(jobs)):
                job.result()
                if progress is not None:
                    progress("train arms", done + 1, len(jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _take_share(counter: Any, processes: int) -> None:
    """Keep this process to its part of the processors and to one GPU."""
    with counter.get_lock():
        number = counter.value
        counter.value += 1
    import torch

    if hasattr(os, "sched_setaffinity"):
        usable = sorted(os.sched_getaffinity(0))
        share = max(1, len(usable) // processes)
        first = number * share % len(usable)
        os.sched_setaffinity(0, usable[first : first + share])
        torch.set_num_threads(share)
    if torch.cuda.device_count() > 1:
        named = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
        devices = named.split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]


def _train(comparison: "Comparison", keep: bool, until: float | None) -> None:
    seconds = None if until is None else until - time.time()
    if seconds is None or seconds > 0:
        comparison.run_here(seconds=seconds, keep=keep, write=False)

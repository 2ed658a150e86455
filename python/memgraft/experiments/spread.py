"""Jobs over several processes; each process has its share of the processors and one GPU."""

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, Protocol

from memgraft.progress import Progress
from memgraft.system import usable_processors


class SpreadJob(Protocol):
    """Work that another process can be sent."""

    def __call__(self, *, seconds: float | None) -> object:
        """Does it; ``seconds``: begin nothing later than this."""


def spread(
    jobs: Sequence[SpreadJob],
    processes: int,
    *,
    seconds: float | None = None,
    after: Callable[[], object] | None = None,
    progress: Progress | None = None,
) -> None:
    """Does ``jobs``, ``processes`` at a time; what they return is dropped.

    Args:
        jobs: each leaves its results in files.
        processes: jobs that run at the same moment.
        seconds: no job is started later than this.
        after: called in this process after each job.
        progress: called as ``progress("train arms", done, total)``.
    """
    context = multiprocessing.get_context("spawn")
    # Monotonic clocks of two processes have no common zero on every system; the wall clock has.
    until = None if seconds is None else time.time() + seconds
    with ProcessPoolExecutor(
        min(processes, len(jobs)), context, _take_share, (context.Value("i", 0), processes)
    ) as pool:
        running = [pool.submit(_do, job, until) for job in jobs]
        try:
            for done, job in enumerate(as_completed(running)):
                job.result()
                if after is not None:
                    after()
                if progress is not None:
                    progress("train arms", done + 1, len(jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _take_share(counter: Any, processes: int) -> None:
    """Keeps this process to its part of the processors and to one GPU."""
    with counter.get_lock():
        number = counter.value
        counter.value += 1
    import torch

    if (usable := usable_processors()) is not None:
        share = max(1, len(usable) // processes)
        first = number * share % len(usable)
        os.sched_setaffinity(0, usable[first : first + share])
        torch.set_num_threads(share)
    if torch.cuda.device_count() > 1:
        named = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
        devices = named.split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]


def _do(job: SpreadJob, until: float | None) -> None:
    seconds = None if until is None else until - time.time()
    if seconds is None or seconds > 0:
        job(seconds=seconds)

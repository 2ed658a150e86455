"""Contenders timed in turn, round by round: what counts is their ratios within one run."""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


class WrongAnswer(Exception):
    """A contender gave another answer than the reference: nothing of its group is reported."""


@dataclass(frozen=True)
class Contender:
    """One way to do the same work; ``units`` of work a run."""

    name: str
    units: float
    run: Callable[[], Any]
    before: Callable[[], Any] | None = None
    """Called before each run, untimed."""


def contest(contenders: Sequence[Contender], rounds: int, *, warm: bool = True) -> list[dict[str, Any]]:
    """Time everyone ``rounds`` times, interleaved; the first contender is what the ratios refer to.

    Returns:
        Per contender: name, ns (median nanoseconds per unit), ratio (median over rounds of own time per unit
        divided by the first one's in the same round), rounds (raw nanoseconds per unit).
    """
    times: list[list[float]] = [[] for _ in contenders]
    gc.collect()
    for turn in range(-1 if warm else 0, rounds):
        for i in range(len(contenders)):
            at = (max(turn, 0) + i) % len(contenders)
            one = contenders[at]
            if one.before is not None:
                one.before()
            began = time.perf_counter_ns()
            one.run()
            taken = time.perf_counter_ns() - began
            if turn >= 0:
                times[at].append(taken / one.units)
    return [
        {
            "name": one.name,
            "ns": statistics.median(own),
            "ratio": statistics.median(a / b for a, b in zip(own, times[0], strict=True)),
            "rounds": own,
        }
        for one, own in zip(contenders, times, strict=True)
    ]


def check_equal(name: str, expected: np.ndarray, found: np.ndarray) -> None:
    """Raises WrongAnswer that names the first difference."""
    if expected.shape != found.shape:
        raise WrongAnswer(f"{name}: shape {found.shape}, the reference has {expected.shape}")
    if not np.array_equal(expected, found):
        at = tuple(int(axis[0]) for axis in np.nonzero(np.atleast_1d(expected != found)))
        raise WrongAnswer(
            f"{name}: {np.atleast_1d(found)[at]} at {at}, the reference says {np.atleast_1d(expected)[at]}"
        )

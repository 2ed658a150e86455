"""Differences between arms: over seeds where there are several, over held-out windows where there is one."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from memgraft.errors import ArgumentError

# Two-sided 95 % points of Student's t by degrees of freedom; beyond the table the normal's.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_RESAMPLES = 4000


def paired_interval(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Mean of ``first - second`` with a 95 % t interval over the pairs.

    Raises:
        ArgumentError: lengths differ, or there are fewer than two pairs.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ArgumentError(f"paired interval: expected two or more pairs, found {len(first)} and {len(second)}")
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    count = len(differences)
    point = _T95[count - 2] if count - 2 < len(_T95) else 1.96
    half = point * float(differences.std(ddof=1)) / math.sqrt(count)
    mean = float(differences.mean())
    return {"mean": mean, "low": mean - half, "high": mean + half, "pairs": count}


def bootstrap_interval(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> dict[str, Any]:
    """Mean of ``first - second`` with a 95 % bootstrap interval over the pairs; for many pairs, such as windows.

    Raises:
        ArgumentError: lengths differ, or there are fewer than two pairs.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ArgumentError(f"bootstrap interval: expected two or more pairs, found {len(first)} and {len(second)}")
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = [float(rng.choice(differences, size=len(differences)).mean()) for _ in range(_RESAMPLES)]
    low, high = np.quantile(means, (0.025, 0.975))
    return {"mean": float(differences.mean()), "low": float(low), "high": float(high), "pairs": len(differences)}


def compare(results: Sequence[Mapping[str, Any]], first: str, second: str) -> dict[str, Any] | None:
    """The held-out loss of arm ``first`` minus arm ``second``; None when they share no seed.

    With two seeds or more the interval is over seeds. With one it is over held-out windows, which says nothing about
    another seed; ``over`` tells which it is.
    """
    by_arm = {
        arm: {result["seed"]: result["held_out"] for result in results if result["arm"] == arm}
        for arm in (first, second)
    }
    seeds = sorted(set(by_arm[first]) & set(by_arm[second]))
    if not seeds:
        return None
    pairs = [(by_arm[first][seed], by_arm[second][seed]) for seed in seeds]
    parts = {}
    for part in ("overall", "hit", "miss"):
        both = [(one[part], other[part]) for one, other in pairs if one[part] is not None and other[part] is not None]
        parts[part] = float(np.mean([one - other for one, other in both])) if both else None
    if len(seeds) >= 2:
        over, interval = (
            "seeds",
            paired_interval([one["overall"] for one, _ in pairs], [other["overall"] for _, other in pairs]),
        )
    else:
        over, interval = (
            "held-out windows of one seed",
            bootstrap_interval(pairs[0][0]["per_window"], pairs[0][1]["per_window"]),
        )
    return {"first": first, "second": second, "seeds": seeds, "difference": parts, "over": over, "interval": interval}

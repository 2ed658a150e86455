"""The tables of README.md, from results.json: probe beside graft losses, differences with intervals, correlation.

python docs/study/probe/tables.py docs/study/probe/results.json
"""

import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
"""97.5 % points of Student's t by degrees of freedom."""
REFERENCE = "alone-8"


def ranks(values: list[float]) -> list[float]:
    """The rank of each value, equal ones their mean."""
    return [sum(other < value for other in values) + (values.count(value) - 1) / 2 for value in values]


def spearman(first: list[float], second: list[float]) -> float:
    """Spearman's rank correlation."""
    one, other = ranks(first), ranks(second)
    middle = (len(first) - 1) / 2
    shared = sum((a - middle) * (b - middle) for a, b in zip(one, other, strict=True))
    sizes = [sum((a - middle) ** 2 for a in each) for each in (one, other)]
    return float(shared / (sizes[0] * sizes[1]) ** 0.5)


def chance(first: list[float], second: list[float]) -> float:
    """Share of all orders of the second that correlate as much or more: the p-value, one-sided, exact."""
    found = spearman(first, second)
    orders = list(itertools.permutations(second))
    return sum(spearman(first, list(order)) >= found - 1e-12 for order in orders) / len(orders)


def interval(differences: list[float]) -> tuple[float, float, float]:
    """Mean and 95 % of it by Student's t."""
    number, mean = len(differences), sum(differences) / len(differences)
    if number < 2:
        return mean, math.nan, math.nan
    spread = math.sqrt(sum((each - mean) ** 2 for each in differences) / (number - 1) / number)
    return mean, mean - T[number - 1] * spread, mean + T[number - 1] * spread


def main() -> None:
    """Prints the tables as Markdown."""
    facts: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    probe, graft = facts["probe"], {name: runs for name, runs in facts["graft"].items() if name in facts["probe"]}
    write = sys.stdout.write
    write(
        "| bank | probe | probe, keys/s | graft, by seed | graft | minus `alone-8`, 95 % |\n|---|---|---|---|---|---|\n"
    )
    for name in sorted(probe, key=lambda name: float(probe[name]["loss"])):
        runs, row = graft.get(name, {}), probe[name]
        shared = sorted(runs.keys() & graft.get(REFERENCE, {}).keys())
        mean, low, high = (
            interval([runs[seed] - graft[REFERENCE][seed] for seed in shared]) if shared else (math.nan,) * 3
        )
        by_seed = " ".join(f"{runs[seed]:.4f}" for seed in sorted(runs))
        own = f"{sum(runs.values()) / len(runs):.4f}" if runs else "-"
        against = f"{mean:+.4f} ({low:+.4f} to {high:+.4f})" if len(shared) > 1 else f"{mean:+.4f}" if shared else ""
        against = "" if name == REFERENCE else against
        write(f"| {name} | {row['loss']:.4f} | {row['keys_per_second']:,.0f} | {by_seed} | {own} | {against} |\n")
    write("\n| beside it | probe |\n|---|---|\n")
    # Every reading has the same baselines, but for the shuffled rows of its own best.
    beside = {name.split(" ((")[0]: loss for name, loss in facts["baselines"].items() if "shuffled" not in name}
    for name, loss in sorted(beside.items(), key=lambda item: float(item[1])):
        write(f"| {name} | {loss:.4f} |\n")
    seeds = sorted({seed for runs in graft.values() for seed in runs})
    for seed in [*seeds, None]:
        names = [name for name, runs in graft.items() if (seed in runs if seed else runs.keys() == set(seeds))]
        if len(names) < 3:
            continue
        first = [float(probe[name]["loss"]) for name in names]
        second = [graft[name][seed] if seed else sum(graft[name].values()) / len(seeds) for name in names]
        what = f"seed {seed}" if seed else "mean of all seeds"
        p = f", one-sided p {chance(first, second):.4f}" if len(names) < 10 else ""
        write(f"\nSpearman, {what}: {spearman(first, second):.3f} over {len(names)} banks{p}")
    write("\n")


if __name__ == "__main__":
    main()

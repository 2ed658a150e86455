"""Derives numbers of the page again from raw results, with nothing of memgraft; ends with an error where one differs.

python docs/study/main/check.py docs/study/main/results-cpu-200-steps.json
"""

import json
import math
import statistics
import sys
from pathlib import Path

T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Two-sided 95 % points of Student's t by the number of seeds."""
WINDOWS_ROUND = 1e-6
"""Losses of windows are stored with six digits."""


def close(what: str, found: float, recorded: float, within: float = 1e-9) -> None:
    """Print both; end where they differ."""
    sys.stdout.write(f"{what}: {found:+.6f}, recorded {recorded:+.6f}\n")
    if abs(found - recorded) > within:
        sys.exit(f"{what}: differs")


def main() -> None:
    """Three numbers: a mean over windows, a mean over orders, paired differences with their intervals."""
    results = json.loads(Path(sys.argv[1]).read_text())
    for arm in results["arms"]:
        held, name = arm["held_out"], f"{arm['arm']}, seed {arm['seed']}"
        close(f"{name}, mean over windows", statistics.fmean(held["per_window"]), held["overall"], WINDOWS_ROUND)
        orders = [entry for entry in held["by_order"] if entry["tokens"]]
        total = sum(entry["tokens"] for entry in orders)
        close(f"{name}, by order", sum(e["loss"] * e["tokens"] for e in orders) / total, held["overall"], WINDOWS_ROUND)
    losses = {(arm["arm"], arm["seed"]): arm["held_out"]["overall"] for arm in results["arms"]}
    for entry in results["comparisons"]:
        pairs = [losses[entry["first"], seed] - losses[entry["second"], seed] for seed in entry["seeds"]]
        name = f"{entry['first']} minus {entry['second']}"
        close(name, statistics.fmean(pairs), entry["difference"]["overall"])
        if entry["over"] == "seeds":
            half = T95[len(pairs)] * statistics.stdev(pairs) / math.sqrt(len(pairs))
            close(f"{name}, high end", statistics.fmean(pairs) + half, entry["interval"]["high"])


if __name__ == "__main__":
    main()

"""Derives numbers of the page again from raw results, with nothing of memgraft; ends with an error where one differs.

python docs/study/main/check.py docs/study/main/results-cpu-200-steps.json [docs/study/main/report.md]

Means over windows, orders, deciles, hits and misses; bits a byte; equal starts and orders of tokens; every paired
difference with its interval over seeds; and, where a report is given, the differences that stand in it.
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


def weighted(groups: list[dict]) -> float | None:
    """The mean loss over all tokens of groups; None where they have none."""
    total = sum(group["tokens"] for group in groups)
    return sum(g["loss"] * g["tokens"] for g in groups if g["tokens"]) / total if total else None


def check_groups(name: str, held: dict, per_token: float | None) -> None:
    """Parts of one arm's loss against the whole."""
    parts = [
        {"loss": held[kind], "tokens": held[f"num_{kind}_tokens"]} for kind in ("hit", "miss") if held[kind] is not None
    ]
    close(f"{name}, hits and misses", weighted(parts), held["overall"], WINDOWS_ROUND)
    deciles = weighted(held["by_count_decile"])
    if deciles is not None:
        close(f"{name}, deciles", deciles, held["hit"], WINDOWS_ROUND)
    if per_token is not None and "bits_per_byte" in held:
        close(f"{name}, bits a byte", held["overall"] / math.log(2) / per_token, held["bits_per_byte"])


def check_equal(results: dict) -> None:
    """Arms of one seed start from one recipient and read one order of tokens."""
    for what in ("start_fingerprint", "order_fingerprint"):
        seen: dict[int, set] = {}
        for arm in results["arms"]:
            if arm[what] is not None:
                seen.setdefault(arm["seed"], set()).add(arm[what])
        if any(len(found) > 1 for found in seen.values()):
            sys.exit(f"{what}: arms of one seed differ")


def check_report(results: dict, report: str) -> None:
    """Every paired difference and its interval as the report's table gives them."""
    for entry in results["comparisons"]:
        name = f"{entry['first']} minus {entry['second']}".replace("_", " ").replace("mlp", "MLP")
        numbers = (entry["difference"]["overall"], entry["interval"]["low"], entry["interval"]["high"])
        shown = [f"{number:+.4f}".replace("-", "\N{MINUS SIGN}") for number in numbers]
        if f"| {name} | {shown[0]} | {shown[1]} to {shown[2]} |" not in report:
            sys.exit(f"{name}: the report does not say {shown}")
        sys.stdout.write(f"{name}: stands in the report as {shown}\n")


def main() -> None:
    """All of it."""
    results = json.loads(Path(sys.argv[1]).read_text())
    check_equal(results)
    if len(sys.argv) > 2:
        check_report(results, Path(sys.argv[2]).read_text())
    for arm in results["arms"]:
        held, name = arm["held_out"], f"{arm['arm']}, seed {arm['seed']}"
        close(f"{name}, mean over windows", statistics.fmean(held["per_window"]), held["overall"], WINDOWS_ROUND)
        close(f"{name}, by order", weighted(held["by_order"]), held["overall"], WINDOWS_ROUND)
        check_groups(name, held, results.get("bytes_per_token"))
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

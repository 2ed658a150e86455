"""The page's box about memory at work: the loss without it, gates and norms."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from memgraft.report.parts import html_section, html_table, nats, signed

_KINDS = ("hit", "miss")


def memory_section(experiment: Mapping[str, Any]) -> str:
    """Means over seeds of what each grafted arm has measured of itself; nothing where no arm has."""
    by_arm: dict[str, list[Mapping[str, Any]]] = {}
    for result in experiment["arms"]:
        if "memory_off" in result:
            by_arm.setdefault(result["label"], []).append(result)
    if not by_arm:
        return ""
    rows = []
    for label, results in by_arm.items():
        off = fmean(result["memory_off"]["overall"] for result in results)
        change = off - fmean(result["held_out"]["overall"] for result in results)
        figures = [_figure(results, kind, name) for name in ("gate_mean", "injected_norm") for kind in _KINDS]
        rows.append((label, nats(off), signed(change), *figures))
    head = ("arm", "memory off", "minus on", "gate, hits", "gate, misses", "added norm, hits", "added norm, misses")
    over = "seeds and sites" if max(map(len, by_arm.values())) > 1 else "sites"
    lead = (
        "Each trained arm evaluated once more with its memory and fallback switched off, and how far its gate opens: "
        f"means over {over}. A norm is that of what is added over that of what it is added to. "
        "'Memory off' does not stand for a model that never had one: that is the arm without memory."
    )
    return html_section("Memory at work", lead, html_table(head, rows))


def tasks_section(experiment: Mapping[str, Any]) -> str:
    """What each arm scores in tasks, seed by seed; nothing where none were asked."""
    rows = [
        (result["label"], str(result["seed"]), task, name, f"{value:.4f}")
        for result in experiment["arms"]
        for task, metrics in result.get("tasks", {}).items()
        for name, value in metrics.items()
    ]
    lead = "Tasks of the lm-evaluation-harness that lie on the disk, answered with the memory on; no intervals."
    return html_section("Tasks", lead, html_table(("arm", "seed", "task", "metric", "value"), rows, 4)) if rows else ""


def _figure(results: Sequence[Mapping[str, Any]], kind: str, name: str) -> str:
    found = [value for result in results for key, value in result["gates"].items() if key.endswith(f"/{kind}/{name}")]
    return f"{fmean(found):.3f}" if found else "–"

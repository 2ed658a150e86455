"""The study's results as Markdown."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

MADE = ("counts", "own embeddings")
"""Sources of rows that no donor gave."""


def interval(values: Iterable[float]) -> str:
    """Mean and the 95 % t interval of paired differences."""
    found = np.array(list(values), np.float64)
    half = stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found))
    return f"{found.mean():+.4f} ({found.mean() - half:+.4f} to {found.mean() + half:+.4f})"


def paired(runs: list[dict[str, Any]], rivals: list[dict[str, Any]]) -> str:
    """Loss of ``runs`` minus that of ``rivals``, by seed; of one seed by window, which says nothing of other seeds."""
    if len(runs) > 1:
        return interval(run["loss"] - rival["loss"] for run, rival in zip(runs, rivals, strict=True))
    pairs = zip(runs[0]["per_window"], rivals[0]["per_window"], strict=True)
    return interval(mine - theirs for mine, theirs in pairs)


def tables(out: Path) -> str:
    """Everything that is there."""
    parts = []
    if (out / "results.json").exists():
        runs = json.loads((out / "results.json").read_text())["runs"]
        parts += [growing(text, [run for run in runs if run["text"] == text]) for text in dict.fromkeys(_texts(runs))]
    if (out / "teaching.json").exists():
        parts.append(taught(json.loads((out / "teaching.json").read_text())["runs"]))
    if (out / "ceiling.json").exists():
        parts.append(ceiling(json.loads((out / "ceiling.json").read_text())["runs"]))
    if (out / "pretrained.json").exists():
        runs = json.loads((out / "pretrained.json").read_text())["runs"]
        parts.append(taught(runs, "Facts in a pretrained recipient"))
    return "\n".join(parts)


def ceiling(runs: list[dict[str, Any]]) -> str:
    """Log-probabilities of completions by their first places, in all, and of the likeliest token."""
    lines = ["| seed | | first | second | third | fourth | all | best token |", "|---|---|---|---|---|---|---|---|"]
    for run in runs:
        for arm, places in run["log_prob_by_place"].items():
            mean = np.average([at["mean"] for at in places], weights=[at["tokens"] for at in places])
            cells = [at["mean"] for at in places[:4]] + [mean, max(at["best"] for at in places)]
            lines.append(f"| {run['seed']} | {arm} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    return "\n".join([*lines, ""])


def _texts(runs: list[dict[str, Any]]) -> list[str]:
    return [run["text"] for run in runs]


def growing(text: str, runs: list[dict[str, Any]]) -> str:
    """One text: each arm's mean loss over seeds, and its paired differences from the base and from shuffled rows."""
    by = {(run["seed"], run["arm"]): run for run in runs}
    seeds = sorted({run["seed"] for run in runs})
    arms = list(dict.fromkeys(run["arm"] for run in runs))
    over = "seeds" if len(seeds) > 1 else "windows"
    lines = [
        f"## {text}",
        "",
        f"{len(seeds)} seed(s), {runs[0]['windows']} windows; intervals over {over}.",
        "",
        "| arm | loss | hits | minus base | minus shuffled | minus grown |",
        "|---|---|---|---|---|---|",
    ]
    for arm in arms:
        own = [seed for seed in seeds if (seed, arm) in by]
        losses = [by[seed, arm]["loss"] for seed in own]
        # An arm of some of the recipients says of which.
        named = arm if own == seeds else f"{arm} (seed {', '.join(map(str, own))})"
        cells = [named, f"{np.mean(losses):.4f}", "" if arm == "off" else f"{by[own[0], arm]['hits']:.1%}"]
        made = next((source for source in MADE if arm.startswith(source)), None)
        rivals = (
            "base",
            arm.replace("grown", "shuffled") if arm.startswith("grown") else "",
            arm.replace(made, "grown") if made else "",
        )
        for rival in rivals:
            known = rival != arm and all((seed, rival) in by for seed in own)
            cells.append(paired([by[seed, arm] for seed in own], [by[seed, rival] for seed in own]) if known else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def taught(runs: list[dict[str, Any]], title: str = "Facts") -> str:
    """Facts: recall and log-probability of each arm by seed, then of the stacks."""
    lines = [f"## {title}", "", "| seed | memory | recall | nats a token | reworded | nats a token | neutral KL |"]
    lines.append("|---|---|---|---|---|---|---|")
    for run in runs:
        report = run["reports"]["all"]
        rows = {
            f"one overlay, {arm}" if arm in ("donor", "taught") else arm: told for arm, told in report["recall"].items()
        }
        hurt = {f"one overlay, {arm}": report["neutral"][arm]["matched"]["kl"] for arm in ("donor", "taught")}
        rows |= {name: stacked["recall"] for name, stacked in run["stacked"].items()}
        hurt |= {name: stacked["neutral"]["kl"] for name, stacked in run["stacked"].items()}
        for name, told in rows.items():
            cells = [str(run["seed"]), name]
            for kind in ("prompts", "reworded"):
                cells += [f"{told[kind]['exact']:.1%}", f"{told[kind]['log_prob']:.3f}"]
            kl = hurt.get(name)
            lines.append("| " + " | ".join([*cells, "" if kl is None else f"{kl:.5f}"]) + " |")
    return "\n".join([*lines, ""])

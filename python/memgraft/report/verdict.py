"""What an experiment shows, in words that follow from its intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memgraft.controls import ARMS
from memgraft.corpus import Overlap

MIN_SEEDS = 3
"""Below so many seeds there is no verdict."""
REQUIRED = tuple(arm.name for arm in ARMS.values() if arm.words is not None)
"""The graft helps only where it is better than each of these arms."""
UNDERTRAINED = 0.95
"""An arm whose loss is above this part of the unigram loss has learned little beyond the frequency of tokens."""


@dataclass(frozen=True)
class Verdict:
    """A kind and the sentences that say it.

    Attributes:
        kind: ``"helps"``, ``"hurts"``, ``"unclear"`` (no difference shown, or one against some arms only) or ``"none"``
            (too few seeds, arms not run, arms not comparable).
        sentences: what is shown and why, for a reader.
    """

    kind: str
    sentences: tuple[str, ...]


def verdict(experiment: Mapping[str, Any]) -> Verdict:
    """The verdict on the graft; every sentence follows from ``experiment``, the content of ``results.json``."""
    results = experiment["arms"]
    arms = list(dict.fromkeys(result["arm"] for result in results))
    seeds = {arm: {result["seed"] for result in results if result["arm"] == arm} for arm in arms}
    notes = (*undertrained(experiment), *shared_text(experiment))
    absent = [arm for arm in ("graft", *REQUIRED) if arm not in arms]
    if "graft" in absent:
        return Verdict("none", ("No verdict: the arm 'graft' was not run.", *notes))
    if not (experiment["same_order"] and experiment["same_start"]):
        return Verdict("none", ("No verdict: the arms did not start equal or did not read the same tokens.", *notes))
    shared = set.intersection(*seeds.values())
    if len(shared) < MIN_SEEDS:
        what = f"{len(shared)} seed{'s' * (len(shared) != 1)} in all arms; a verdict needs {MIN_SEEDS} or more"
        return Verdict("none", (f"No verdict: this experiment has {what}.", *notes))
    if absent:
        return Verdict("none", (f"No verdict: these arms were not run: {', '.join(absent)}.", *notes))
    better, worse, open_ = _sorted_out(experiment["comparisons"])
    said = tuple(
        f"{words} {_listed([str(ARMS[arm].words) for arm in found], last)}."
        for words, found, last in (
            ("Its held-out loss is lower than with", better, "and"),
            ("Its held-out loss is higher than with", worse, "and"),
            ("No difference is shown to", open_, "or"),
        )
        if found
    )
    basis = f"95 % intervals over {len(shared)} seeds."
    if len(better) == len(REQUIRED):
        return Verdict("helps", ("The graft helps.", *said, basis, *notes))
    if len(worse) == len(REQUIRED):
        return Verdict("hurts", ("The graft hurts. Look for a mistake first.", *said, basis, *notes))
    return Verdict("unclear", ("That the graft helps is not shown.", *said, basis, *notes))


def _listed(names: Sequence[str], last: str) -> str:
    return f"{', '.join(names[:-1])} {last} {names[-1]}" if len(names) > 1 else names[0]


def _sorted_out(comparisons: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str], list[str]]:
    """Required arms that the graft is better than, worse than, and neither, by intervals over seeds."""
    better: list[str] = []
    worse: list[str] = []
    open_: list[str] = []
    for arm in REQUIRED:
        entry = next((e for e in comparisons if (e["first"], e["second"]) == ("graft", arm)), None)
        over_seeds = entry is not None and entry["over"] == "seeds" and len(entry["seeds"]) >= MIN_SEEDS
        if entry is not None and over_seeds and entry["interval"]["high"] < 0:
            better.append(arm)
        elif entry is not None and over_seeds and entry["interval"]["low"] > 0:
            worse.append(arm)
        else:
            open_.append(arm)
    return better, worse, open_


def undertrained(experiment: Mapping[str, Any]) -> list[str]:
    """A sentence that names the arms whose loss is near that of token frequencies alone; none where all are below."""
    unigram = experiment.get("unigram_loss")
    if unigram is None or not math.isfinite(unigram):
        return []
    names = dict.fromkeys(
        result["arm"].replace("_", " ")
        for result in experiment["arms"]
        if result["held_out"]["overall"] > UNDERTRAINED * unigram
    )
    if not names:
        return []
    return [
        f"Undertrained: {', '.join(names)}. Knowing only how often each token occurs gives {unigram:.3f} nats; these "
        "arms are near that or above it, so their differences say little about trained models."
    ]


def shared_text(experiment: Mapping[str, Any]) -> list[str]:
    """A sentence where held-out text is in the training text too; none where nothing is known of it."""
    if "overlap" not in experiment:
        return []
    warning = Overlap.of(experiment["overlap"]).warning("the training text", "The held-out text")
    return [f"{warning}."] if warning else []


def not_run_yet(experiment: Mapping[str, Any]) -> str:
    """Arms and seeds that were asked for and are not finished, in words; empty where all are."""
    seeds: dict[str, list[str]] = {}
    for job in experiment.get("unfinished", ()):
        seeds.setdefault(job["arm"].replace("_", " "), []).append(str(job["seed"]))
    return ", ".join(f"{arm} (seed{'s' * (len(found) > 1)} {', '.join(found)})" for arm, found in seeds.items())

"""What an experiment has found so far: results of arms by seed, compared, and the file of them."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memgraft.experiments.arms import ARMS, Arm
from memgraft.experiments.evaluate import spread_windows
from memgraft.experiments.measures import bits_per_byte, moved
from memgraft.experiments.models import Material
from memgraft.experiments.stats import compare
from memgraft.system import write_beside

RESULTS_NAME = "results.json"
RESULTS_FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """The results of an experiment.

    Attributes:
        out: the experiment's directory.
        order: seeds and arms as they run.
        material: what they read.
        facts: of the experiment as a whole, among them ``plan`` and ``bytes_per_token``.
        found: results of finished arms by seed and name, see `add`.
    """

    out: Path
    order: Sequence[tuple[int, Arm]]
    material: Material
    facts: Mapping[str, Any]
    found: dict[tuple[int, str], dict[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def unfinished(self) -> list[tuple[int, Arm]]:
        """Seeds and arms without a result, as they run."""
        return [(seed, arm) for seed, arm in self.order if (seed, arm.name) not in self.found]

    def add(self, seed: int, arm: Arm, result: dict[str, Any]) -> None:
        """Takes the result of a finished arm."""
        held = result["held_out"]
        held["bits_per_byte"] = bits_per_byte(held["overall"], self.facts["bytes_per_token"])
        self.found[seed, arm.name] = result

    def report(self) -> dict[str, Any]:
        """The content of ``results.json``."""
        results = [self.found[seed, arm.name] for seed, arm in self.order if (seed, arm.name) in self.found]
        seeds = list(dict.fromkeys(seed for seed, _ in self.order))
        names = list(dict.fromkeys(arm.name for _, arm in self.order))
        return {
            **self.facts,
            "moved": _moved(self.out, results, self.material, self.facts["plan"]["held_out_windows"]),
            "same_start": all(
                len({result["start_fingerprint"] for result in results if result["seed"] == seed}) <= 1
                for seed in seeds
            ),
            "same_order": all(len(_orders(results, seed)) <= 1 for seed in seeds),
            "comparisons": [
                comparison
                for first, second in _pairs(names)
                if (comparison := compare(results, first, second)) is not None
            ],
            "arms": results,
            "arms_not_run": [name for name in ARMS if name not in names],
            "unfinished": [{"arm": arm.name, "seed": seed} for seed, arm in self.unfinished],
        }

    def write(self) -> dict[str, Any]:
        """Writes the report, and returns it.

        Raises:
            StorageError: the disk refused.
        """
        report = self.report()
        write_beside(self.out / RESULTS_NAME, (json.dumps(report, indent=1) + "\n").encode())
        return report


def _orders(results: Sequence[Mapping[str, Any]], seed: int) -> set[str]:
    """The orders of tokens of one seed; arms with nothing to train have none."""
    found = {result["order_fingerprint"] for result in results if result["seed"] == seed}
    return found - {None}


def _moved(
    out: Path, results: Sequence[Mapping[str, Any]], material: Material, num_windows: int
) -> dict[str, Any] | None:
    """What the graft changes against no memory, token by token; None where they were not both run."""
    first, second = "graft", "none"
    seeds = [{result["seed"] for result in results if result["arm"] == arm} for arm in (first, second)]
    folders = [(out / f"{first}-seed{seed}", out / f"{second}-seed{seed}") for seed in sorted(seeds[0] & seeds[1])]
    chosen = spread_windows(material.held_out, num_windows)
    found = moved(folders, material.held_out, chosen, material.bank, material.tokenizer)
    return None if found is None else {"first": first, "second": second, "seeds": len(folders), **found}


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """The differences that are reported: the graft minus every other arm, shuffled first; then fallback minus none."""
    others = sorted((name for name in names if name != "graft"), key=lambda name: (name != "shuffled", name == "none"))
    return [("graft", other) for other in others] * ("graft" in names) + [("engram", "none")]

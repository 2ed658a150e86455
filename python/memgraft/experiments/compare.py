"""A comparison as a file: which bank, corpora, recipe, arms and seeds; read, checked and run."""

import dataclasses
import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memgraft.bank import Bank
from memgraft.config import taps_of_sites
from memgraft.corpus import Corpus
from memgraft.errors import ArgumentError, ConfigError
from memgraft.experiments.arms import DEFAULT_ARMS, arms_named
from memgraft.experiments.recipe import Recipe
from memgraft.experiments.spread import spread
from memgraft.mining.origin import split_of_keys
from memgraft.progress import Progress, callback
from memgraft.sizes import parse_count, parse_range


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """What ``memgraft compare`` reads from a YAML file; paths are relative to the file.

    Attributes:
        bank: the bank directory.
        train: training corpus.
        tokenizer: the recipient's ``tokenizer.json``.
        out: the experiment's directory.
        held_out: corpus of other documents; None takes the split that the keys were mined with.
        domains: more held-out corpora by a name; every arm is evaluated on each by itself.
        tasks: folder of task files of the lm-evaluation-harness that every arm answers.
        arms: names of arms.
        seeds: seeds; a verdict needs three.
        intervals: ``"seeds"`` refuses to run with fewer than two seeds, whose intervals would be over held-out windows.
        steps: steps an arm; None takes ``minutes``.
        minutes: budget of all training together.
        recipe: fields of :class:`Recipe` that differ from its defaults.
    """

    bank: Path
    train: Path
    tokenizer: Path
    out: Path
    held_out: Path | None = None
    domains: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    tasks: Path | None = None
    arms: tuple[str, ...] = DEFAULT_ARMS
    seeds: tuple[int, ...] = (0, 1, 2)
    intervals: str = "any"
    steps: int | None = None
    minutes: float = 10.0
    recipe: Recipe = dataclasses.field(default_factory=Recipe)

    def run(
        self,
        *,
        processes: int = 1,
        seconds: float | None = None,
        overwrite: bool = False,
        progress: Progress | bool | None = None,
    ) -> dict[str, Any]:
        """Trains and compares; see :func:`run_experiment`.

        Args:
            processes: arms that train at the same moment, each in a process with its share of the processors and, where
                there are several, a GPU of its own; needs ``steps``.
            seconds: no arm is started later than this; the same call goes on from there.
            overwrite: where ``out`` holds an experiment of other settings, delete its arms instead of refusing.
            progress: True for bars, or called as ``progress(phase, done, total)``.

        Raises:
            ConfigError: no held-out corpus, and the keys were not mined from a split of the training one; or several
                processes without ``steps``.
        """
        progress = callback(progress)
        if processes < 1:
            raise ConfigError(f"processes: expected at least 1, found {processes}")
        if processes > 1:
            if self.steps is None:
                raise ConfigError(
                    f"processes: expected steps beside {processes} processes, found minutes: arms that train at the "
                    "same moment slow each other down, so their speed cannot be measured alone"
                )
            started = time.monotonic()
            # Settings, guards and the folder are checked here, once, before any process starts.
            bank, train, held_out, domains = self.opened()
            first = self.run_on(bank, train, held_out, domains=domains, overwrite=overwrite, seconds=0)
            jobs = [
                functools.partial(
                    dataclasses.replace(self, arms=(arm,), seeds=(seed,)).run_here,
                    keep=seed == self.seeds[0],
                    write=False,
                )
                for seed in self.seeds
                for arm in self.arms
            ]
            # What is finished stands in results.json while other arms still train.
            look = functools.partial(self.run_on, bank, train, held_out, domains=domains, seconds=0, measured=first)
            spread(jobs, processes, seconds=seconds, after=look, progress=progress)
            if seconds is not None:
                seconds = max(0.0, seconds - (time.monotonic() - started))
        return self.run_here(overwrite=overwrite and processes == 1, seconds=seconds, progress=progress)

    def run_here(
        self,
        *,
        overwrite: bool = False,
        seconds: float | None = None,
        keep: bool = True,
        write: bool = True,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """:meth:`run` in this process; ``keep``: save the graft's model; ``write``: write ``results.json``."""
        bank, train, held_out, domains = self.opened()
        options: dict[str, Any] = {"keep": "graft" if keep else "", "write": write, "overwrite": overwrite}
        return self.run_on(bank, train, held_out, domains=domains, seconds=seconds, progress=progress, **options)

    def opened(self) -> tuple[Bank, Corpus, Corpus, dict[str, Corpus]]:
        """Bank, training corpus, held-out corpus and those of the domains.

        Raises:
            ConfigError: no held-out corpus, and the keys were not mined from a split of the training one.
        """
        # The tokens of tables go where the results will be, not to the system's folder.
        beside = self.out.absolute().parent
        bank, train = Bank.open(self.bank), Corpus.open(self.train, temporary=beside)
        if self.held_out is not None:
            held_out = Corpus.open(self.held_out, temporary=beside)
        else:
            parts = split_of_keys(bank.keys, train)
            if parts is None:
                raise ConfigError(f"held_out: expected a corpus, since the keys are of no split of {self.train}")
            train, held_out = parts
        return bank, train, held_out, {name: Corpus.open(path, temporary=beside) for name, path in self.domains.items()}

    def run_on(self, bank: Bank, train: Corpus, held_out: Corpus, **options: Any) -> dict[str, Any]:
        """Trains and compares on what is open already, whatever the paths say; in this process.

        Args:
            bank: the bank of the memory arms.
            train: training tokens.
            held_out: tokens of other documents.
            options: what :func:`run_experiment` takes besides: domains, seconds, keep, write, overwrite, command,
                measured and progress.

        Returns:
            The content of ``results.json``.
        """
        taps_of_sites(bank.taps, self.recipe.all_sites, self.recipe.all_taps)
        from memgraft.experiments.experiment import run_experiment

        return run_experiment(
            bank,
            train,
            held_out,
            self.out,
            tokenizer=self.tokenizer,
            eos_id=train.eos_id,
            recipe=self.recipe,
            arms=self.arms,
            seeds=self.seeds,
            minutes=self.minutes,
            steps=self.steps,
            tasks=self.tasks,
            **options,
        )


# Fields of a recipe that are no numbers: types of a value, and how an error calls them.
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "compile": ((bool,), "true or false"),
    "sites": ((list,), "a list of blocks"),
    "taps": ((list,), "a list of donor depths"),
    **dict.fromkeys(("into", "gate", "trained"), ((str,), "a word")),
    "recipient": ((str,), "a path"),
}


def read_comparison(path: str | Path) -> Comparison:
    """Reads a comparison from YAML; nothing is opened but the file.

    Raises:
        ConfigError: no YAML mapping, an unknown or missing key, or a value that does not fit.
    """
    import yaml  # type: ignore[import-untyped]

    path = Path(path)
    try:
        facts = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: expected a YAML file, found: {error}") from error
    if not isinstance(facts, Mapping):
        raise ConfigError(f"{path}: expected a mapping of settings, found {type(facts).__name__}")
    values: dict[str, Any] = dict(facts)
    known = [field.name for field in dataclasses.fields(Comparison)]
    _known(path, values, known)
    if missing := [name for name in ("bank", "train", "tokenizer", "out") if values.get(name) is None]:
        raise ConfigError(f"{path}: expected {', '.join(missing)}, found none")
    for name in ("bank", "train", "tokenizer", "out", "held_out", "tasks"):
        if values.get(name) is not None:
            if not isinstance(values[name], str):
                raise ConfigError(f"{path}: {name}: expected a path, found {values[name]!r}")
            values[name] = path.parent / values[name]
    for name in {"steps", "seeds"} & set(values):
        values[name] = _number(path, name, values[name])
    recipe = values.get("recipe") or {}
    if not isinstance(recipe, Mapping):
        raise ConfigError(f"{path}: recipe: expected a mapping, found {recipe!r}")
    recipe = {
        name: value if name in _KINDS else _number(path, f"recipe: {name}", value) for name, value in recipe.items()
    }
    for name, kind in (("arms", str), ("seeds", int)):
        if name in values:
            entries = values[name]
            if not isinstance(entries, list) or not all(type(entry) is kind for entry in entries):
                raise ConfigError(f"{path}: {name}: expected a list of {kind.__name__}, found {entries!r}")
            values[name] = tuple(entries)
    arms_named(values.get("arms", DEFAULT_ARMS))
    values["domains"] = _domains(path, values.get("domains"))
    if values.get("intervals", "any") not in ("any", "seeds"):
        raise ConfigError(f"{path}: intervals: expected any or seeds, found {values['intervals']!r}")
    if values.get("intervals") == "seeds" and len(values.get("seeds", (0, 1, 2))) < 2:
        raise ConfigError(
            f"{path}: seeds: expected two or more, since intervals over seeds are asked for, found "
            f"{list(values['seeds'])}; add seeds, or leave out `intervals: seeds`"
        )
    steps, minutes = values.get("steps"), values.get("minutes", 1)
    if steps is not None and (type(steps) is not int or steps < 1):
        raise ConfigError(f"{path}: steps: expected a whole number from 1, found {steps!r}")
    if type(minutes) not in (int, float) or minutes <= 0:
        raise ConfigError(f"{path}: minutes: expected a number above 0, found {minutes!r}")
    _known(path, recipe, [field.name for field in dataclasses.fields(Recipe)], "recipe: ")
    for name, value in recipe.items():
        kinds, expected = _KINDS.get(name, ((int, float), "a number"))
        if type(value) not in kinds and value is not None:
            raise ConfigError(f"{path}: recipe: {name}: expected {expected}, found {value!r}")
        if type(value) is list and not all(type(entry) is int for entry in value):
            raise ConfigError(f"{path}: recipe: {name}: expected {expected}, found {value!r}")
    if recipe.get("recipient") is not None:
        recipe["recipient"] = str(path.parent / recipe["recipient"])
    values["recipe"] = Recipe(**recipe)
    return Comparison(**values)


def _number(path: Path, name: str, value: Any) -> Any:
    """A whole number, or several, that YAML reads as a text because people wrote ``3k``, ``3e6`` or ``0-2``."""
    if not isinstance(value, str):
        return value
    try:
        return parse_range(name, value) if name == "seeds" else parse_count(name, value)
    except ArgumentError as error:
        raise ConfigError(f"{path}: {error}") from None


def _domains(path: Path, domains: Any) -> dict[str, Path]:
    """Names and paths of more held-out corpora, paths relative to the file."""
    if domains is None:
        return {}
    if not isinstance(domains, Mapping) or not all(isinstance(part, str) for item in domains.items() for part in item):
        raise ConfigError(f"{path}: domains: expected a mapping of names to paths, found {domains!r}")
    return {name: path.parent / where for name, where in domains.items()}


def _known(path: Path, values: Mapping[str, Any], known: list[str], where: str = "") -> None:
    if unknown := sorted(str(name) for name in values if name not in known):
        raise ConfigError(f"{path}: {where}{', '.join(unknown)}: unknown; known are {', '.join(known)}")

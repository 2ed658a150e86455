"""All arms and seeds of an experiment under one budget; finished ones are kept, interrupted ones taken up."""

import contextlib
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from memgraft import __version__
from memgraft.assets.cache import directory_beside, write_beside
from memgraft.bank import Bank
from memgraft.corpus.text import tokenizer_path
from memgraft.errors import ConfigError, CorpusError
from memgraft.experiments.arms import DEFAULT_ARMS, Arm, arms_named
from memgraft.experiments.evaluate import held_out_loss, spread_windows
from memgraft.experiments.recipe import Recipe, settings_fingerprint
from memgraft.experiments.stats import compare
from memgraft.experiments.train import Material, Progress, build_arm, build_optimizer, disk_errors, train_arm
from memgraft.experiments.windows import TokenWindows
from memgraft.harvesting.donor import native_compute_dtype, quiet_transformers

if TYPE_CHECKING:
    from memgraft.corpus import Corpus

RESULTS_NAME = "results.json"
RESULTS_FORMAT_VERSION = 1
_MAX_EPOCHS = 4
_SAFETY = 1.06
"""Checkpoints, loading and the trainer's own work, beside the measured step."""


def run_experiment(
    bank: Bank,
    train: "Corpus",
    held_out: "Corpus",
    out: str | Path,
    *,
    tokenizer: Any,
    eos_id: int | None = None,
    recipe: Recipe | None = None,
    arms: Sequence[str] = DEFAULT_ARMS,
    seeds: Sequence[int] = (0,),
    minutes: float = 10.0,
    steps: int | None = None,
    keep: str = "graft",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train every arm for every seed on the same tokens in the same order, evaluate, compare, write ``results.json``.

    Args:
        bank: the bank of the memory arms; mined from ``train`` alone.
        train: training tokens.
        held_out: tokens of other documents.
        out: the experiment's directory; finished arms in it are kept.
        tokenizer: the recipient's tokenizer: path of ``tokenizer.json`` or its folder, or the object.
        eos_id: the recipient's end-of-document token.
        recipe: size and schedule of the recipient.
        arms: names from `ARMS`.
        seeds: each seeds weights, graft and token order.
        minutes: wall-clock budget of all training together; the equal number of steps follows from a measurement of
            each arm's own speed, at most four epochs.
        steps: the number of steps itself, instead of ``minutes``.
        keep: the arm whose model (of the first seed) is saved to ``<out>/model``.
        progress: called as ``progress(stage, done, total)``.

    Returns:
        The content of ``results.json``.

    Raises:
        ConfigError: unknown arms, no seed, or a budget too small for one step.
        CorpusError: too little text, or the held-out tokens are those of the training or of the bank's keys.
    """
    recipe = Recipe() if recipe is None else recipe
    chosen = arms_named(arms)
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError(f"seeds: expected distinct seeds, found {list(seeds)}")
    material = _material(bank, train, held_out, recipe, tokenizer, eos_id)
    out = Path(out)
    bf16 = native_compute_dtype("cuda" if torch.cuda.is_available() else None) == "bfloat16"
    shared = {
        "recipe": recipe.to_dict(),
        "bank": bank.fingerprint,
        "train": material.train.fingerprint,
        "held_out": material.held_out.fingerprint,
        "vocab_size": material.vocab_size,
        "bf16": bf16,
        "version": __version__,
    }
    budget = {**shared, "arms": list(arms), "seeds": list(seeds), "minutes": None if steps else minutes, "steps": steps}
    plan = _plan(out / "plan.json", budget, chosen, recipe, material, bf16, progress)
    results = []
    for seed in seeds:
        for arm in chosen:
            settings = {**shared, "arm": arm.name, "seed": seed, "steps": plan["steps"]}
            saved = out / "model" if arm.name == keep and seed == seeds[0] else None
            results.append(
                _one(out / f"{arm.name}-seed{seed}", settings, arm, recipe, material, seed, bf16, saved, progress)
            )
    report = {
        "format_version": RESULTS_FORMAT_VERSION,
        "settings": budget,
        "plan": plan,
        "tokens_per_arm": plan["steps"] * recipe.tokens_per_step,
        "same_start": all(len({r["start_fingerprint"] for r in results if r["seed"] == seed}) == 1 for seed in seeds),
        "same_order": all(len({r["order_fingerprint"] for r in results if r["seed"] == seed}) == 1 for seed in seeds),
        "comparisons": [
            comparison
            for first, second in (("graft", "shuffled"), ("graft", "engram"), ("graft", "none"), ("engram", "none"))
            if (comparison := compare(results, first, second)) is not None
        ],
        "arms": results,
    }
    write_beside(out / RESULTS_NAME, (json.dumps(report, indent=1) + "\n").encode())
    return report


def _material(
    bank: Bank, train: "Corpus", held_out: "Corpus", recipe: Recipe, tokenizer: Any, eos_id: int | None
) -> Material:
    if train.fingerprint == held_out.fingerprint:
        raise CorpusError(f"the held-out corpus is the training corpus (fingerprint {train.fingerprint}); name another")
    mined_from = bank.keys.metadata.get("corpus", {}).get("fingerprint")
    if mined_from == held_out.fingerprint:
        raise CorpusError(
            f"the bank's keys were mined from the held-out corpus (fingerprint {mined_from}); "
            "mine the training corpus and harvest again"
        )
    windows = TokenWindows(train, recipe.seq_len)
    if len(windows) < recipe.batch_size:
        raise CorpusError(
            f"training corpus of {train.num_tokens} tokens: expected at least one step of {recipe.tokens_per_step}; "
            "use more text, or a smaller batch_size or seq_len"
        )
    return Material(
        bank=bank,
        train=windows,
        held_out=TokenWindows(held_out, recipe.seq_len),
        vocab_size=bank.index.vocab_size,
        eos_id=eos_id,
        tokenizer=tokenizer_path(tokenizer) if isinstance(tokenizer, (str, Path)) else tokenizer,
    )


def _plan(
    path: Path,
    budget: dict[str, Any],
    arms: Sequence[Arm],
    recipe: Recipe,
    material: Material,
    bf16: bool,
    progress: Progress | None,
) -> dict[str, Any]:
    """The number of steps, measured once and kept, so that a resumed run has the budget it started with."""
    fingerprint = settings_fingerprint(budget)
    with contextlib.suppress(OSError, ValueError):
        plan: dict[str, Any] = json.loads(path.read_text())
        if plan.get("fingerprint") == fingerprint:
            return plan
    plan = {"fingerprint": fingerprint, "steps": budget["steps"], "max_epochs": _MAX_EPOCHS}
    if budget["steps"] is None:
        speeds = {}
        for number, arm in enumerate(arms):
            speeds[arm.name] = _speed(arm, recipe, material, bf16)
            if progress is not None:
                progress("measure speed", number + 1, len(arms))
        plan["seconds_per_step"] = {name: round(step, 4) for name, (step, _) in speeds.items()}
        windows = len(spread_windows(material.held_out, recipe.held_out_windows)) + (
            recipe.curve_points * len(spread_windows(material.held_out, recipe.curve_windows))
        )
        num_seeds = len(budget["seeds"])
        evaluating = num_seeds * windows * sum(window for _, window in speeds.values())
        plan["seconds_evaluating"] = round(evaluating, 1)
        per_step = num_seeds * _SAFETY * sum(step for step, _ in speeds.values())
        affordable = int((60 * budget["minutes"] - evaluating) / per_step)
        if affordable < 1:
            raise ConfigError(
                f"minutes {budget['minutes']}: expected room for at least one step of each arm; evaluation takes "
                f"{evaluating:.0f} s and one step of all arms "
                f"{per_step:.1f} s; give more minutes or evaluate fewer windows"
            )
        plan["steps"] = min(affordable, _MAX_EPOCHS * (len(material.train) // recipe.batch_size))
    write_beside(path, (json.dumps(plan, indent=1) + "\n").encode())
    return plan


def _speed(arm: Arm, recipe: Recipe, material: Material, bf16: bool, steps: int = 6) -> tuple[float, float]:
    """Seconds per training step (the median; the first one warms up) and per evaluated window, on the first windows."""
    from memgraft.data import MemoryBatch
    from memgraft.experiments.windows import SEGMENTS_COLUMN

    model = build_arm(arm, recipe, material, seed=0).train()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    optimizer = build_optimizer(model, recipe)
    seconds = []
    for step in range(steps):
        started = time.perf_counter()
        examples = [
            material.train[window % len(material.train)]
            for window in range(step * recipe.batch_size, (step + 1) * recipe.batch_size)
        ]
        tokens_BT = torch.stack([example["input_ids"] for example in examples])
        extra = {}
        if arm.grafted:
            segments_BT = torch.stack([example[SEGMENTS_COLUMN] for example in examples])
            extra["memgraft"] = MemoryBatch.look_up(material.bank, tokens_BT, segments_BT).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            loss = model(input_ids=tokens_BT.to(device), labels=tokens_BT.to(device), **extra).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    few = spread_windows(material.held_out, 2 * recipe.batch_size)
    evaluation: dict[str, Any] = {"grafted": arm.grafted, "batch_size": 2 * recipe.batch_size, "bf16": bf16}
    for _ in range(2):
        started = time.perf_counter()
        held_out_loss(model, material.held_out, few, material.bank, **evaluation)
        per_window = (time.perf_counter() - started) / len(few)
    return median(seconds[1:]), per_window


def _one(
    folder: Path,
    settings: dict[str, Any],
    arm: Arm,
    recipe: Recipe,
    material: Material,
    seed: int,
    bf16: bool,
    saved: Path | None,
    progress: Progress | None,
) -> dict[str, Any]:
    """One arm's result: read if finished under the same settings, else trained."""
    fingerprint = settings_fingerprint(settings)
    path, mark = folder / "result.json", folder / "settings.json"
    with contextlib.suppress(OSError, ValueError):
        result: dict[str, Any] = json.loads(path.read_text())
        if result.get("settings_fingerprint") == fingerprint and (saved is None or saved.is_dir()):
            return result
    with contextlib.suppress(OSError, ValueError):
        if json.loads(mark.read_text()) != settings:
            shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_beside(mark, json.dumps(settings, sort_keys=True).encode())
    with quiet_transformers():
        model, result = train_arm(
            arm, recipe, material, seed=seed, steps=settings["steps"], folder=folder, bf16=bf16, progress=progress
        )
        if saved is not None:
            save_model(model, saved, grafted=arm.grafted, tokenizer=material.tokenizer)
    result["settings_fingerprint"] = fingerprint
    write_beside(path, (json.dumps(result) + "\n").encode())
    return result


def save_model(model: nn.Module, folder: Path, *, grafted: bool, tokenizer: Any = None) -> None:
    """Save a trained recipient to ``<folder>/recipient`` and its graft to ``<folder>/graft``; the graft comes off."""
    from memgraft.integrations.transformers import detach
    from memgraft.integrations.transformers.saving import write_graft

    with disk_errors(folder), directory_beside(folder) as building:
        if grafted:
            write_graft(model, building / "graft")
            detach(model)
        model.save_pretrained(building / "recipient")  # type: ignore[operator]
        if isinstance(tokenizer, (str, Path)):
            shutil.copyfile(tokenizer_path(tokenizer), building / "recipient" / "tokenizer.json")

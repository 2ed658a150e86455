"""How many steps every arm gets: as asked, or as many as a budget of minutes leaves room for."""

import contextlib
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from memgraft.errors import ConfigError
from memgraft.experiments.arms import Arm
from memgraft.experiments.evaluate import held_out_loss, spread_windows
from memgraft.experiments.models import Material, arm_collator, build_arm
from memgraft.experiments.recipe import Recipe
from memgraft.experiments.train import Progress, build_optimizer, evaluation_batch
from memgraft.experiments.training import trains
from memgraft.experiments.windows import TokenWindows
from memgraft.system import write_beside

_MAX_EPOCHS = 4
_MEASURING = 0.1
"""Share of the budget that measuring takes, unless a single step of an arm takes longer."""
_HOPELESS = 2.0
"""Where one step takes so many times the budget, by the arms measured so far, and these took all of it, no more are."""
_SAFETY = 1.06
"""Checkpoints, loading and the trainer's own work, beside the measured step."""


def make_plan(
    path: Path,
    settings: dict[str, Any],
    budget: dict[str, Any],
    arms: Sequence[Arm],
    recipe: Recipe,
    material: Material,
    bf16: bool,
    progress: Progress | None,
) -> dict[str, Any]:
    """The number of steps, measured once and kept, so that a resumed run and added arms have the same one."""
    with contextlib.suppress(OSError, ValueError):
        plan: dict[str, Any] = json.loads(path.read_text())
        if plan.get("settings") == budget:
            return plan
    plan = {"settings": budget, "steps": budget["steps"], "max_epochs": _MAX_EPOCHS}
    if budget["steps"] is None:
        speeds: dict[str, tuple[float, float]] = {}
        steps, seconds, begun = 0, 60 * budget["minutes"], time.monotonic()
        for number, arm in enumerate(arms):
            speeds[arm.name] = _speed(arm, recipe, material, bf16, seconds * _MEASURING / len(arms))
            if progress is not None:
                progress("measure speed", number + 1, len(arms))
            # Arms that are not measured yet count as those before them.
            share = len(settings["seeds"]) * len(arms) / len(speeds)
            step, window = (share * sum(times) for times in zip(*speeds.values(), strict=True))
            hopeless = _cost(1, step, window, recipe, material.held_out) > _HOPELESS * seconds
            if number + 1 == len(arms) or (hopeless and time.monotonic() - begun > seconds):
                steps = _affordable(seconds, step * _SAFETY, window, recipe, material.held_out)
                break
        plan["seconds_per_step"] = {name: round(step, 4) for name, (step, _) in speeds.items()}
        if steps < 1:
            least = _cost(1, step * _SAFETY, window, recipe, material.held_out) / 60
            raise ConfigError(
                f"minutes {budget['minutes']}: expected room for at least one step of each arm and the evaluation; a "
                f"step of all arms takes {step:.1f} s, evaluating a window {window:.2f} s; give more minutes (one step "
                f"takes {math.ceil(10 * least) / 10:g}), or where these are options a smaller recipient, batch_size or "
                "seq_len, or fewer windows to evaluate"
            )
        plan["steps"] = min(steps, _MAX_EPOCHS * (len(material.train) // recipe.batch_size))
    final, curve = recipe.evaluation(plan["steps"])
    plan["held_out_windows"] = len(spread_windows(material.held_out, final))
    plan["curve_windows"] = len(spread_windows(material.held_out, curve))
    write_beside(path, (json.dumps(plan, indent=1) + "\n").encode())
    return plan


def _cost(steps: int, step: float, window: float, recipe: Recipe, held_out: TokenWindows) -> float:
    """Seconds of ``steps`` with their evaluation."""
    final, curve = recipe.evaluation(steps)
    windows = len(spread_windows(held_out, final)) + recipe.curve_points * len(spread_windows(held_out, curve))
    return steps * step + windows * window


def _affordable(seconds: float, step: float, window: float, recipe: Recipe, held_out: TokenWindows) -> int:
    """The most steps that fit into ``seconds`` with their evaluation; 0 where not even one does."""
    low, high = 0, int(seconds / step) + 1
    while high - low > 1:
        middle = (low + high) // 2
        fits = _cost(middle, step, window, recipe, held_out) <= seconds
        low, high = (middle, high) if fits else (low, middle)
    return low


def _speed(
    arm: Arm, recipe: Recipe, material: Material, bf16: bool, limit: float, steps: int = 6
) -> tuple[float, float]:
    """Seconds per training step (the median; the first one warms up) and per evaluated window, on the first windows.

    Stops after fewer steps, the first even, once ``limit`` seconds have gone.
    """
    begun = time.perf_counter()
    model = build_arm(arm, recipe, material, seed=0).train()
    collator = arm_collator(arm, material)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    optimizer = build_optimizer(model, recipe) if trains(model) else None
    seconds = [] if optimizer is not None else [0.0]
    for step in range(steps if optimizer is not None else 0):
        started = time.perf_counter()
        examples = [
            material.train[window % len(material.train)]
            for window in range(step * recipe.batch_size, (step + 1) * recipe.batch_size)
        ]
        batch = {name: value.to(device) for name, value in collator(examples).items()}
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            loss = model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert optimizer is not None
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
        if time.perf_counter() - begun > limit:
            break
    size = evaluation_batch(recipe, material.vocab_size)
    late = time.perf_counter() - begun > limit
    few = spread_windows(material.held_out, min(size, recipe.batch_size) if late else 2 * recipe.batch_size)
    evaluation: dict[str, Any] = {"grafted": arm.grafted, "batch_size": size, "bf16": bf16}
    for _ in range(2):
        started = time.perf_counter()
        held_out_loss(model, material.held_out, few, material.bank, **evaluation)
        per_window = (time.perf_counter() - started) / len(few)
        if time.perf_counter() - begun > limit:
            break
    return median(seconds[1:] or seconds), per_window

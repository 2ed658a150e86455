"""Experiments: arms over one recipient and one token order, matched budgets, paired statistics."""

from typing import TYPE_CHECKING

from memgraft.deferred import deferred
from memgraft.experiments.arms import ARMS, DEFAULT_ARMS, Arm, arms_named
from memgraft.experiments.compare import Comparison, read_comparison
from memgraft.experiments.recipe import Recipe, build_recipient
from memgraft.experiments.stats import bootstrap_interval, compare, paired_interval

if TYPE_CHECKING:
    from memgraft.experiments.evaluate import HeldOutLoss, held_out_loss, spread_windows
    from memgraft.experiments.experiment import run_experiment, save_model
    from memgraft.experiments.record import RESULTS_NAME
    from memgraft.experiments.windows import TokenWindows

__all__ = [
    "ARMS",
    "DEFAULT_ARMS",
    "RESULTS_NAME",
    "Arm",
    "Comparison",
    "HeldOutLoss",
    "Recipe",
    "TokenWindows",
    "arms_named",
    "bootstrap_interval",
    "build_recipient",
    "compare",
    "held_out_loss",
    "paired_interval",
    "read_comparison",
    "run_experiment",
    "save_model",
    "spread_windows",
]

__getattr__ = deferred(
    __name__,
    {
        "evaluate": ("HeldOutLoss", "held_out_loss", "spread_windows"),
        "experiment": ("run_experiment", "save_model"),
        "record": ("RESULTS_NAME",),
        "windows": ("TokenWindows",),
    },
)

"""Control arms: a bank's rows replaced by what carries no matching information (docs/METHOD.md, section 7)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from memgraft.bank import Memory
from memgraft.config import GraftConfig
from memgraft.errors import ArgumentError
from memgraft.mixing import GAMMA, mix64

_SAMPLE_ROWS = 16384
_FloatArray = npt.NDArray[np.float32]


@dataclasses.dataclass(eq=False)
class ControlledRows:
    """Values of ``control="shuffled"``, ``"random"`` or ``"constant"``; a function of bank, control and seed alone.

    ``shuffled`` permutes all rows; ``random`` draws Gaussian rows with the bank's mean and deviation per channel, each
    scaled to the norm of the row it replaces; ``constant`` gives the mean row for every key.
    """

    bank: Memory
    control: str
    seed: int

    def __post_init__(self) -> None:
        if self.control not in REPLACEMENTS:
            raise ArgumentError(f"no replaced rows under control {self.control!r}")

    def floats(self, rows: npt.NDArray[np.int32]) -> _FloatArray:
        """Values of distinct rows, (U,) -> (U, taps, value_dim) float32."""
        return REPLACEMENTS[self.control](self, rows)

    @cached_property
    def permutation(self) -> npt.NDArray[np.int32]:
        """Row of the bank that stands in for each row."""
        return np.random.default_rng(self.seed).permutation(self.bank.num_rows).astype(np.int32)

    @cached_property
    def moments(self) -> tuple[_FloatArray, _FloatArray]:
        """Mean and deviation of each channel, over a sample: (taps, value_dim) twice."""
        rng = np.random.default_rng(self.seed)
        size = min(_SAMPLE_ROWS, self.bank.num_rows)
        sample = self.bank.floats(np.sort(rng.choice(self.bank.num_rows, size=size, replace=False)).astype(np.int32))
        return sample.mean(axis=0), sample.std(axis=0)

    def __getstate__(self) -> dict[str, Any]:
        return {"bank": self.bank, "control": self.control, "seed": self.seed}


def _shuffled(controlled: ControlledRows, rows: npt.NDArray[np.int32]) -> _FloatArray:
    return controlled.bank.floats(controlled.permutation[rows])


def _random(controlled: ControlledRows, rows: npt.NDArray[np.int32]) -> _FloatArray:
    mean, deviation = controlled.moments
    drawn = mean + deviation * _gaussian(controlled.seed, rows, mean.size).reshape(len(rows), *mean.shape)
    wanted = np.linalg.norm(controlled.bank.floats(rows), axis=-1, keepdims=True)
    found = np.linalg.norm(drawn, axis=-1, keepdims=True)
    scaled: _FloatArray = (drawn * (wanted / np.maximum(found, 1e-12))).astype(np.float32)
    return scaled


def _constant(controlled: ControlledRows, rows: npt.NDArray[np.int32]) -> _FloatArray:
    mean, _ = controlled.moments
    return np.broadcast_to(mean, (len(rows), *mean.shape)).copy()


REPLACEMENTS: dict[str, Callable[[ControlledRows, npt.NDArray[np.int32]], _FloatArray]] = {
    "shuffled": _shuffled,
    "random": _random,
    "constant": _constant,
}
"""What stands in for rows: for each control whose rows are "replaced" in :data:`memgraft.controls.CONTROLS`."""


def controlled_rows(bank: Memory, config: GraftConfig) -> ControlledRows | None:
    """The replacement that a config asks for, or ``None``."""
    if config.control is not None and config.row_source == "replaced":
        return ControlledRows(bank, config.control, config.seed)
    return None


def _gaussian(seed: int, rows: npt.NDArray[np.int32], width: int) -> _FloatArray:
    """Standard normal numbers that depend on (seed, row, channel) alone, (U, width) float32."""
    counters = rows.astype(np.uint64)[:, None] * np.uint64(width) + np.arange(width, dtype=np.uint64)
    key = _mix(np.array([seed], dtype=np.uint64))[0]
    with np.errstate(over="ignore"):
        first = _mix(counters * np.uint64(2) + key)
        second = _mix(counters * np.uint64(2) + np.uint64(1) + key)
    # 53 bits each; the first lies in (0, 1] so that its logarithm is finite.
    uniform = ((first >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53
    angle = (second >> np.uint64(11)).astype(np.float64) * (2.0**-53 * 2.0 * np.pi)
    normal: _FloatArray = (np.sqrt(-2.0 * np.log(uniform)) * np.cos(angle)).astype(np.float32)
    return normal


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        return mix64(x + np.uint64(GAMMA))

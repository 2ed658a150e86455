"""The softmax fitted on one sample, as often as there is time for."""

import dataclasses
import time

from memgraft.harvesting.speed import Note
from memgraft.probing.hits import Sample
from memgraft.probing.softmax import Classes, Fit, FloatArray, softmax_losses

FEWEST_HITS = 10_000
"""Training hits of a fit, whatever the time."""


class Fits:
    """Fits the softmax on one sample."""

    def __init__(self, sample: Sample, vocab_size: int, fit: Fit, seed: int, device: str) -> None:
        self.classes = Classes.of(sample.training.targets, vocab_size, fit.num_classes)
        self._sample, self._fit, self._seed, self._device = sample, fit, seed, device
        self._timed: tuple[FloatArray, FloatArray] | None = None

    def losses(self, values: FloatArray, seed: int) -> FloatArray:
        """(E,) losses of the exam; those of the fit that was timed are known."""
        if self._timed is not None and self._timed[0] is values and seed == self._seed:
            return self._timed[1]
        return softmax_losses(
            values, self._sample.training, self._sample.exam, self.classes, self._fit, seed=seed, device=self._device
        )

    @property
    def num_hits(self) -> int:
        """Training hits of a fit."""
        return min(len(self._sample.training), self._fit.num_hits)

    def affordable(self, values: FloatArray, seeds: int, number: int, deadline: float, note: Note | None = None) -> int:
        """How many seeds of ``number`` fits are done by ``deadline``, at least one.

        Where one is not, all fits are on fewer training hits from here on, down to `FEWEST_HITS`; ``note`` is told.
        """
        begun = time.monotonic()
        self._timed = (values, self.losses(values, self._seed))
        now = time.monotonic()
        left, each, hits = deadline - now, number * (now - begun), self.num_hits
        if each > left and hits > FEWEST_HITS:
            fewer = max(FEWEST_HITS, int(hits * max(left, 0) / each))
            self._fit, self._timed = dataclasses.replace(self._fit, num_hits=fewer), None
            each *= fewer / hits
            if note is not None:
                note(f"fitted on {fewer:,} of {hits:,} training hits, for the time that is left")
        if each > left and note is not None:
            note(f"{number} fits take about {each / 60:.1f} minutes; fewer taps, prefixes or contexts take less")
        return max(1, min(seeds, int(left / each)))

"""The softmax fitted on one sample, as often as there is time for."""

import time

from memgraft.harvesting.speed import Note
from memgraft.probing.hits import Sample
from memgraft.probing.softmax import Classes, Fit, FloatArray, softmax_losses


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

    def affordable(self, values: FloatArray, seeds: int, number: int, deadline: float, note: Note | None = None) -> int:
        """How many seeds of ``number`` fits are done by ``deadline``, at least one.

        ``note`` is told how long one seed takes where it is not done by then.
        """
        begun = time.monotonic()
        self._timed = (values, self.losses(values, self._seed))
        now = time.monotonic()
        left, each = deadline - now, number * (now - begun)
        if each > left and note is not None:
            note(f"{number} fits take about {each / 60:.1f} minutes; fewer taps, prefixes or contexts take less")
        return max(1, min(seeds, int(left / each)))

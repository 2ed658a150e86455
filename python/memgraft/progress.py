"""The one way in which long work tells how far it is: a function, or True for bars."""

from collections.abc import Callable
from typing import Any

from memgraft.errors import ArgumentError, ConfigError

Progress = Callable[[str, int, int], object]
"""Called as ``progress(phase, done, total)``; what it raises ends the work."""


def callback(progress: Progress | bool | None) -> Progress | None:
    """What long work calls: ``progress`` itself, bars of tqdm (in notebooks, too) for True, nothing for None or False.

    Raises:
        ArgumentError: ``progress`` is something else.
        ConfigError: bars are wanted and tqdm is not installed.
    """
    if progress is None or progress is False:
        return None
    if progress is True:
        return _Bars()
    if not callable(progress):
        raise ArgumentError(
            f"progress: expected True, False or a function of (phase, done, total), got {type(progress).__name__}"
        )
    return progress


class _Bars:
    """A bar for each phase, the last one closed when it is full or another begins."""

    def __init__(self) -> None:
        try:
            from tqdm.auto import tqdm  # type: ignore[import-untyped]
        except ModuleNotFoundError:
            raise ConfigError("progress=True needs tqdm, which is not installed: pip install tqdm") from None
        self._tqdm: Any = tqdm
        self._bar: Any = None
        self._phase = ""

    def __call__(self, phase: str, done: int, total: int) -> None:
        if self._bar is None or phase != self._phase:
            self._close()
            self._bar, self._phase = self._tqdm(total=total, desc=phase, initial=done, unit_scale=True), phase
        self._bar.total = total
        self._bar.update(done - self._bar.n)
        if done >= total:
            self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None

    def __del__(self) -> None:
        self._close()

"""How fast a harvest goes, said now and then."""

import time
from collections.abc import Callable

Note = Callable[[str], None]
"""Called with a line for the person who watches."""

_NOTE_SECONDS = 30.0


class Speed:
    """Tells now and then how fast it goes and how long it will take."""

    def __init__(self, done: int, total: int, note: Note | None) -> None:
        self._begun = self._told = time.monotonic()
        self._done, self._total, self._note = done, total, note
        self._tokens = self._reused = 0

    def count(self, tokens: int, reused: int) -> None:
        """Adds the donor tokens of a chunk of this process, and those of them that did not need a run of their own."""
        self._tokens += tokens
        self._reused += reused

    def tell(self, done: int) -> None:
        """Says so, where some time has passed or all is done; ``done`` counts the keys of all processes."""
        now = time.monotonic()
        if self._note is None or (now - self._told < _NOTE_SECONDS and done < self._total):
            return
        self._told, seconds = now, max(now - self._begun, 1e-9)
        rate = (done - self._done) / seconds
        left = f"{(self._total - done) / rate:,.0f} s left" if rate and done < self._total else f"in {seconds:,.0f} s"
        tokens, reused = self._tokens / seconds, self._reused / max(self._tokens, 1)
        speeds = f"{rate:,.0f} keys/s, {tokens:,.0f} donor tokens/s ({reused:.0%} of them reused)"
        self._note(f"donor: {done:,} of {self._total:,} keys, {speeds}, {left}")

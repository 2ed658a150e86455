"""What a probe found, candidate by candidate."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One candidate or baseline.

    Attributes:
        name: in a few words.
        kind: ``"candidate"`` or ``"baseline"``.
        loss: mean over seeds, nats a held-out hit.
        losses: by seed.
        worse: mean difference to the best candidate, and
        low, high: its 95 % interval over held-out documents.
        keys_per_second: of a harvest, measured on a few keys; None for baselines.
        bytes_per_row: of a bank; None for baselines.
        settings: what to give to `memgraft.harvest`: donor, tap, prefix, contexts, dtype; and the normalisation.
    """

    name: str
    kind: str
    loss: float
    losses: tuple[float, ...]
    worse: float
    low: float
    high: float
    keys_per_second: float | None
    bytes_per_row: int | None
    settings: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """What a probe found.

    Attributes:
        candidates: the best first.
        baselines: what knows something without a donor's rows of their keys.
        chosen: the fastest candidate that is not clearly worse than the best.
        sample: sizes of the sample, seconds, seeds.
    """

    candidates: tuple[Measured, ...]
    baselines: tuple[Measured, ...]
    chosen: Measured
    sample: dict[str, Any]

    def facts(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {
            "sample": self.sample,
            "chosen": self.chosen.name,
            "candidates": [vars(one) for one in self.candidates],
            "baselines": [vars(one) for one in self.baselines],
        }

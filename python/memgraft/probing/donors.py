"""Donors of a probe, one open at a time, and every way to read them, each once."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from memgraft.arguments import refuse_text
from memgraft.errors import ArgumentError
from memgraft.harvesting.donor import Donor, open_donor
from memgraft.harvesting.forward import check_taps
from memgraft.harvesting.occurrences import Contexts
from memgraft.harvesting.prefix import PrefixChoice, find_prefix
from memgraft.probing.reading import DonorReading, default_taps, remember
from memgraft.progress import Progress


class Donors:
    """One donor open at a time: several may not fit."""

    def __init__(self, compute_dtype: str, device: str, progress: Progress | None) -> None:
        self._compute_dtype, self.device, self._progress = compute_dtype, device, progress
        self._open: tuple[Any, Donor] | None = None

    def get(self, source: str | Path | Donor) -> Donor:
        """The open donor; the one before it is let go."""
        if isinstance(source, Donor):
            return source
        if self._open is None or self._open[0] != source:
            self._open = None
            opened = open_donor(source, compute_dtype=self._compute_dtype, device=self.device, progress=self._progress)
            self._open = (source, opened)
        return self._open[1]


def readings(
    donors: Sequence[str | Path | Donor],
    prefixes: Sequence[PrefixChoice],
    contexts: Sequence[Contexts | Sequence[int] | None],
) -> list[DonorReading]:
    """Every way to read, donor by donor; each once.

    Raises:
        ArgumentError: nothing to measure, or one text in place of a list.
    """
    refuse_text(donors=donors, prefixes=prefixes)
    found: list[DonorReading] = []
    for donor in donors:
        for prefix in prefixes:
            for around in contexts:
                reading = DonorReading(donor=donor, prefix=prefix, contexts=Contexts.of(around))
                if reading not in found:
                    found.append(reading)
    if not found:
        raise ArgumentError("donors, prefixes, contexts: expected at least one of each to measure, got none")
    return found


def each_once(
    asked: Iterable[DonorReading],
    donors: Donors,
    taps: Sequence[int] | None,
    found: dict[str, dict[str, Any]],
    note: Callable[[str], None] | None,
) -> list[DonorReading]:
    """The readings whose prefix no earlier one of the same donor and contexts has under another name.

    One with the BOS of a donor that has none is left out, and said, where others are left. ``found`` gets what ``auto``
    stands for.

    Raises:
        ArgumentError: no donor can read any of them so.
    """
    asked = list(asked)
    if len({repr(reading.prefix) for reading in asked}) == 1:
        return asked
    kept: list[DonorReading] = []
    seen: set[tuple[str, tuple[int, ...], Contexts | None]] = set()
    refused: ArgumentError | None = None
    for reading in asked:
        donor = donors.get(reading.donor)
        try:
            depths = check_taps(donor, default_taps(donor.num_blocks) if taps is None else taps)
            prefix = find_prefix(donor, reading.prefix, taps=depths, recorded=found.get(donor.fingerprint))
        except ArgumentError as error:
            if reading.prefix != "bos":
                raise
            refused = error
            if note is not None:
                note(f"left out: {error}")
            continue
        remember(found, donor, prefix)
        if (key := (str(reading.donor), prefix.ids, reading.contexts)) not in seen:
            seen.add(key)
            kept.append(reading)
    if not kept and refused is not None:
        raise refused
    return kept

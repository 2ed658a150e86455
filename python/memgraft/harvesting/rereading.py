"""A bank's keys as its donor reads them now, and how far the stored rows are from what that gives."""

from collections.abc import Sequence

import numpy as np

from memgraft.bank import Bank
from memgraft.bank.dtypes import FloatArray, decode, encode, value_dtype
from memgraft.errors import KeySetError
from memgraft.harvesting.donor import Donor
from memgraft.harvesting.forward import donor_values
from memgraft.harvesting.occurrences import find_occurrences
from memgraft.harvesting.packing import IntArray, Ragged
from memgraft.harvesting.sharing import relative_error
from memgraft.harvesting.text import TextCodec, key_texts
from memgraft.harvesting.windows import Windows
from memgraft.progress import Progress

ROUNDING = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 6e-3}
"""What another batch, processor or order of sums may do to a state, as a share of its norm."""
_MIDDLE = 1e-4
"""How far from the middle of two stored numbers a state may be rounded to either, as a share of it."""
_TIMES = 3.0
"""As many times what batching does to a sample is rounding, too."""
_OTHER_TYPE = 2.0
"""A run in another type than the recorded one may be as many times further away."""
_CLOSER = 3.0
"""A tap that fits so many times better than the recorded one is the one that was read."""
_BLOCK = 64


Pieces = list[list[int]]
"""Donor tokens of the one or more texts that a row is the mean of, without the head; none where it cannot be read."""


class Rereading:
    """Recomputes rows of one bank, each text of a key by itself.

    Args:
        bank: the bank.
        recipient: the tokenizer of its keys.
        donor: of the bank's width, with all of its taps.
        head: donor tokens before every key.
        windows: how a bank that was read in contexts cuts them out of its corpus; None where keys were read alone.
    """

    def __init__(
        self, bank: Bank, recipient: TextCodec, donor: Donor, head: tuple[int, ...], windows: Windows | None = None
    ) -> None:
        self.bank, self.recipient, self.donor, self.head, self.windows = bank, recipient, donor, head, windows
        self._ends: dict[int, IntArray] = {}
        earlier = (bank.manifest.donor.get("storage") or {}).get("from")
        self._earlier = None if earlier is None else value_dtype(earlier)
        self.dtype = value_dtype(bank.dtype)
        self.channel_scales = bank.scales(np.zeros(1, np.int32)) if self.dtype.scales == "channel" else None

    def keys(self, rows: IntArray) -> list[list[int]]:
        """The recipient's tokens of ``rows``."""
        return [list(self.bank.keys.key(int(row))) for row in rows]

    def alone(self, rows: IntArray) -> list[Pieces]:
        """The keys of ``rows`` alone."""
        keys, known = self.keys(rows), self.recipient.known
        # Decoders skip ids that they do not know.
        whole = [all(token < len(known) and known[token] for token in key) for key in keys]
        readable = [key if there else [] for key, there in zip(keys, whole, strict=True)]
        read = key_texts(readable, self.recipient, self.donor.tokenizer).donor_tokens
        return [[tokens] if tokens else [] for tokens in read]

    def recorded(self, rows: IntArray) -> list[Pieces]:
        """What the bank says that the donor read of ``rows``: the key alone, or windows of the corpus."""
        pieces = self.alone(rows)
        if self.windows is None:
            return pieces
        self.find_places(rows)
        for place, row in enumerate(rows.tolist()):
            ends = self._ends[row]
            if len(ends) and pieces[place]:
                bounds = self.windows.bounds(ends, np.full(len(ends), len(self.bank.keys.key(row))))
                tokens = self.windows.donor_tokens(bounds)
                read = [tokens.part(one, one + 1).tokens.tolist() for one in range(len(tokens))]
                pieces[place] = [each for each in read if each] or pieces[place]
        return pieces

    def find_places(self, rows: IntArray) -> None:
        """Looks up where ``rows`` are read in the corpus, in one pass for all that are not known yet."""
        new = np.array(sorted(set(rows.tolist()) - self._ends.keys()), np.int64)
        if self.windows is None or not len(new):
            return
        try:
            ends = find_occurrences(self.bank.keys.select(new), self.windows.corpus, self.windows.contexts)
        except KeySetError:  # none of them occurs: each is read alone
            ends = np.full((len(new), 1), -1, np.int64)
        self._ends |= {row: own[own >= 0] for row, own in zip(new.tolist(), ends, strict=True)}

    def states(
        self, pieces: list[Pieces], depths: Sequence[int], head: Sequence[int], *, max_tokens: int = 1
    ) -> FloatArray:
        """(N, depths, V) the mean state of each row's pieces behind ``head``; ``max_tokens`` 1 runs each alone."""
        keys = Ragged.of([piece for row in pieces for piece in row]).headed(head)
        values = donor_values(self.donor, tuple(depths), keys, max_tokens=max_tokens).float().numpy()
        numbers = np.array([len(row) for row in pieces])
        sums = np.add.reduceat(values, np.concatenate([[0], np.cumsum(numbers)[:-1]]), axis=0)
        means: FloatArray = (sums / numbers[:, None, None]).astype(np.float32)
        return means

    def errors(self, rows: IntArray, progress: Progress | None = None) -> tuple[FloatArray, bool]:
        """(N, taps) distances of the stored rows, NaN where a key has no text.

        And whether one tap deeper or shallower fits clearly better: where a few channels outweigh all others, that
        may be within rounding.
        """
        taps = np.array(self.bank.taps)
        depths = np.unique(np.concatenate([taps - 1, taps, taps + 1]))
        depths = depths[(depths >= 0) & (depths <= self.donor.num_blocks)]
        errors = np.full((3, len(rows), len(taps)), np.nan, np.float32)
        self.find_places(rows)
        for start in range(0, len(rows), _BLOCK):
            part = rows[start : start + _BLOCK]
            pieces = self.recorded(part)
            kept = np.flatnonzero([bool(each) for each in pieces])
            if len(kept):
                values = self.states([pieces[place] for place in kept], depths.tolist(), self.head)
                found = self.bank.floats(part[kept])
                for step in (-1, 0, 1):
                    if np.isin(taps + step, depths).all():
                        read = values[:, np.searchsorted(depths, taps + step)]
                        expected = self.stored(read)
                        errors[step + 1, start + kept] = distances(rounded_alike(found, expected, read), expected)
            if progress is not None:
                progress("rows", start + len(part), len(rows))
        known = np.flatnonzero(~np.isnan(errors[1]).any(1))
        if not len(known):
            return errors[1], False
        before, here, after = np.median(errors[:, known].mean(2), axis=1)
        return errors[1], bool(_CLOSER * before < here or _CLOSER * after < here)

    def stored(self, values: FloatArray) -> FloatArray:
        """What the bank holds of ``values (N, taps, V)``, as float32; NaN for rows that are not finite."""
        finite = np.isfinite(values).all(axis=(1, 2), keepdims=True)
        values = np.where(finite, values, 0)
        if self._earlier is not None and self._earlier.scales != "channel":  # channel scales are gone
            codes, row_scales = encode(values, self._earlier)
            values = decode(codes, self._earlier, row_scales)
        codes, row_scales = encode(values, self.dtype, self.channel_scales)
        floats = decode(codes, self.dtype, row_scales if self.dtype.scales == "row" else self.channel_scales)
        kept: FloatArray = np.where(finite, floats, np.nan).astype(np.float32)
        return kept

    def steps(self, rows: IntArray) -> FloatArray:
        """(N, taps) the distance between neighbouring stored numbers, as a share of the row's norm."""
        if self.channel_scales is None:
            return np.full((len(rows), len(self.bank.taps)), self.dtype.largest_step, np.float32)
        norms = np.linalg.norm(self.bank.floats(rows), axis=2)
        steps: FloatArray = (np.linalg.norm(self.channel_scales, axis=1) / norms.clip(1e-30)).astype(np.float32)
        return steps

    def limits(self, rows: IntArray, rounding: float) -> FloatArray:
        """(N, taps) the largest error that a ``rounding`` of the donor's run explains.

        It moves a share ``rounding / step`` of the stored numbers to a neighbour, a ``step`` away.
        """
        limits: FloatArray = (rounding + np.sqrt(rounding * self.steps(rows))).astype(np.float32)
        return limits

    def rounding(self, rows: IntArray, recorded: str) -> float:
        """What may lie between the recorded run and this one, both exact but for their types."""
        most = ROUNDING[self.donor.compute_dtype]
        if self._earlier is not None and self._earlier.scales == "channel":
            most += self._earlier.largest_step
        if recorded in ROUNDING and recorded != self.donor.compute_dtype:
            most = max(most, _OTHER_TYPE * ROUNDING[recorded])
        tokens = [piece for row in self.recorded(rows[:_BLOCK]) for piece in row]
        if self.donor.compute_dtype == "float32" or not tokens:
            return most
        keys = Ragged.of(tokens).headed(self.head)
        alone = donor_values(self.donor, self.bank.taps, keys, max_tokens=1)
        batched = relative_error(donor_values(self.donor, self.bank.taps, keys, max_tokens=4096), alone)
        return max(most, _TIMES * batched) if np.isfinite(batched) else most


def rounded_alike(found: FloatArray, expected: FloatArray, values: FloatArray) -> FloatArray:
    """``found``, but ``expected`` where the two are what ``values`` between them is rounded to, down and up.

    A state that lies in the middle of two stored numbers becomes either, and where it makes up most of its row, that is
    as far away as another run would be.
    """
    with np.errstate(invalid="ignore"):  # rows that are not finite: nothing is alike
        largest = np.maximum(np.abs(values), np.linalg.norm(values, axis=-1, keepdims=True) / np.sqrt(values.shape[-1]))
        gap = np.abs(found - expected)
        alike = np.isfinite(gap) & (np.abs(found - values) <= gap / 2 + _MIDDLE * largest)
    kept: FloatArray = np.where(alike, expected, found)
    return kept


def distances(found: FloatArray, expected: FloatArray) -> FloatArray:
    """(..., ) distances over the last axis, as a share of the expected norm."""
    wanted = expected.astype(np.float64)
    norms = np.linalg.norm(wanted, axis=-1).clip(1e-30)
    apart: FloatArray = (np.linalg.norm(found - wanted, axis=-1) / norms).astype(np.float32)
    return apart

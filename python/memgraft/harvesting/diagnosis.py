"""Why stored rows are not what their donor says: likely mistakes are tried, and the one that gives the rows is named.

A mistake in what the donor reads (the text, what stands before it, another row's key) comes with any depth; mistakes in
how states are stored are tried on the recorded reading alone.
"""

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from memgraft.bank.dtypes import DTYPES, FloatArray
from memgraft.harvesting.donor import Donor, open_donor
from memgraft.harvesting.packing import BoolArray, IntArray
from memgraft.harvesting.prefix import candidates
from memgraft.harvesting.rereading import ROUNDING, Pieces, Rereading, distances

Kind = Literal[
    "donor",
    "tokenizer",
    "prefix",
    "contexts",
    "tap",
    "norm",
    "position",
    "shift",
    "scale",
    "dtype",
    "compute_dtype",
    "damage",
]

_LOOKED_AT, _BATCH = 48, 1024
_SHIFTS = (1, -1, 2, -2)
_ROUNDED = 0.3
"""Rows further away than this are not a matter of the compute type."""
_EXACTER = 3.0
_FEWEST_FOR_CHANNELS, _SCALED = 8, 0.02


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that differs."""

    kind: Kind
    text: str
    way_out: str
    num_rows: int
    """Sampled rows that it explains."""

    def __str__(self) -> str:
        return f"{self.text}; {self.way_out}"


@dataclass(frozen=True, kw_only=True)
class _Guess:
    """A mistake that was tried: which rows it gives, and how exactly."""

    kind: Kind
    text: str
    way_out: str
    fits: BoolArray
    error: float


def explain(
    reading: Rereading,
    rows: IntArray,
    rounding: float,
    *,
    source: str | Path | Donor,
    device: str | None = None,
) -> list[Finding]:
    """Says why the stored values of ``rows`` differ; what explains most rows comes first.

    Args:
        reading: what the bank records.
        rows: rows that differ, ascending. At most 48 of them are looked at.
        rounding: see `Rereading.limits`.
        source: where the donor can be opened in another type.
        device: where it is run.

    Returns:
        One finding at least. What no mistake explains is of kind ``donor`` where no row fits, else ``damage``.
    """
    looked = rows[np.unique(np.linspace(0, len(rows) - 1, min(_LOOKED_AT, len(rows))).astype(np.int64))]
    unread = np.array([not each for each in reading.alone(looked)])
    findings: list[Finding] = []
    if unread.any():
        findings.append(
            Finding(
                kind="tokenizer",
                text=f"another recipient tokenizer: {_of(unread.sum(), looked)} have keys without a usable text in it",
                way_out="name the tokenizer.json that tokenised the corpus of the keys",
                num_rows=int(unread.sum()),
            )
        )
    kept = looked[~unread]
    left = np.ones(len(kept), bool)
    guesses = list(_guesses(reading, kept, rounding)) if len(kept) else []
    while left.any() and guesses:
        number = max(int((guess.fits & left).sum()) for guess in guesses)
        equal = [guess for guess in guesses if int((guess.fits & left).sum()) == number]
        # The first, which is the simplest, unless another one is far more exact.
        best = next(guess for guess in equal if guess.error <= _EXACTER * min(each.error for each in equal))
        if number < min(2, len(kept)):  # one of many fits by chance
            break
        text = f"{best.text} ({_of(number, looked)})"
        findings.append(Finding(kind=best.kind, text=text, way_out=best.way_out, num_rows=number))
        left &= ~best.fits
        guesses.remove(best)
    for guess in _coarser(reading, kept[left], source, device) if left.any() else ():
        number = int(guess.fits.sum())
        if number:
            text = f"{guess.text} ({_of(number, looked)})"
            findings.append(Finding(kind=guess.kind, text=text, way_out=guess.way_out, num_rows=number))
            left[left] = ~guess.fits
    if left.any():
        findings.append(_unexplained(reading, looked, kept[left], alone=not findings))
    return sorted(findings, key=lambda finding: -finding.num_rows)


def _of(number: int, looked: IntArray) -> str:
    return f"{number} of {len(looked)} differing rows looked at"


def _unexplained(reading: Rereading, looked: IntArray, rows: IntArray, alone: bool) -> Finding:
    facts, listed = reading.bank.manifest.donor, ", ".join(map(str, rows[:8].tolist()))
    some = f"{_of(len(rows), looked)}, such as {listed}"
    if alone and len(rows) == len(looked):
        text = f"no tap, prefix, tokenizer, shift, scale or type of {facts.get('name')} gives these values ({some})"
        way_out = "they are another donor's, or damaged: verify the bank without --sample, or harvest it again"
        return Finding(kind="donor", text=text, way_out=way_out, num_rows=len(rows))
    text, way_out = f"rows that nothing explains ({some})", "verify the bank without --sample, or harvest it again"
    return Finding(kind="damage", text=text, way_out=way_out, num_rows=len(rows))


def _guesses(reading: Rereading, rows: IntArray, rounding: float) -> Iterator[_Guess]:
    found = reading.bank.floats(rows)
    limits = reading.limits(rows, rounding)

    def guess(kind: Kind, text: str, way_out: str, expected: FloatArray) -> _Guess:
        apart = distances(found, expected)
        return _Guess(
            kind=kind, text=text, way_out=way_out, fits=np.asarray((apart <= limits).all(1)), error=float(apart.mean())
        )

    again = "harvest the bank again"
    zeros = (found == 0).all(axis=(1, 2))
    yield _Guess(
        kind="damage", text="rows that hold zeros: they were never written", way_out=again, fits=zeros, error=0.0
    )
    taps = list(reading.bank.taps)
    depths = list(range(reading.donor.num_blocks + 1))
    recorded = reading.recorded(rows)
    if taps[-1] == reading.donor.num_blocks:
        values = reading.states(recorded, taps, reading.head, max_tokens=_BATCH)
        values[:, -1] = _after_norm(reading, recorded)
        text = f"tap {taps[-1]} was read after the donor's final norm"
        yield guess("norm", text, f"{again}: a tap is the residual stream before it", reading.stored(values))
    for kind, text, way_out, pieces, head in _readings(reading, rows, recorded):
        values = reading.states(pieces, depths, head, max_tokens=_BATCH)
        nearest = _nearest(found, values)
        columns = [taps] if nearest == taps else [taps, nearest]
        for column in columns:
            other = "" if column == taps else f"tap {_list(column)} instead of {_list(taps)}"
            what, fix = (kind, way_out) if text else ("tap", f"{again} with taps {_list(taps)}")
            said = ", ".join(part for part in (text, other) if part)
            if said:
                yield guess(what, said, fix, reading.stored(values[:, column]))
        if not text:
            yield from _stored_otherwise(reading, rows, found, values[:, taps], rounding)


def _coarser(reading: Rereading, rows: IntArray, source: str | Path | Donor, device: str | None) -> Iterator[_Guess]:
    """Right states with the rounding of another compute type; which one, the distance from a run in each tells."""
    donor, taps, found = reading.donor, reading.bank.taps, reading.bank.floats(rows)
    pieces = reading.recorded(rows)
    expected = reading.stored(reading.states(pieces, taps, reading.head))
    if not float(np.median(distances(found, expected))) < _ROUNDED:
        return
    apart: dict[str, FloatArray] = {}
    for name in ROUNDING:
        if name != donor.compute_dtype and (other := _in_type(source, donor, name, device)) is not None:
            run = Rereading(reading.bank, reading.recipient, other, reading.head, reading.windows)
            apart[name] = distances(found, reading.stored(run.states(pieces, taps, reading.head)))
    if apart:
        name = min(apart, key=lambda name: float(apart[name].mean()))
        limits = reading.limits(rows, 2 * ROUNDING[name])
        yield _Guess(
            kind="compute_dtype",
            text=f"the donor ran in {name}, not in {donor.compute_dtype}",
            way_out=f"harvest the bank again with compute dtype {donor.compute_dtype}, or verify with {name}",
            fits=np.asarray((apart[name] <= limits).all(1)),
            error=float(apart[name].mean()),
        )


def _readings(
    reading: Rereading, rows: IntArray, own: list[Pieces]
) -> Iterator[tuple[Kind, str, str, list[Pieces], Sequence[int]]]:
    """What the donor may have read instead, behind which head; the recorded reading comes first, without a text."""
    donor, head = reading.donor, reading.head
    again = "harvest the bank again"
    yield "tap", "", "", own, head
    for name, ids in candidates(donor).items():
        if ids != head:
            before = reading.bank.manifest.donor.get("prefix_name", f"the tokens {list(head)}" if head else "none")
            text = f"behind another prefix: {name} {list(ids)} instead of {before} {list(head)}"
            yield "prefix", text, f"{again} with the prefix that you want", own, ids
    if reading.windows is not None:
        text = "the keys were read alone, not in contexts"
        yield "contexts", text, f"{again} with the contexts that you want", reading.alone(rows), head
    shifted = {shift: np.clip(rows + shift, 0, reading.bank.num_rows - 1) for shift in _SHIFTS}
    reading.find_places(np.concatenate(list(shifted.values())))
    for shift, there in shifted.items():
        pieces = [theirs or mine for theirs, mine in zip(reading.recorded(there), own, strict=True)]
        text = f"shifted rows: row i holds the value of key i{shift:+d}"
        yield "shift", text, f"the values belong to keys in another order; {again}", pieces, head
    short = [[piece[:-1] or piece for piece in row] for row in own]
    yield "position", "the state before the last token, not at it", again, short, head
    if reading.windows is None:
        yield from _other_texts(reading, rows, own, again)


def _other_texts(
    reading: Rereading, rows: IntArray, own: list[Pieces], again: str
) -> Iterator[tuple[Kind, str, str, list[Pieces], Sequence[int]]]:
    """Keys that were made text in another way, or not at all."""
    keys, donor = reading.keys(rows), reading.donor
    if max(map(max, keys)) < donor.vocab_size:
        text = "the recipient's ids were given to the donor as they are"
        yield "tokenizer", text, f"{again} with the recipient's tokenizer", [[key] for key in keys], reading.head
    texts = reading.recipient.decode_inside(keys)
    variants = {
        "without the spaces around them": [text.strip() for text in texts],
        "with a space before them": [" " + text.lstrip(" ") for text in texts],
    }
    for name, other in variants.items():
        pieces = [[ids] if ids else mine for ids, mine in zip(donor.tokenizer.encode_inside(other), own, strict=True)]
        text = f"the donor read the keys' texts {name}"
        yield "tokenizer", text, f"{again}: a key is read as inside a document", pieces, reading.head


def _nearest(found: FloatArray, values: FloatArray) -> list[int]:
    """For each stored tap the depth of ``values (N, depths, V)`` that most rows are nearest to."""
    return [
        int(np.median(distances(found[:, None, place], values), axis=0).argmin()) for place in range(found.shape[1])
    ]


def _list(taps: Sequence[int]) -> str:
    return ",".join(map(str, taps))


def _stored_otherwise(
    reading: Rereading, rows: IntArray, found: FloatArray, expected: FloatArray, rounding: float
) -> Iterator[_Guess]:
    """Right states in wrong numbers: scaled, or bits of another type."""
    limits = reading.limits(rows, rounding) + reading.steps(rows)

    def guess(kind: Kind, text: str, way_out: str, given: FloatArray) -> _Guess:
        apart = distances(given, expected)
        return _Guess(
            kind=kind, text=text, way_out=way_out, fits=np.asarray((apart <= limits).all(1)), error=float(apart.mean())
        )

    again = "harvest the bank again, or requantise the bank that it was made of again"
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        rows_scale = (found * expected).sum(2) / np.square(found).sum(2)
        one = np.median(rows_scale, axis=0)
        if _scaled(one):
            text = f"values are {_numbers(1 / one)} times the donor's"
            yield guess("scale", text, again, found * one[:, None].astype(np.float32))
        if _scaled(rows_scale):
            norms = np.linalg.norm(found, axis=2)
            normalised = bool((norms.std(0) <= 0.02 * norms.mean(0)).all())
            text = "values were normalised, each row by itself" if normalised else "each row has a wrong scale"
            yield guess("scale", text, again, found * rows_scale[:, :, None].astype(np.float32))
        channels = (found * expected).sum(0) / np.square(found).sum(0)
        if len(rows) >= _FEWEST_FOR_CHANNELS and _scaled(channels):
            yield guess("scale", "each channel has a wrong scale", again, found * channels.astype(np.float32))
        for other in DTYPES.values():
            if other is reading.dtype or other.size != reading.dtype.size or other.scales or reading.dtype.scales:
                continue
            bits: npt.NDArray[Any] = reading.bank.values(rows)
            limits = limits + np.float32(other.largest_step)
            text = f"{other.name} bits that are marked as {reading.bank.dtype}"
            yield guess("dtype", text, again, other.decoder(bits.view(other.storage)))


def _scaled(factors: FloatArray) -> bool:
    """Whether most of ``factors`` are more than rounding."""
    return bool(np.median(np.abs(factors - 1)) > _SCALED)


def _numbers(numbers: FloatArray) -> str:
    return ", ".join(f"{number:.3g}" for number in numbers.tolist())


@torch.inference_mode()
def _after_norm(reading: Rereading, pieces: list[Pieces]) -> FloatArray:
    """(N, V) means of the donor's last states as its vocabulary projection gets them."""
    model = reading.donor.model
    device = next(model.parameters()).device
    means = []
    for row in pieces:
        ids = [torch.tensor([[*reading.head, *piece]], device=device) for piece in row]
        states = [model.base_model(input_ids=each, use_cache=False).last_hidden_state[0, -1] for each in ids]
        means.append(torch.stack(states).float().mean(0))
    stacked: FloatArray = torch.stack(means).cpu().numpy()
    return stacked


def _in_type(source: str | Path | Donor, donor: Donor, name: str, device: str | None) -> Donor | None:
    """The donor in another compute type; None where memory does not hold it twice."""
    try:
        if isinstance(source, Donor):
            model = copy.deepcopy(donor.model).to(getattr(torch, name))
            return dataclasses.replace(donor, model=model, compute_dtype=name)
        return open_donor(source, compute_dtype=name, device=device)
    except (torch.OutOfMemoryError, MemoryError):
        return None

"""Ranks what a harvest may be made of by what the values know of the next token, on held-out hits of a sample of keys.

The exam is drawn evenly from all held-out hits, the sampled keys are those of the exam and of some training hits. For
each candidate a linear softmax from the normalised value to the next token is fitted on training hits of these keys,
and its loss on the exam is the figure. Candidates that differ in tap, storage type or normalisation share a pass over
the donor. Beside them stand what next-token counts of the keys know, embeddings, frequencies alone, shuffled rows.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from memgraft.bank.dtypes import channel_scales, decode, encode, value_dtype
from memgraft.corpus import Corpus
from memgraft.errors import ArgumentError, FingerprintError, KeySetError
from memgraft.harvesting.donor import Donor, best_device, open_donor
from memgraft.harvesting.occurrences import Contexts
from memgraft.harvesting.prefix import PrefixChoice
from memgraft.harvesting.setup import refuse_taps
from memgraft.index import NgramIndex
from memgraft.keyset import KeySet
from memgraft.mining.facts import mined_from, mined_part
from memgraft.probing.embeddings import recipient_embeddings
from memgraft.probing.hits import Hits, Sample, draw, hits_of
from memgraft.probing.reading import Bench, Pass, Reading, prefix_name
from memgraft.probing.softmax import (
    NORMALISATIONS,
    Classes,
    Fit,
    FloatArray,
    count_losses,
    difference_interval,
    normalised,
    softmax_losses,
    unigram_losses,
)
from memgraft.progress import Progress, callback

Note = Callable[[str], None]

_MOST_KEYS, _LEAST_KEYS, _TRIED_KEYS = 6000, 400, 64
_EXAM_HITS = 4000
_DONOR_SHARE = 0.5
"""The part of the time that the donors may take; the fits have the rest."""


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


def probe(
    keys: KeySet,
    *,
    recipient_tokenizer: Any,
    corpus: Corpus,
    held_out: Corpus | None = None,
    donors: Sequence[str | Path | Donor],
    taps: Sequence[int] | None = None,
    prefixes: Sequence[PrefixChoice] = ("auto",),
    contexts: Sequence[Contexts | Sequence[int] | None] = (None,),
    dtypes: Sequence[str] = ("bf16",),
    normalisations: Sequence[str] = ("rms",),
    recipient: str | Path | None = None,
    minutes: float = 10.0,
    num_keys: int | None = None,
    seeds: int = 3,
    seed: int = 0,
    fit: Fit | None = None,
    compute_dtype: str = "auto",
    device: str | None = None,
    batch_tokens: int = 1024,
    progress: Progress | bool | None = None,
    note: Note | None = None,
) -> ProbeResult:
    """Measures every combination of donors, taps, prefixes, contexts, types and normalisations on a sample of keys.

    Args:
        keys: what was mined; nothing has to be harvested.
        recipient_tokenizer: path of ``tokenizer.json`` (or its folder), or a tokenizer.
        corpus: what the keys were mined from, or the whole that it was split off.
        held_out: other documents; by default what ``corpus`` was split into when the keys were mined.
        donors: as `memgraft.harvest` takes one.
        taps: ascending depths; by default a quarter, half, three quarters and all of each donor's blocks.
        prefixes: as `memgraft.harvest` takes one.
        contexts: ``(k, L)``, `Contexts`, or None for the key alone.
        dtypes: storage types.
        normalisations: ``"rms"`` (the graft's default), ``"none"``.
        recipient: a transformers folder, whose input embeddings, the mean over a key's tokens, are a baseline; without
            it the first donor's own are.
        minutes: bound of the whole: fewer keys are drawn, then fewer seeds taken, where it would take longer.
        num_keys: sampled keys, whatever the minutes; with it the losses follow from the arguments alone.
        seeds: fits of each candidate, each on other training hits.
        seed: of the sample and the fits.
        fit: how the softmax is fitted.
        compute_dtype: type of the donors' runs, as for `open_donor`.
        device: as for `memgraft.harvest`; the softmax is fitted there, too.
        batch_tokens: padded donor tokens per batch.
        progress: True for bars, or called as ``progress(stage, done, total)``.
        note: called with lines for the person who watches.

    Raises:
        ArgumentError: nothing to measure, options out of range, or no held-out text.
        FingerprintError: the corpus is not the one that was mined, or the held-out text is part of it.
        KeySetError: no sampled key has a text for all donors.
        CorpusError: text without a hit.
        DonorError, TokenError: as for `memgraft.harvest`.
    """
    begun = time.monotonic()
    progress, fit = callback(progress), fit or Fit()
    readings = _readings(donors, prefixes, contexts)
    _check(donors, taps, dtypes, normalisations, minutes, num_keys, seeds)
    training_part = mined_part(keys.metadata, corpus)
    held_out = _held_out(keys, corpus, training_part, held_out)
    index = NgramIndex.build(keys)
    training, exam = hits_of(index, training_part), hits_of(index, held_out)
    bench = Bench(recipient_tokenizer=recipient_tokenizer, corpus=training_part, batch_tokens=batch_tokens)
    donors_open = _Donors(compute_dtype, best_device(device), progress)
    bounded = num_keys is None
    if num_keys is None:
        num_keys = _affordable(bench, donors_open, readings, taps, keys, training, minutes, seed)
    sample = draw(keys, training, exam, num_keys=num_keys, num_exam=_EXAM_HITS, seed=seed)
    passes = [bench.read(reading, donors_open.get(reading.donor), taps, sample.keys, progress) for reading in readings]
    sample, passes = _in_common(sample, passes)
    if note is not None:
        note(
            f"{len(sample.keys):,} keys, {len(sample.exam):,} held-out hits on them, "
            f"{len(sample.training):,} training hits"
        )
    fits = _Fits(sample, keys.vocab_size, fit, seed, best_device(None if device == "auto" else device))
    candidates = list(_candidates(passes, dtypes, normalisations))
    if recipient is not None:
        embedded = ("the recipient's embeddings, mean over the key", recipient_embeddings(recipient, sample.keys))
    else:
        embedded = (f"input embeddings of {passes[0].reading.name}, mean over the key", passes[0].embeddings)
    if bounded:
        seeds = fits.affordable(candidates[0][1](), seeds, len(candidates) + 2, begun + 60 * minutes)
    numbers = [seed + number for number in range(seeds)]

    def fitted(stage: int, values: FloatArray) -> FloatArray:
        losses = np.stack([fits.losses(values, number) for number in numbers])
        if progress is not None:
            progress("fits", stage, len(candidates) + 2)
        return losses

    losses = [fitted(place + 1, values()) for place, (_, values) in enumerate(candidates)]
    best = int(np.argmin([each.mean() for each in losses]))
    shuffled = candidates[best][1]()[np.random.default_rng(seed).permutation(len(sample.keys))]
    by_counts, strength = count_losses(sample.training, sample.exam, fits.classes)
    others = {
        f"counts: next tokens seen after the key, with {strength:g} tokens of all text": by_counts[None],
        embedded[0]: fitted(len(candidates) + 1, normalised(embedded[1], "rms")),
        "shuffled rows of the best": fitted(len(candidates) + 2, shuffled),
        "frequencies of tokens alone": unigram_losses(sample.exam, fits.classes)[None],
    }

    def measured(name: str, kind: str, each: FloatArray, **facts: Any) -> Measured:
        mean = each.mean(0)
        low, high = difference_interval(mean, losses[best].mean(0), sample.exam.documents, seed)
        return Measured(
            name=name,
            kind=kind,
            loss=float(mean.mean()),
            losses=tuple(float(one) for one in each.mean(1)),
            worse=float((mean - losses[best].mean(0)).mean()),
            low=low,
            high=high,
            **facts,
        )

    ranked = [
        measured(each=each, kind="candidate", **facts) for each, (facts, _) in zip(losses, candidates, strict=True)
    ]
    nothing: dict[str, Any] = {"keys_per_second": None, "bytes_per_row": None, "settings": {}}
    beside = [measured(name, "baseline", each, **nothing) for name, each in others.items()]
    ranked.sort(key=lambda one: one.loss)
    return ProbeResult(
        candidates=tuple(ranked),
        baselines=tuple(sorted(beside, key=lambda one: one.loss)),
        chosen=max((one for one in ranked if one.low <= 0), key=lambda one: one.keys_per_second or 0.0),
        sample={
            "num_keys": len(sample.keys),
            "num_exam_hits": len(sample.exam),
            "num_training_hits": min(len(sample.training), fit.num_hits),
            "num_classes": len(fits.classes.log_prior),
            "seeds": numbers,
            "seconds": round(time.monotonic() - begun, 1),
            "keys": keys.fingerprint,
            "corpus": training_part.fingerprint,
            "held_out": held_out.fingerprint,
        },
    )


class _Donors:
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


class _Fits:
    """Fits the softmax on one sample."""

    def __init__(self, sample: Sample, vocab_size: int, fit: Fit, seed: int, device: str) -> None:
        self.classes = Classes.of(sample.training.targets, vocab_size, fit.num_classes)
        self._sample, self._fit, self._seed, self._device = sample, fit, seed, device

    def losses(self, values: FloatArray, seed: int) -> FloatArray:
        """(E,) losses of the exam."""
        return softmax_losses(
            values, self._sample.training, self._sample.exam, self.classes, self._fit, seed=seed, device=self._device
        )

    def affordable(self, values: FloatArray, seeds: int, number: int, deadline: float) -> int:
        """How many seeds of ``number`` fits are done by ``deadline``, at least one."""
        begun = time.monotonic()
        self.losses(values, self._seed)
        now = time.monotonic()
        return max(1, min(seeds, int((deadline - now) / (number * (now - begun)))))


def _readings(
    donors: Sequence[str | Path | Donor],
    prefixes: Sequence[PrefixChoice],
    contexts: Sequence[Contexts | Sequence[int] | None],
) -> list[Reading]:
    """Every way to read, donor by donor; each once."""
    found: list[Reading] = []
    for donor in donors:
        for prefix in prefixes:
            for around in contexts:
                reading = Reading(donor=donor, prefix=prefix, contexts=Contexts.of(around))
                if reading not in found:
                    found.append(reading)
    if not found:
        raise ArgumentError("donors, prefixes, contexts: expected at least one of each to measure, got none")
    return found


def _check(
    donors: Sequence[str | Path | Donor],
    taps: Sequence[int] | None,
    dtypes: Sequence[str],
    normalisations: Sequence[str],
    minutes: float,
    num_keys: int | None,
    seeds: int,
) -> None:
    """Refuses what can be refused before a donor is opened."""
    if not dtypes or not normalisations or seeds < 1 or not minutes > 0 or (num_keys is not None and num_keys < 8):
        raise ArgumentError(
            f"expected at least one dtype, normalisation and seed, some minutes and 8 keys; found dtypes {dtypes}, "
            f"normalisations {normalisations}, seeds {seeds}, minutes {minutes}, num_keys {num_keys}"
        )
    for dtype in dtypes:
        value_dtype(dtype)
    if strange := sorted(set(normalisations) - set(NORMALISATIONS)):
        raise ArgumentError(f"normalisations: expected {', '.join(NORMALISATIONS)}, found {strange[0]!r}")
    for donor in donors if taps is not None else ():
        refuse_taps(donor, taps or ())


def _held_out(keys: KeySet, corpus: Corpus, training: Corpus, held_out: Corpus | None) -> Corpus:
    if held_out is None:
        split = keys.metadata.get("split") or {}
        if split.get("of") != corpus.fingerprint:
            raise ArgumentError(
                f"{corpus.paths[0]}: expected keys that were mined from a split of it, which says what is held out, "
                "found others; give held_out"
            )
        return corpus.split(held_out=split["held_out"], seed=split["seed"])[1]
    if held_out.fingerprint == training.fingerprint or mined_from(keys.metadata, held_out):
        raise FingerprintError(
            f"{held_out.paths[0]}: expected documents that the keys were not mined from, found some that they were; "
            "name text that was held out"
        )
    return held_out


def _affordable(
    bench: Bench,
    donors: _Donors,
    readings: Sequence[Reading],
    taps: Sequence[int] | None,
    keys: KeySet,
    training: Hits,
    minutes: float,
    seed: int,
) -> int:
    """So many keys that all passes take half the time, by a first few keys."""
    hit = np.random.default_rng(seed).permutation(np.unique(training.rows))[:_TRIED_KEYS]
    few = keys.select(np.sort(hit))
    seconds = 0.0
    for reading in readings:
        read = bench.read(reading, donors.get(reading.donor), taps, few)
        seconds += 1 / read.keys_per_second[-1]
    return int(np.clip(_DONOR_SHARE * 60 * minutes / seconds, _LEAST_KEYS, _MOST_KEYS))


def _in_common(sample: Sample, passes: Sequence[Pass]) -> tuple[Sample, list[Pass]]:
    """The keys that every donor has a text for, since all are examined on the same hits."""
    rows = passes[0].rows
    for one in passes[1:]:
        rows = np.intersect1d(rows, one.rows)
    kept = sample.of_rows(rows) if len(rows) else sample
    if not len(rows) or not len(kept.exam) or not len(kept.training):
        raise KeySetError(
            f"of {len(sample.keys)} sampled keys none has a text for all donors and is hit; draw more keys"
        )
    return kept, [one.of_rows(rows) for one in passes]


def _candidates(
    passes: Sequence[Pass], dtypes: Sequence[str], normalisations: Sequence[str]
) -> Iterator[tuple[dict[str, Any], Callable[[], FloatArray]]]:
    """Facts of each candidate, and what makes its values."""
    for one in passes:
        around = one.reading.contexts
        read = prefix_name(one.prefix, one.reading.prefix)
        if around is not None:
            read = f"mean of {around.occurrences} contexts of {around.left}, {read}"
        for place, tap in enumerate(one.taps):
            for dtype in dtypes:
                for how in normalisations:
                    extra = [dtype] if len(dtypes) > 1 else []
                    extra += [f"normalised {how}"] if len(normalisations) > 1 else []
                    facts = {
                        "name": ", ".join([f"{one.reading.name} tap {tap}", read, *extra]),
                        "keys_per_second": round(one.keys_per_second[place], 1),
                        "bytes_per_row": one.values.shape[2] * value_dtype(dtype).size,
                        "settings": {
                            "donor": one.reading.name,
                            "tap": tap,
                            "prefix": list(one.prefix["prefix"]),
                            "prefix_name": one.prefix["prefix_name"],
                            "contexts": None if around is None else [around.occurrences, around.left],
                            "dtype": dtype,
                            "normalisation": how,
                            "compute_dtype": one.compute_dtype,
                        },
                    }
                    yield (
                        facts,
                        lambda one=one, place=place, dtype=dtype, how=how: normalised(  # type: ignore[misc]
                            stored(one.values[:, place], dtype), how
                        ),
                    )


def stored(values: FloatArray, dtype: str) -> FloatArray:
    """(N, V) values after they were stored as ``dtype``."""
    kind = value_dtype(dtype)
    scales = channel_scales(values[:, None]) if kind.scales == "channel" else None
    codes, row_scales = encode(values[:, None], kind, scales)
    found: FloatArray = decode(codes, kind, row_scales if kind.scales == "row" else scales)[:, 0]
    return found

"""Ranks what a harvest may be made of by what the values know of the next token, on held-out hits of a sample of keys.

The exam is drawn evenly from all held-out hits, the sampled keys are those of the exam and of some training hits. For
each candidate a linear softmax from the normalised value to the next token is fitted on training hits of these keys,
and its loss on the exam is the figure. Candidates that differ in tap, storage type or normalisation share a pass over
the donor. Beside them stand what next-token counts of the keys know, embeddings, frequencies alone, shuffled rows.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from memgraft.arguments import refuse_paths
from memgraft.corpus import Corpus
from memgraft.distinct import distinct
from memgraft.errors import DonorError
from memgraft.harvesting.asked import recipient_codec
from memgraft.harvesting.devices import best_device
from memgraft.harvesting.donor import Donor
from memgraft.harvesting.occurrences import Contexts
from memgraft.harvesting.prefix import PrefixChoice
from memgraft.harvesting.speed import Note
from memgraft.index import NgramIndex
from memgraft.keyset import KeySet
from memgraft.mining.origin import held_out_part, mined_part
from memgraft.probing.asked import check_probe
from memgraft.probing.candidates import candidates_of, in_common
from memgraft.probing.donors import Donors, each_once, readings
from memgraft.probing.embeddings import recipient_embeddings
from memgraft.probing.fitting import Fits
from memgraft.probing.hits import Hits, draw, hits_of
from memgraft.probing.reading import Bench, DonorReading
from memgraft.probing.result import Measured, ProbeResult
from memgraft.probing.softmax import Fit, FloatArray, count_losses, difference_interval, normalised, unigram_losses
from memgraft.progress import Progress, callback

__all__ = ["Measured", "ProbeResult", "probe"]

Found = TypeVar("Found")

_MOST_KEYS, _LEAST_KEYS, _TRIED_KEYS = 6000, 400, 64
_EXAM_HITS = 4000
_DONOR_SHARE = 0.5
"""The part of the time that the donors may take; the fits have the rest."""


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
        minutes: bound of the whole: fewer keys are drawn, down to 400, then fewer seeds taken and fewer training hits
            fitted, down to 10,000, where it would take longer.
        num_keys: sampled keys, whatever the minutes; with it the losses follow from the arguments alone.
        seeds: fits of each candidate, each on other training hits.
        seed: of the sample and the fits.
        fit: how the softmax is fitted.
        compute_dtype: type of the donors' runs, as for `open_donor`.
        device: as for `memgraft.harvest`; the softmax is fitted there, too.
        batch_tokens: padded donor tokens per batch.
        progress: True for bars, or called as ``progress(phase, done, total)``.
        note: called with lines for the person who watches.

    Raises:
        ArgumentError: nothing to measure, options out of range, or no held-out text.
        FingerprintError: the corpus is not the one that was mined, or the held-out text is part of it.
        KeySetError: no sampled key has a text for all donors.
        CorpusError: text without a hit.
        DonorError, TokenError: as for `memgraft.harvest`.
    """
    refuse_paths(keys=keys, corpus=corpus, held_out=held_out)
    begun = time.monotonic()
    progress, fit = callback(progress), fit or Fit()
    asked = readings(donors, prefixes, contexts)
    check_probe(
        donors=donors,
        taps=taps,
        contexts=contexts,
        dtypes=dtypes,
        normalisations=normalisations,
        minutes=minutes,
        num_keys=num_keys,
        seeds=seeds,
        compute_dtype=compute_dtype,
    )
    codec = recipient_codec(keys, recipient_tokenizer)
    training_part = mined_part(keys.metadata, corpus)
    held_out = held_out_part(keys, corpus, held_out)
    index = NgramIndex.build(keys)
    training, exam = hits_of(index, training_part), hits_of(index, held_out)
    bench = Bench(recipient=codec, corpus=training_part, batch_tokens=batch_tokens)
    donors_open = Donors(compute_dtype, best_device(device), progress)
    asked = each_once(asked, donors_open, taps, bench.found, note)
    bounded = num_keys is None
    if num_keys is None:
        num_keys = _affordable(bench, donors_open, asked, taps, keys, training, minutes, seed, progress, note)
    sample = draw(keys, training, exam, num_keys=num_keys, num_exam=_EXAM_HITS, seed=seed)
    passes = _each(asked, note, lambda one: bench.read(one, donors_open.get(one.donor), taps, sample.keys, progress))
    sample, passes = in_common(sample, passes)
    if note is not None:
        note(
            f"{len(sample.keys):,} keys, {len(sample.exam):,} held-out hits on them, "
            f"{len(sample.training):,} training hits"
        )
    fits = Fits(sample, keys.vocab_size, fit, seed, best_device(None if device == "auto" else device))
    candidates = list(candidates_of(passes, dtypes, normalisations))
    if recipient is not None:
        embedded = ("the recipient's embeddings, mean over the key", recipient_embeddings(recipient, sample.keys))
    else:
        embedded = (f"input embeddings of {passes[0].reading.name}, mean over the key", passes[0].embeddings)
    first = candidates[0][1]()
    if bounded:
        seeds = fits.affordable(first, seeds, len(candidates) + 2, begun + 60 * minutes, note)
    numbers = [seed + number for number in range(seeds)]

    def fitted(place: int, values: FloatArray) -> FloatArray:
        losses = np.stack([fits.losses(values, number) for number in numbers])
        if progress is not None:
            progress("fits", place, len(candidates) + 2)
        return losses

    losses = [fitted(place + 1, values() if place else first) for place, (_, values) in enumerate(candidates)]
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
            "num_training_hits": fits.num_hits,
            "num_classes": len(fits.classes.log_prior),
            "seeds": numbers,
            "seconds": round(time.monotonic() - begun, 1),
            "keys": keys.fingerprint,
            "corpus": training_part.fingerprint,
            "held_out": held_out.fingerprint,
        },
    )


def _each(readings: Sequence[DonorReading], note: Note | None, done: Callable[[DonorReading], Found]) -> list[Found]:
    """What ``done`` gives for each reading; contexts too long for their donor are left out where others are left.

    Raises:
        DonorError: no reading is left.
    """
    found: list[Found] = []
    refused: DonorError | None = None
    for reading in readings:
        try:
            found.append(done(reading))
        except DonorError as error:
            if reading.contexts is None:
                raise
            refused = error
            if note is not None:
                note(f"left out: {error}")
    if not found and refused is not None:
        raise refused
    return found


def _affordable(
    bench: Bench,
    donors: Donors,
    readings: Sequence[DonorReading],
    taps: Sequence[int] | None,
    keys: KeySet,
    training: Hits,
    minutes: float,
    seed: int,
    progress: Progress | None,
    note: Note | None,
) -> int:
    """So many keys that all passes take half the time, by a first few keys; ``note`` is told where that is too few."""
    hit = np.random.default_rng(seed).permutation(distinct(training.rows))[:_TRIED_KEYS]
    few = keys.select(np.sort(hit))

    def seconds_a_key(reading: DonorReading) -> float:
        seconds = bench.seconds_a_key(reading, donors.get(reading.donor), taps, few)
        if progress is not None:
            progress("first keys", (readings.index(reading) + 1) * len(few), len(readings) * len(few))
        return seconds

    seconds = sum(_each(readings, None, seconds_a_key))
    return affordable_keys(minutes, seconds, len(keys), note)


def affordable_keys(minutes: float, seconds: float, num_keys: int, note: Note | None = None) -> int:
    """How many of ``num_keys`` keys are read in half of ``minutes``, each in ``seconds``.

    ``note`` is told where they are fewer than a probe takes at the least, and how long these take.
    """
    affordable, least = _DONOR_SHARE * 60 * minutes / seconds, min(_LEAST_KEYS, num_keys)
    if affordable < least and note is not None:
        note(
            f"{minutes:g} minutes are enough for {affordable:,.0f} keys, and {least} are the least: reading them takes "
            f"about {least * seconds / 60:.1f} minutes, the fits come after it; "
            "fewer donors, prefixes or contexts take less"
        )
    return int(np.clip(affordable, _LEAST_KEYS, _MOST_KEYS))

"""What each candidate reads of the sampled keys: one pass of a donor for all taps, and what a key costs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from memgraft.corpus import Corpus
from memgraft.harvesting.donor import Donor
from memgraft.harvesting.occurrences import Contexts
from memgraft.harvesting.prefix import Prefix, PrefixChoice
from memgraft.harvesting.readers import Reader, find_reader
from memgraft.harvesting.selecting import select_keys
from memgraft.harvesting.setup import set_up
from memgraft.index import NgramIndex
from memgraft.keyset import KeySet
from memgraft.keysets import rows_in
from memgraft.probing.embeddings import mean_embeddings
from memgraft.probing.hits import IntArray
from memgraft.probing.softmax import FloatArray
from memgraft.progress import Progress
from memgraft.tokenizer import TextCodec

_TIMED_ROWS, _LEAST_TIMED_ROWS = 192, 32
_TIMED_BATCHES = 2
"""Batches that are timed at most: windows are many times as long as keys alone, and say enough in fewer rows."""
_WARM_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class DonorReading:
    """How keys are read: what one pass over a donor yields, for all taps.

    Attributes:
        donor: the donor as it was named.
        prefix: what stands before every key.
        contexts: windows of the corpus, or the key alone.
    """

    donor: str | Path | Donor
    prefix: PrefixChoice
    contexts: Contexts | None

    @property
    def name(self) -> str:
        """The donor in one word."""
        return self.donor.name if isinstance(self.donor, Donor) else Path(self.donor).name


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What one pass over a donor gave.

    Attributes:
        reading: how it read.
        rows: (N,) rows of the sampled keys that have a text for this donor, ascending.
        values: (N, taps, V) their values.
        taps: donor depths.
        keys_per_second: by tap, of a harvest of that tap alone; measured on a few keys.
        prefix: name and ids of the prefix, which a probe of its own may have chosen.
        compute_dtype: the type that the donor ran in.
    """

    reading: DonorReading
    rows: IntArray
    values: FloatArray
    taps: tuple[int, ...]
    keys_per_second: tuple[float, ...]
    prefix: dict[str, Any]
    compute_dtype: str
    embeddings: FloatArray
    """(N, D) means of the donor's input embeddings over each key's tokens."""

    def of_rows(self, rows: IntArray) -> "Pass":
        """The keys ``rows`` (ascending, all there) alone, numbered through."""
        places = np.searchsorted(self.rows, rows)
        return replace(self, rows=np.arange(len(rows)), values=self.values[places], embeddings=self.embeddings[places])


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all passes have in common."""

    recipient: TextCodec
    """The tokenizer that made the keys, open: with a large vocabulary that takes as long as reading the keys."""
    corpus: Corpus
    """The mined part."""
    batch_tokens: int
    found: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By donor, what running it has told and need not be found out again: the prefix that ``auto`` is."""

    def read(
        self,
        reading: DonorReading,
        donor: Donor,
        taps: Sequence[int] | None,
        keys: KeySet,
        progress: Progress | None = None,
    ) -> Pass:
        """Reads all of ``keys`` at all taps at once; raises as `memgraft.harvest`."""
        reader = self._reader(reading, donor, taps, keys, share=True)
        setup, selection = reader.setup, reader.selection
        values = np.empty((len(selection.kept), len(setup.taps), donor.value_dim), np.float32)
        for start in range(0, len(values), 1024):
            rows = np.asarray(reader.order[start : start + 1024])
            values[rows] = reader.values(rows).float().numpy()
            if progress is not None:
                progress(
                    f"{reading.name}, {prefix_name(setup.prefix.facts(), reading.prefix)}",
                    start + len(rows),
                    len(values),
                )
        there = rows_in(keys, NgramIndex.build(selection.kept))
        return Pass(
            reading=reading,
            rows=np.flatnonzero(there >= 0),
            values=values,
            taps=setup.taps,
            keys_per_second=tuple(speed(reader, (tap,), self.batch_tokens) for tap in setup.taps),
            prefix=setup.prefix.facts(),
            compute_dtype=donor.compute_dtype,
            embeddings=mean_embeddings(donor.model, selection.tokens),
        )

    def seconds_a_key(self, reading: DonorReading, donor: Donor, taps: Sequence[int] | None, keys: KeySet) -> float:
        """What a key of ``keys`` takes at all taps at once; raises as `memgraft.harvest`.

        So few keys have hardly a beginning in common, hence it is not found out whether they could share it.
        """
        reader = self._reader(reading, donor, taps, keys, share=False)
        begun = time.perf_counter()
        reader.values(np.asarray(reader.order))
        return (time.perf_counter() - begun) / len(reader.order)

    def _reader(
        self, reading: DonorReading, donor: Donor, taps: Sequence[int] | None, keys: KeySet, *, share: bool
    ) -> Reader:
        setup = set_up(
            keys,
            self.recipient,
            donor,
            default_taps(donor.num_blocks) if taps is None else taps,
            donor.compute_dtype,
            None,
            reading.prefix,
            False,
            "text",
            recorded=self.found.get(donor.fingerprint),
        )
        remember(self.found, donor, setup.prefix)
        return find_reader(
            setup,
            select_keys(keys, setup.recipient, donor.tokenizer, "text"),
            contexts=reading.contexts,
            corpus=None if reading.contexts is None else self.corpus,
            share=share,
            batch_tokens=self.batch_tokens,
            recorded={},
        )


def remember(found: dict[str, dict[str, Any]], donor: Donor, prefix: Prefix) -> None:
    """Keeps what ``auto`` was measured to stand for, by donor, as `find_prefix` takes it for recorded."""
    if prefix.chosen == "auto":
        found[donor.fingerprint] = {"fingerprint": donor.fingerprint, **prefix.facts()}


def default_taps(num_blocks: int) -> tuple[int, ...]:
    """A quarter, half, three quarters and all of the blocks."""
    return tuple(sorted({max(1, round(num_blocks * part / 4)) for part in (1, 2, 3, 4)}))


def speed(reader: Any, taps: tuple[int, ...], batch_tokens: int) -> float:
    """Keys a second of ``reader``, which has read all keys, at ``taps``: on neighbours in its order, after a first few.

    As many are timed as fill two batches, 192 at most.
    """
    timed: Reader = replace(reader, setup=replace(reader.setup, taps=taps))
    tokens = max(1.0, reader.num_tokens / len(reader.order))
    number = int(np.clip(_TIMED_BATCHES * batch_tokens / tokens, _LEAST_TIMED_ROWS, _TIMED_ROWS))
    middle = max(0, (len(timed.order) - number) // 2)
    rows = np.asarray(timed.order[middle : middle + number])
    timed.values(rows[:_WARM_ROWS])
    begun = time.perf_counter()
    timed.values(rows)
    return len(rows) / max(time.perf_counter() - begun, 1e-9)


def prefix_name(facts: dict[str, Any], asked: PrefixChoice) -> str:
    """A prefix in a few words: its facts, and how it was asked for."""
    if not facts["prefix"]:
        return "nothing before it"
    plain = facts["prefix_name"] not in ("text", "ids")
    return f"{facts['prefix_name'] if plain else repr(asked)} before it"

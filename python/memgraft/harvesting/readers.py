"""What the donor reads of each key: the key alone, or windows of the corpus that end with it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from memgraft.corpus import Corpus
from memgraft.errors import DonorError, FingerprintError
from memgraft.harvesting.asked import refuse_apart
from memgraft.harvesting.forward import donor_values
from memgraft.harvesting.occurrences import Contexts
from memgraft.harvesting.packing import IntArray, Ragged, shared_lengths
from memgraft.harvesting.places import Places, Table, key_lengths, places_beside
from memgraft.harvesting.selecting import Progress, Selection
from memgraft.harvesting.setup import Setup
from memgraft.harvesting.sharing import Sharing, find_sharing
from memgraft.harvesting.windows import Windows
from memgraft.keyset import KeySet
from memgraft.mining.origin import mined_part
from memgraft.tokenizer import differs_from, recorded_facts

_TRIED_ROWS, _TRIED_WINDOWS = 1 << 18, 512


class Reader(Protocol):
    """What the donor reads, and the values that come of it."""

    setup: Setup
    selection: Selection
    num_tokens: int
    """Donor tokens read so far in this process."""
    num_reused: int
    """Those of them that another key's run held already."""

    @property
    def order(self) -> IntArray:
        """(R,) rows in the order in which they are read."""

    @property
    def facts(self) -> dict[str, Any]:
        """What ``bank.json`` says of the reading, but for what it depends on."""

    def values(self, rows: IntArray) -> torch.Tensor:
        """Values of ``rows``: (n, K, V) on the CPU."""

    def describe(self) -> str:
        """One line for people."""


@dataclass(kw_only=True)
class KeysAlone:
    """Every key alone, behind the bank's prefix; beginnings that keys share once, where the donor can."""

    setup: Setup
    selection: Selection
    sharing: Sharing
    batch_tokens: int
    num_tokens: int = 0
    num_reused: int = 0

    @classmethod
    def found(
        cls, setup: Setup, selection: Selection, share: bool, batch_tokens: int, recorded: Mapping[str, Any]
    ) -> "KeysAlone":
        """Shares as the harvest that is taken up did (``recorded``: its donor facts), else as is found now."""
        before = recorded.get("shared_prefixes")
        if not share:
            sharing = Sharing(shared=False, reason="share_prefixes is off")
        elif isinstance(before, bool) and recorded.get("fingerprint") == setup.donor.fingerprint:
            sharing = Sharing(shared=before, reason="as the harvest began")
        else:
            sharing = find_sharing(setup.donor, setup.taps, selection.tokens, setup.prefix.ids)
        return cls(setup=setup, selection=selection, sharing=sharing, batch_tokens=batch_tokens)

    @property
    def order(self) -> IntArray:
        """(R,) rows in the order of their donor tokens."""
        return self.selection.order

    @property
    def facts(self) -> dict[str, Any]:
        """Whether beginnings are shared; donor tokens of all keys behind the prefix, distinct beginnings among them."""
        head, tokens = len(self.setup.prefix.ids), self.selection.tokens
        return {
            "shared_prefixes": self.sharing.shared,
            "num_donor_tokens": len(tokens.tokens) + head * len(tokens),
            "num_prefixes": self.selection.num_prefixes + head,
        }

    def values(self, rows: IntArray) -> torch.Tensor:
        """Values of ``rows``: (n, K, V)."""
        tokens = self.selection.tokens.take(rows)
        self.num_tokens += len(tokens.tokens)
        if self.sharing.shared:  # rows of a chunk come in the order of their tokens
            self.num_reused += int(shared_lengths(tokens).sum())
        return donor_values(
            self.setup.donor,
            self.setup.taps,
            tokens.headed(self.setup.prefix.ids),
            max_tokens=self.batch_tokens,
            shared=self.sharing.shared,
        )

    def describe(self) -> str:
        """How much is shared."""
        tokens, prefixes = self.facts["num_donor_tokens"], self.facts["num_prefixes"]
        text = f"{tokens:,} donor tokens in all keys, {prefixes:,} distinct prefixes ({tokens / prefixes:.2f} to one"
        if self.sharing.shared:
            return (
                f"{text}): each prefix runs once, {1 - prefixes / tokens:.0%} of the tokens are reused; "
                f"{self.sharing.reason}"
            )
        return f"{text}): every key runs alone, since {self.sharing.reason}"


@dataclass(kw_only=True)
class InContexts:
    """Each key in up to k windows of the corpus, the mean of the states; a window is run once for all keys of a chunk.

    A key that does not occur in the corpus (one that was added to what was mined) is read alone.
    """

    setup: Setup
    selection: Selection
    windows: Windows
    places: Places
    batch_tokens: int
    num_tokens: int = 0
    num_reused: int = 0

    def __post_init__(self) -> None:
        self._lengths = key_lengths(self.selection.kept)

    @property
    def order(self) -> IntArray:
        """(R,) rows by their first place in the corpus: keys that end together are of one chunk."""
        return self.places.order

    @property
    def facts(self) -> dict[str, Any]:
        """Windows by number of keys' places; the keys that are nowhere; the shortest keys that windows are cut for."""
        return {"shared_prefixes": False, "shortest_key": self.windows.shortest, **self.places.counts}

    def refuse_long(self) -> None:
        """Tries some windows, so that those that are too long are refused before hours of work.

        Raises:
            DonorError: one is longer than the donor's positions.
        """
        _, _, bounds = self._places(np.array(self.order[:_TRIED_ROWS]))
        self._run_tokens(bounds[:: max(1, len(bounds) // _TRIED_WINDOWS)])

    def values(self, rows: IntArray) -> torch.Tensor:
        """Means of ``rows`` over their windows: (n, K, V) float32."""
        at, places, bounds = self._places(rows)
        bounds, window = np.unique(bounds, axis=0, return_inverse=True)
        tokens = self._run_tokens(bounds)
        of_place: IntArray = np.full((len(rows), self.places.ends.shape[1]), -1, np.int64)
        of_place[at, places] = np.where(tokens.lengths > 0, np.arange(len(tokens)), -1)[window.reshape(-1)]
        alone = np.flatnonzero((of_place < 0).all(axis=1))
        of_place[alone, 0] = len(tokens) + np.arange(len(alone))
        tokens = Ragged.joined([tokens, self.selection.tokens.take(rows[alone])])
        run = np.flatnonzero(tokens.lengths > 0)
        # What one window for each place would take, and what windows that several places share spare of it.
        asked = int(tokens.lengths[of_place[of_place >= 0]].sum())
        self.num_tokens += asked
        self.num_reused += asked - len(tokens.tokens)
        states = donor_values(
            self.setup.donor,
            self.setup.taps,
            tokens.take(run).headed(self.setup.prefix.ids),
            max_tokens=self.batch_tokens,
        ).float()
        of_place = np.where(of_place < 0, -1, np.searchsorted(run, of_place))
        sums = states.new_zeros((len(rows), *states.shape[1:]))
        for column in of_place.T:
            there = np.flatnonzero(column >= 0)
            sums[there] += states[column[there]]
        return sums / torch.from_numpy((of_place >= 0).sum(axis=1))[:, None, None]

    def describe(self) -> str:
        """How many windows are run."""
        places, windows = self.facts["num_occurrences"], self.facts["num_windows"]
        nowhere = self.facts["num_without_occurrence"]
        text = f"{places:,} places of {len(self.order):,} keys are read in {windows:,} windows of the corpus"
        return text + (f"; {nowhere:,} keys that do not occur are read alone" if nowhere else "")

    def _places(self, rows: IntArray) -> tuple[IntArray, IntArray, IntArray]:
        """The places of ``rows``: index into ``rows`` and number of each, and its window's bounds."""
        ends: IntArray = np.asarray(self.places.ends[rows])
        lengths: IntArray = self._lengths[rows].astype(np.int64)
        at, places = np.nonzero(ends >= 0)
        return at, places, self.windows.bounds(ends[at, places], lengths[at])

    def _run_tokens(self, bounds: IntArray) -> Ragged:
        """Donor tokens of windows.

        Raises:
            DonorError: one is longer than the donor's positions.
        """
        tokens = self.windows.donor_tokens(bounds)
        longest = int(tokens.lengths.max(initial=0)) + len(self.setup.prefix.ids)
        donor = self.setup.donor
        most = getattr(donor.model.config.get_text_config(), "max_position_embeddings", None)
        if most is not None and longest > int(most):
            raise DonorError(
                f"contexts: a window of {longest} tokens, the prefix counted, is longer than the {most} positions of "
                f"donor {donor.name}; take less than {self.windows.contexts.left} tokens of left context"
            )
        return tokens


def mined_corpus(keys: KeySet, contexts: Contexts | None, corpus: Corpus | None) -> Corpus | None:
    """The documents that contexts are cut out of: the part of ``corpus`` that ``keys`` were mined from.

    Raises:
        ArgumentError: contexts without a corpus, or a corpus without contexts.
        FingerprintError: it is another corpus.
    """
    refuse_apart(contexts, corpus)
    return None if corpus is None else mined_part(keys.metadata, corpus)


def find_reader(
    setup: Setup,
    selection: Selection,
    *,
    contexts: Contexts | None,
    corpus: Corpus | None,
    share: bool,
    batch_tokens: int,
    recorded: Mapping[str, Any],
    partial: Path | None = None,
    memory: int = 1 << 30,
    progress: Progress | None = None,
) -> Reader:
    """The reader that is asked for.

    Args:
        setup: donor, taps, prefix, tokenizers.
        selection: the kept keys.
        contexts: None reads the keys alone.
        corpus: see `mined_corpus`.
        share: whether beginnings that keys share may be run once.
        batch_tokens: padded donor tokens per batch.
        recorded: donor facts of the bank that is taken up.
        partial: folder in which the places in the corpus are kept; None keeps them in memory.
        memory: bytes that searching the corpus may allocate.
        progress: called while the corpus is searched.

    Raises:
        FingerprintError: the corpus is of another tokenizer.
        KeySetError: no key occurs in it.
        DonorError: windows longer than the donor's positions.
    """
    if contexts is None or corpus is None:
        return KeysAlone.found(setup, selection, share, batch_tokens, recorded)
    if difference := differs_from(setup.recipient, recorded_facts(corpus.tokenizer, corpus.tokenizer_mapping)):
        raise FingerprintError(f"{corpus.paths[0]}: expected tokens of the recipient's tokenizer: {difference}")

    windows = Windows.of(corpus, contexts, selection.kept, setup.recipient, setup.donor.tokenizer)

    def find(table: Table | None = None) -> Places:
        return Places.find(selection.kept, windows, memory, progress, table)

    settings = {**contexts.facts(corpus), "keys": selection.kept.fingerprint, "shortest": windows.shortest}
    places = find() if partial is None else places_beside(partial, settings, find, len(selection.kept))
    reader = InContexts(setup=setup, selection=selection, windows=windows, places=places, batch_tokens=batch_tokens)
    reader.refuse_long()
    return reader

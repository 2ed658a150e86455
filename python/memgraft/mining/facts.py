"""Coverage: how much of a token stream the keys reach, by order, and what is left to the fallback."""

from collections.abc import Sequence
from typing import Protocol, TypedDict, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memgraft.arguments import refuse_paths
from memgraft.corpus import Corpus, overlap, sample_of
from memgraft.corpus.blocks import BLOCK, windows_with_lead
from memgraft.distinct import distinct
from memgraft.errors import ArgumentError, FingerprintError
from memgraft.keyset import KeySet
from memgraft.mining.options import positive
from memgraft.mining.origin import mined_from as mined_from
from memgraft.mining.origin import mined_part as mined_part
from memgraft.mining.origin import split_of_keys as split_of_keys
from memgraft.progress import Progress, callback
from memgraft.tokenizer import facts_of_keys, refuse_other_tokens

BATCHES = (8192, 65536, 524288)
"""Tokens of the batches whose different rows are counted."""


class _Index(Protocol):
    """What is asked of an :class:`memgraft.NgramIndex`."""

    @property
    def max_order(self) -> int: ...
    @property
    def orders(self) -> tuple[int, ...]: ...
    @property
    def keyset_fingerprint(self) -> str: ...
    def __len__(self) -> int: ...
    def lookup(
        self, tokens: ArrayLike, *, cu_seqlens: ArrayLike, threads: int | None
    ) -> tuple[NDArray[np.int32], NDArray[np.uint8]]: ...


@runtime_checkable
class _Bank(Protocol):
    """What is asked of a :class:`memgraft.Bank`."""

    @property
    def index(self) -> _Index: ...
    @property
    def keys(self) -> KeySet: ...


class DomainCoverage(TypedDict):
    """What :class:`Coverage` says, of the documents of one domain."""

    positions: int
    coverage: float
    fallback_share: float
    hits: dict[int, int]


class Coverage(TypedDict):
    """Facts about one index on one token stream."""

    positions: int
    """Tokens looked up, delimiters included."""
    documents: int
    """Documents they are in."""
    hits: dict[int, int]
    """Positions with a longest match, by its order."""
    misses: int
    """Positions without: left to the fallback."""
    coverage: float
    """Share of positions with a match."""
    fallback_share: float
    """Share of positions without."""
    backoff_share: float
    """Share of positions with a match below the top order."""
    unique_rows: int
    """Different rows that were hit."""
    unique_rows_per_token: dict[int, float]
    """Different rows of a batch over its tokens, by tokens of the batch: what a training step moves."""
    num_keys: int
    """Rows there are."""
    corpus: str
    """Fingerprint of the stream."""
    keyset: str
    """Fingerprint of the keys."""
    mined_from_it: bool | None
    """Whether the keys were mined from this stream, a part of it or a whole around it, so that coverage is no
    prediction; None: not known."""
    shared_with_mined: float | None
    """Larger of the shares of tokens in documents, and of runs of tokens, that the mined corpus has too. Counted where
    ``mined`` was given, else estimated by the sample beside the keys; None without one."""
    domains: dict[str, DomainCoverage]
    """The documents of each domain apart; empty where ``domains`` was not given."""


def coverage(
    index: _Index | _Bank,
    corpus: Corpus,
    *,
    keys: KeySet | None = None,
    mined: Corpus | None = None,
    batches: Sequence[int] = BATCHES,
    domains: Sequence[str] | None = None,
    threads: int | None = None,
    progress: Progress | bool | None = None,
    block_tokens: int = BLOCK,
) -> Coverage:
    """Looks up every position of ``corpus``, documents apart, and counts.

    Args:
        index: the index, or a bank.
        corpus: the tokens; for a prediction, text the keys were not mined from.
        keys: the key set of a bare index, if at hand: its metadata says what it was mined from.
        mined: the corpus that the keys were mined from, or that it was split off; then documents are compared, since
            two corpora of different fingerprints may hold the same ones.
        batches: tokens of the batches whose different rows are counted; consecutive tokens make a batch.
        domains: the name of each document's domain; each is counted apart, too.
        threads: for the lookup; default: every core.
        progress: True for bars, or called with (phase, positions done, positions in all).
        block_tokens: positions looked up at a time; no figure depends on it.

    Raises:
        ArgumentError: not one name of a domain for each document.
        FingerprintError: the corpus is of another tokenizer than the keys, ``keys`` are not those of ``index``, or were
            not mined from ``mined``.
        TokenError: a token is outside the vocabulary of the keys.
    """
    if isinstance(index, KeySet):
        raise ArgumentError("index: expected an index or a bank, got a key set; give NgramIndex.build(keys)")
    refuse_paths(index=index, corpus=corpus, keys=keys, mined=mined)
    progress = callback(progress)
    if isinstance(index, _Bank):
        keys, index = index.keys, index.index
    metadata = keys.metadata if keys is not None else {}
    if keys is not None and keys.fingerprint != index.keyset_fingerprint:
        raise FingerprintError(
            f"keys: expected the key set {index.keyset_fingerprint} of the index, found {keys.fingerprint}; "
            "give the key set the index was built from"
        )
    refuse_other_tokens(facts_of_keys(metadata), corpus)
    searched = None if mined is None else mined_part(metadata, mined)
    names, domain_of = _domains(domains, corpus)
    by_order = np.zeros(256, np.int64)
    by_domain = np.zeros((len(names), 256), np.int64)
    seen = np.zeros(len(index), np.bool_)
    counters = [_Batches(size) for size in sorted(set(batches))]
    total = corpus.num_tokens
    for window in windows_with_lead(corpus, index.max_order - 1, block_tokens):
        tokens = corpus.tokens(window.first, window.stop)
        rows, orders = index.lookup(tokens, cu_seqlens=window.edges, threads=threads)
        rows, orders = rows[window.lead :], orders[window.lead :]
        by_order += np.bincount(orders, minlength=256)
        if names:
            places = domain_of[window.documents()[window.lead :]] * 256 + orders
            by_domain += np.bincount(places, minlength=by_domain.size).reshape(by_domain.shape)
        seen[rows[rows >= 0]] = True
        for counter in counters:
            counter.add(rows)
        if progress is not None:
            progress("coverage", window.stop, total)
    misses = int(by_order[0])
    return Coverage(
        positions=total,
        documents=corpus.num_documents,
        hits={order: int(by_order[order]) for order in index.orders},
        misses=misses,
        coverage=1 - misses / total,
        fallback_share=misses / total,
        backoff_share=int(by_order[1 : index.max_order].sum()) / total,
        unique_rows=int(seen.sum()),
        unique_rows_per_token={counter.size: counter.finish() / total for counter in counters},
        num_keys=len(index),
        corpus=corpus.fingerprint,
        keyset=index.keyset_fingerprint,
        mined_from_it=mined_from(metadata, corpus),
        shared_with_mined=_shared(searched, keys, corpus),
        domains={name: _domain(counts, index.orders) for name, counts in zip(names, by_domain, strict=True)},
    )


def _shared(mined: Corpus | None, keys: KeySet | None, corpus: Corpus) -> float | None:
    if mined is not None:
        return overlap(mined, corpus).share
    sample = None if keys is None else sample_of(keys)
    return None if sample is None else sample.share(corpus)


def _domains(domains: Sequence[str] | None, corpus: Corpus) -> tuple[list[str], NDArray[np.int64]]:
    """The names of all domains, ascending, and the place among them of each document's."""
    if domains is None:
        return [], np.empty(0, np.int64)
    if len(domains) != corpus.num_documents:
        raise ArgumentError(
            f"domains: expected a name for each of the {corpus.num_documents} documents, got {len(domains)}"
        )
    names, places = np.unique(np.asarray(domains, dtype=str), return_inverse=True)
    return [str(name) for name in names], places.astype(np.int64)


def _domain(counts: NDArray[np.int64], orders: Sequence[int]) -> DomainCoverage:
    positions, misses = int(counts.sum()), int(counts[0])
    share = misses / positions if positions else 0.0
    return DomainCoverage(
        positions=positions,
        coverage=1 - share,
        fallback_share=share,
        hits={order: int(counts[order]) for order in orders},
    )


class _Batches:
    """Adds up the different rows of batches of ``size`` tokens; the last may be shorter."""

    def __init__(self, size: int) -> None:
        self.size = positive("batches", size)
        self._open: list[NDArray[np.int32]] = []
        self._held = 0
        self._distinct = 0

    def add(self, rows: NDArray[np.int32]) -> None:
        while len(rows):
            take = min(self.size - self._held, len(rows))
            self._open.append(rows[:take])
            self._held += take
            rows = rows[take:]
            if self._held == self.size:
                self.finish()

    def finish(self) -> int:
        """Closes the open batch; returns the sum so far."""
        if self._open:
            rows = np.concatenate(self._open)
            self._distinct += len(distinct(rows[rows >= 0]))
            self._open, self._held = [], 0
        return self._distinct

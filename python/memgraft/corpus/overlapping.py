"""What two corpora share: whole documents, and runs of tokens inside documents that were cut or joined otherwise."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from memgraft._core import hash_documents
from memgraft.corpus.blocks import BLOCK, Documents, documents_in_blocks
from memgraft.distinct import are_among, distinct
from memgraft.errors import ArgumentError, CorpusError

MOST_SHARED = 0.1
"""Share of the tokens to measure by that may lie in documents of the training corpus; what has more is refused."""
WORTH_SAYING = 0.01
"""Share from which it is worth a word."""
MOST_RUNS = 1 << 22
"""Runs remembered of the first corpus at most, by and large."""
ALL = (1 << 64) - 1
"""The largest hash."""

Hashes = npt.NDArray[np.uint64]
Hashed = tuple[Hashes, npt.NDArray[np.int64], Hashes]
"""Hashes and sizes of documents, and hashes of runs inside them."""


class Delimited(Documents, Protocol):
    """A corpus whose documents may end with a delimiter; `memgraft.Corpus` is one."""

    @property
    def eos_id(self) -> int | None:
        """The delimiter of documents, if they have one."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What of one corpus is in another.

    Attributes:
        num_documents: documents looked for, empty ones left out.
        num_shared_documents: those that are a document of the other corpus, token for token, delimiters aside.
        num_tokens: tokens of the documents looked for.
        num_shared_tokens: tokens of the shared documents.
        length: tokens of a run.
        num_runs: runs sampled, by their content, in the documents looked for.
        num_shared_runs: those that are in the other corpus.
    """

    num_documents: int
    num_shared_documents: int
    num_tokens: int
    num_shared_tokens: int
    length: int
    num_runs: int
    num_shared_runs: int

    @property
    def share(self) -> float:
        """The larger of the shares of tokens in shared documents and of shared runs, 0 to 1."""
        documents = self.num_shared_tokens / self.num_tokens if self.num_tokens else 0.0
        runs = self.num_shared_runs / self.num_runs if self.num_runs else 0.0
        return max(documents, runs)

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "Overlap":
        """The overlap that `facts` describe."""
        return cls(**{field.name: facts[field.name] for field in fields(cls)})

    def facts(self) -> dict[str, int | float]:
        """The counts and the share, for results and reports."""
        return {**asdict(self), "share": self.share}

    def warning(self, first: str, second: str) -> str | None:
        """What to say of ``second``, a corpus to measure by, beside ``first``; None where they share hardly anything.

        Args:
            first: what the corpus that was searched is called.
            second: what the one looked for is called.
        """
        if self.share < WORTH_SAYING:
            return None
        runs = self.num_shared_runs / max(1, self.num_runs)
        return (
            f"{second} shares {self.num_shared_documents} of {self.num_documents} documents and {runs:.0%} of its runs "
            f"of {self.length} tokens with {first}: what is measured there is better than on new text"
        )


def refuse_overlap(corpus: Delimited, other: Delimited, first: str, second: str) -> Overlap:
    """What of ``other`` is in ``corpus``; refuses to measure by documents that were learnt from.

    Parts of one split are not refused, since documents that occur twice in a text fall into either: `Overlap.warning`
    says what they share.

    Args:
        corpus: what was learnt or mined from.
        other: what is to be measured by.
        first: what ``corpus`` is called in messages, such as "the training corpus".
        second: what ``other`` is called.

    Raises:
        CorpusError: more than `MOST_SHARED` of the tokens of ``other`` are in documents of ``corpus``.
    """
    found = overlap(corpus, other)
    mine, theirs = getattr(corpus, "split_facts", None) or {}, getattr(other, "split_facts", None) or {}
    if mine and all(mine[name] == theirs.get(name) for name in ("of", "held_out", "seed")):
        return found
    if found.num_shared_tokens > MOST_SHARED * found.num_tokens:
        raise CorpusError(
            f"{second}: expected documents that are not in {first}, found {found.num_shared_documents} of "
            f"{found.num_documents} there ({found.num_shared_tokens / found.num_tokens:.0%} of the tokens); hold "
            "documents out with `memgraft split`, or name other text"
        )
    return found


def overlap(corpus: Delimited, other: Delimited, *, length: int = 32, most_runs: int = MOST_RUNS) -> Overlap:
    """What of ``other`` is in ``corpus``, such as documents to measure by in those that keys were mined from.

    Documents are compared by a hash of their tokens. Runs of ``length`` tokens inside documents are sampled by their
    own hash, the same ones in both corpora, so that documents which were cut into windows or joined are found too. Both
    hashes have 64 bits.

    Args:
        corpus: the one that is searched.
        other: what is looked for.
        length: tokens of a run.
        most_runs: runs remembered of ``corpus`` at most, by and large; of a larger one, as many fewer are sampled.

    Raises:
        ArgumentError: ``length`` below 2.
    """
    if length < 2:
        raise ArgumentError(f"length: expected runs of at least 2 tokens, got {length}")
    zeros = max(0, (corpus.num_tokens // most_runs).bit_length())
    there = list(read_hashes(corpus, length, zeros=zeros))
    known_documents = distinct(np.concatenate([np.empty(0, np.uint64), *(documents for documents, _, _ in there)]))
    known_runs = distinct(np.concatenate([np.empty(0, np.uint64), *(runs for _, _, runs in there)]))
    del there
    counts = np.zeros(6, np.int64)
    for documents, sizes, runs in read_hashes(other, length, zeros=zeros):
        shared = are_among(documents, known_documents)
        found = np.count_nonzero(are_among(runs, known_runs))
        counts += np.array(
            [len(documents), np.count_nonzero(shared), sizes.sum(), sizes[shared].sum(), len(runs), found], np.int64
        )
    return Overlap(
        num_documents=int(counts[0]),
        num_shared_documents=int(counts[1]),
        num_tokens=int(counts[2]),
        num_shared_tokens=int(counts[3]),
        length=length,
        num_runs=int(counts[4]),
        num_shared_runs=int(counts[5]),
    )


def read_documents(
    corpus: Delimited, *, every: int = 1, block_tokens: int = BLOCK
) -> Iterator[tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint64]]]:
    """The tokens of some documents at a time, and where they begin and the last one ends among these.

    Args:
        corpus: the tokens.
        every: one of so many blocks of documents is read.
        block_tokens: tokens of a block; a longer document is one.
    """
    for edges in itertools.islice(documents_in_blocks(corpus, block_tokens), 0, None, every):
        tokens = corpus.tokens(int(edges[0]), int(edges[-1])).astype(np.uint32, copy=False)
        yield np.ascontiguousarray(tokens), (edges - edges[0]).astype(np.uint64)


def read_hashes(corpus: Delimited, length: int, *, zeros: int = 0, most: int = ALL) -> Iterator[Hashed]:
    """Hashes and sizes of documents that are not empty, and hashes of runs inside them, some documents at a time.

    Args:
        corpus: the tokens.
        length: tokens of a run.
        zeros: of the runs, those whose hash ends in so many zeros are kept,
        most: and of these those of at most this hash.
    """
    for tokens, edges in read_documents(corpus):
        yield hash_documents(tokens, edges, corpus.eos_id, length, zeros, most)

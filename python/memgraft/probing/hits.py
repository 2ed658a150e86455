"""Which keys a probe reads, and the hits on them that it learns from and is examined on."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from memgraft.corpus import Corpus
from memgraft.corpus.blocks import BLOCK, windows_with_lead
from memgraft.distinct import distinct
from memgraft.errors import CorpusError
from memgraft.index import NgramIndex
from memgraft.keyset import KeySet

IntArray = npt.NDArray[np.int64]

MOST_TOKENS = 1 << 23
"""Tokens of a corpus that are looked up; of a larger one, blocks spread evenly."""
_EXAM_SHARE = 2 / 3
"""At most so much of the sampled keys are there for the exam's sake."""


@dataclass(frozen=True, kw_only=True)
class Hits:
    """Positions with a longest match and a next token in the same document.

    Attributes:
        rows: (n,) rows of the matches.
        targets: (n,) next tokens.
        documents: (n,) numbers of the documents.
    """

    rows: IntArray
    targets: IntArray
    documents: IntArray

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> "Hits":
        """The hits at ``places``."""
        return Hits(rows=self.rows[places], targets=self.targets[places], documents=self.documents[places])

    def renumbered(self, new_rows: IntArray) -> "Hits":
        """Those whose row has a number in ``new_rows`` (rows,), under that number; -1 has none."""
        kept = self.take(new_rows[self.rows] >= 0)
        return replace(kept, rows=new_rows[kept.rows])


def hits_of(index: NgramIndex, corpus: Corpus, *, most_tokens: int = MOST_TOKENS, block_tokens: int = BLOCK) -> Hits:
    """The hits of ``index`` on ``corpus``.

    Raises:
        CorpusError: there is none.
    """
    number = -(-corpus.num_tokens // block_tokens)
    chosen = np.unique(np.linspace(0, number - 1, min(number, max(1, most_tokens // block_tokens))).astype(np.int64))
    found: list[Hits] = []
    # One token ahead, which is the next one of the last.
    for place, window in enumerate(windows_with_lead(corpus, index.max_order - 1, block_tokens, ahead=1)):
        if place not in chosen:
            continue
        tokens = corpus.tokens(window.first, window.stop)
        rows, _ = index.lookup(tokens, cu_seqlens=window.edges, unknown="miss")
        documents = window.documents()
        here, after = np.s_[window.lead : -1], np.s_[window.lead + 1 :]
        kept = np.flatnonzero((rows[here] >= 0) & (documents[here] == documents[after]))
        found.append(
            Hits(
                rows=rows[here][kept].astype(np.int64),
                targets=tokens[after][kept].astype(np.int64),
                documents=documents[here][kept],
            )
        )
    hits = Hits(**{name: np.concatenate([getattr(part, name) for part in found]) for name in Hits.__annotations__})
    if not len(hits):
        raise CorpusError(f"{corpus.paths[0]}: no position with a longest match; name text of the keys' kind")
    return hits


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Keys to read, and hits on them.

    Attributes:
        keys: the sampled keys.
        training: every training hit on them that was looked up; rows are those of ``keys``.
        exam: held-out hits, drawn evenly from all of them, so that frequent keys weigh what they weigh in text.
    """

    keys: KeySet
    training: Hits
    exam: Hits

    def of_rows(self, rows: IntArray) -> "Sample":
        """The sample of these keys (ascending rows) alone."""
        new_rows = np.full(len(self.keys), -1, np.int64)
        new_rows[rows] = np.arange(len(rows))
        return Sample(
            keys=self.keys.select(rows),
            training=self.training.renumbered(new_rows),
            exam=self.exam.renumbered(new_rows),
        )


def draw(keys: KeySet, training: Hits, held_out: Hits, *, num_keys: int, num_exam: int, seed: int) -> Sample:
    """Draws a sample: the keys of some held-out hits, and of training hits until there are ``num_keys``."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(held_out))[:num_exam]
    rows = held_out.rows[order]
    firsts = np.sort(np.unique(rows, return_index=True)[1])
    most = max(1, int(num_keys * _EXAM_SHARE))
    if len(firsts) > most:
        order = order[: firsts[most]]
    exam = held_out.take(order)
    wanted = distinct(exam.rows)
    drawn = training.rows[rng.permutation(len(training))]
    _, places = np.unique(drawn, return_index=True)
    others = drawn[np.sort(places)]
    others = others[~np.isin(others, wanted)]
    chosen = np.sort(np.concatenate([wanted, others[: max(0, num_keys - len(wanted))]]))
    return Sample(keys=keys, training=training, exam=exam).of_rows(chosen)

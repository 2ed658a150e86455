"""A token corpus as training examples: windows of fixed length, each token with its document's number."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from memgraft.errors import CorpusError

if TYPE_CHECKING:
    from memgraft.corpus import Corpus

SEGMENTS_COLUMN = "segment_ids"
HALVES_COLUMN = "document_half"


class TokenWindows(Dataset[dict[str, Tensor]]):
    """Windows of ``seq_len`` tokens in corpus order; the rest at the end is left out.

    Each example: ``input_ids`` and ``labels`` int64 (T,), ``segment_ids`` int32 (T,), the token's document counted from
    the window's first one, so that no look-back crosses a document; ``document_half`` int64 (T,), 0 or 1, the half of
    the corpus that the token's document belongs to (its number modulo 2).

    Raises:
        CorpusError: the corpus is shorter than one window.
    """

    def __init__(self, corpus: "Corpus", seq_len: int) -> None:
        self.seq_len = seq_len
        self.num_windows = corpus.num_tokens // seq_len
        self.fingerprint = corpus.fingerprint
        if self.num_windows == 0:
            raise CorpusError(
                f"corpus of {corpus.num_tokens} tokens: expected at least one window of {seq_len}; "
                "use more text or shorter windows"
            )
        self.corpus = corpus
        self._starts = np.asarray(corpus.document_starts, dtype=np.int64)

    def __len__(self) -> int:
        return self.num_windows

    def tokens(self, window: int) -> npt.NDArray[np.int64]:
        """Token ids of one window, int64 (T,)."""
        first = window * self.seq_len
        return np.asarray(self.corpus.tokens(first, first + self.seq_len)).astype(np.int64)

    def segments(self, window: int) -> npt.NDArray[np.int32]:
        """Document numbers of one window, int32 (T,), from 0."""
        places = np.arange(window * self.seq_len, (window + 1) * self.seq_len)
        documents = np.searchsorted(self._starts, places, side="right")
        segments: npt.NDArray[np.int32] = (documents - documents[0]).astype(np.int32)
        return segments

    def halves(self, window: int) -> npt.NDArray[np.int64]:
        """Half of the corpus that each token's document belongs to, int64 (T,)."""
        places = np.arange(window * self.seq_len, (window + 1) * self.seq_len)
        return (np.searchsorted(self._starts, places, side="right") - 1).astype(np.int64) % 2

    def __getitem__(self, window: int) -> dict[str, Tensor]:
        tokens = torch.from_numpy(self.tokens(window))
        return {
            "input_ids": tokens,
            "labels": tokens.clone(),
            SEGMENTS_COLUMN: torch.from_numpy(self.segments(window)),
            HALVES_COLUMN: torch.from_numpy(self.halves(window)),
        }

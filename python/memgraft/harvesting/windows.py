"""The windows of the corpus that stand for occurrences of keys, as text and as the donor's tokens.

A window ends with the key's last token and begins before it by the context, inside the document, behind whatever token
is in no key (delimiters, special tokens). Its text is tokenised for the donor as one piece, so that the donor reads the
key as it reads any text, whichever tokenizer it has; the value is the state at the window's last token.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memgraft.corpus import Corpus
from memgraft.harvesting.occurrences import Contexts
from memgraft.harvesting.packing import IntArray, Ragged
from memgraft.harvesting.text import REPLACEMENT
from memgraft.keyset import KeySet
from memgraft.tokenizer import TextCodec


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How windows are cut out of a corpus.

    Attributes:
        corpus: the documents that the keys were mined from.
        contexts: how much stands before a key.
        shortest: tokens of the shortest keys.
        reserved: tokens that are in no key.
        recipient: the codec of the corpus's tokens.
        donor: the donor's codec.
    """

    corpus: Corpus
    contexts: Contexts
    shortest: int
    reserved: tuple[int, ...]
    recipient: TextCodec
    donor: TextCodec

    @classmethod
    def of(cls, corpus: Corpus, contexts: Contexts, keys: KeySet, recipient: TextCodec, donor: TextCodec) -> "Windows":
        """The windows of ``keys``."""
        return cls(
            corpus=corpus,
            contexts=contexts,
            shortest=contexts.shortest or min(keys.orders),
            reserved=keys.reserved,
            recipient=recipient,
            donor=donor,
        )

    def bounds(self, ends: IntArray, lengths: IntArray) -> IntArray:
        """First token and the place past the last one of the window of each occurrence, (n, 2).

        Args:
            ends: (n,) places of the keys' last tokens.
            lengths: (n,) tokens of these keys.
        """
        starts = self.corpus.document_starts.astype(np.int64)
        documents = starts[np.searchsorted(starts, ends, side="right") - 1]
        width = np.maximum(lengths, self.contexts.left + self.shortest)
        return np.stack([np.maximum(documents, ends + 1 - width), ends + 1], axis=1)

    def texts(self, bounds: IntArray) -> list[str]:
        """The text of each window of ``bounds`` (n, 2)."""
        keys = [self._inside(self.corpus.tokens(first, stop)) for first, stop in bounds.tolist()]
        texts = self.recipient.decode_inside(keys)
        # The first token of a window may be the rest of a character.
        return [text.lstrip(REPLACEMENT) or text for text in texts]

    def donor_tokens(self, bounds: IntArray) -> Ragged:
        """The donor's tokens of each window of ``bounds`` (n, 2); a text that it has no tokens for is empty."""
        return Ragged.of(self.donor.encode_inside(self.texts(bounds)))

    def _inside(self, tokens: npt.NDArray[np.uint32]) -> list[int]:
        """The tokens behind the last one that no key may hold or that the tokenizer does not know."""
        known = self.recipient.known
        foreign = (tokens >= len(known)) | ~known[np.minimum(tokens, len(known) - 1)]
        foreign |= np.isin(tokens, self.reserved)
        last = np.flatnonzero(foreign)
        kept: list[int] = tokens[int(last[-1]) + 1 if len(last) else 0 :].tolist()
        return kept

"""The fallback's compressed vocabulary: raw token ids that read alike share an id (docs/METHOD.md, section 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from memgraft.errors import ArgumentError

# A private-use character stands for a token that is one space, so that the strip does not empty it.
SPACE_SENTINEL = "\ue000"
UNDECODABLE = "\ufffd"


@cache
def _normalizer() -> Any:
    # The tokenizers library, as Engram's code: Python's unicodedata differs from it in accents, final sigma and
    # version.
    from tokenizers import Regex, normalizers

    return normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.NFD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[ \t\r\n]+"), " "),
            normalizers.Replace(Regex(r"^ $"), SPACE_SENTINEL),
            normalizers.Strip(),
            normalizers.Replace(SPACE_SENTINEL, " "),
        ]
    )


def normalize_text(text: str) -> str:
    """NFKC, NFD, accents stripped, lower case, whitespace runs to one space, ends stripped; a lone space survives."""
    return str(_normalizer().normalize_str(text))


class CompressedVocabulary:
    """The map P from raw to compressed ids.

    Compressed ids are dense and numbered in the order in which their strings first appear by raw id.

    Attributes:
        ids: (vocab_size,) int64; ``ids[token]`` is the compressed id.
        size: number of compressed ids.
    """

    def __init__(self, ids: npt.ArrayLike) -> None:
        array = np.asarray(ids)
        if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
            raise ArgumentError(f"compressed ids must be a 1-D integer array, found {array.dtype} {array.shape}")
        self.ids: npt.NDArray[np.int64] = array.astype(np.int64)
        self.size = int(self.ids.max()) + 1
        if self.ids.min() < 0 or np.unique(self.ids).size != self.size:
            raise ArgumentError("compressed ids must be dense from 0: every id below the largest must occur")

    def __len__(self) -> int:
        """Raw tokens that the map covers."""
        return int(self.ids.size)

    @classmethod
    def identity(cls, vocab_size: int) -> CompressedVocabulary:
        """No compression: every raw id is its own."""
        return cls(np.arange(vocab_size, dtype=np.int64))

    @classmethod
    def from_strings(cls, texts: Sequence[str], pieces: Sequence[str] | Callable[[int], str]) -> CompressedVocabulary:
        """Build from each token's decoded text and raw piece (used where the text cannot be decoded).

        Args:
            texts: decoded text per raw id.
            pieces: the tokenizer's raw piece per raw id, or a function of the id.
        """
        piece_of = pieces if callable(pieces) else pieces.__getitem__
        compressed: dict[str, int] = {}
        ids = np.empty(len(texts), dtype=np.int64)
        for token, text in enumerate(texts):
            # Text that normalises to nothing (an accent alone) keeps its own spelling.
            key = piece_of(token) if UNDECODABLE in text else normalize_text(text) or text
            ids[token] = compressed.setdefault(key, len(compressed))
        return cls(ids)

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, *, vocab_size: int | None = None) -> CompressedVocabulary:
        """Decode every token of a transformers tokenizer (or a path to a ``tokenizer.json``).

        Args:
            tokenizer: a transformers tokenizer, a ``tokenizers.Tokenizer``, or a path.
            vocab_size: rows of the recipient's embedding. Ids past the tokenizer's end, which no text produces, share
                compressed id 0.

        Raises:
            ArgumentError: the tokenizer holds more ids than ``vocab_size``.
        """
        texts, pieces = _decode_all(tokenizer)
        if vocab_size is not None and len(texts) > vocab_size:
            raise ArgumentError(
                f"the tokenizer has {len(texts)} ids, the recipient's vocabulary {vocab_size}: "
                "this is not the recipient's tokenizer"
            )
        vocabulary = cls.from_strings(texts, pieces)
        if vocab_size is not None and vocab_size > len(texts):
            # Rows that only pad the embedding: an id of their own would change the multipliers.
            vocabulary.ids = np.pad(vocabulary.ids, (0, vocab_size - len(texts)))
        return vocabulary


def _decode_all(tokenizer: Any) -> tuple[list[str], list[str]]:
    if isinstance(tokenizer, str) or hasattr(tokenizer, "__fspath__"):
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(tokenizer))
    if hasattr(tokenizer, "convert_ids_to_tokens"):
        size = len(tokenizer)
        texts = [str(tokenizer.decode([token], skip_special_tokens=False)) for token in range(size)]
        pieces = [_piece(tokenizer.convert_ids_to_tokens(token), token) for token in range(size)]
    elif hasattr(tokenizer, "id_to_token"):
        size = tokenizer.get_vocab_size(with_added_tokens=True)
        texts = [str(tokenizer.decode([token], skip_special_tokens=False)) for token in range(size)]
        pieces = [_piece(tokenizer.id_to_token(token), token) for token in range(size)]
    else:
        raise ArgumentError(
            "expected a transformers or tokenizers tokenizer or a path to tokenizer.json, "
            f"found {type(tokenizer).__name__}"
        )
    return texts, pieces


def _piece(piece: str | None, token: int) -> str:
    return f"{UNDECODABLE}hole {token}" if piece is None else piece

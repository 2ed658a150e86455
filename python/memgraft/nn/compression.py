"""The fallback's compressed vocabulary: raw token ids that read alike share an id (docs/METHOD.md, section 4)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memgraft.assets.cache import cache_directory
from memgraft.distinct import distinct
from memgraft.errors import ArgumentError, StorageError
from memgraft.system import write_beside
from memgraft.tokenizer import TextCodec, open_tokenizer

# A private-use character stands for a token that is one space, so that the strip does not empty it.
SPACE_SENTINEL = "\ue000"
UNDECODABLE = "\ufffd"
_CACHE_VERSION = 1
"""To be raised with the rules below, so that a vocabulary of other rules is not taken from the cache."""


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
        if self.ids.min() < 0 or distinct(self.ids).size != self.size:
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
        """Builds from each token's decoded text and raw piece (used where the text cannot be decoded).

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
        """Decodes every token of a tokenizer.

        Args:
            tokenizer: what `memgraft.harvest` takes: a ``tokenizer.json`` or its folder, a ``tokenizers`` or a
                transformers tokenizer.
            vocab_size: rows of the recipient's embedding. Ids past the tokenizer's end, which no text produces, share
                compressed id 0; added tokens past the recipient's end are in no key and get none.

        Raises:
            ArgumentError: not a tokenizer, no such file, or its own vocabulary holds more ids than ``vocab_size``.
            FormatError: the file is not a tokenizer.
        """
        codec = open_tokenizer(tokenizer)
        size = codec.vocab_size if vocab_size is None else vocab_size
        if codec.own_size > size:
            raise ArgumentError(
                f"the tokenizer has {codec.own_size} ids, the recipient's vocabulary {size}: "
                "this is not the recipient's tokenizer"
            )
        if size < 1:
            raise ArgumentError(f"tokenizer: expected at least one token, found {size}")
        key = f"{codec.content_key}-{size}"
        ids = _read_cached(key)
        if ids is None:
            ids = cls.from_strings(*_decode_all(codec, min(size, codec.vocab_size))).ids
            # Rows that only pad the embedding: an id of their own would change the multipliers.
            ids = np.pad(ids, (0, size - len(ids)))
            _write_cached(key, ids)
        return cls(ids)


def _decode_all(codec: TextCodec, size: int) -> tuple[list[str], list[str]]:
    texts = codec.decode([[token] for token in range(size)])
    pieces = [_piece(codec.piece(token), token) for token in range(size)]
    # A hole decodes to nothing, as an empty token would.
    return [text if codec.known[token] else UNDECODABLE for token, text in enumerate(texts)], pieces


def _piece(piece: str | None, token: int) -> str:
    return f"{UNDECODABLE}hole {token}" if piece is None else piece


def _cached(key: str) -> Path:
    return cache_directory() / "vocabularies" / f"{_CACHE_VERSION}-{key}.npy"


def _read_cached(key: str) -> npt.NDArray[np.int64] | None:
    try:
        ids: npt.NDArray[np.int64] = np.load(_cached(key), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return ids if ids.ndim == 1 and ids.dtype == np.int64 and ids.size else None


def _write_cached(key: str, ids: npt.NDArray[np.int64]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, ids)
    # A cache that cannot be written costs time and nothing else.
    with contextlib.suppress(OSError, StorageError):
        write_beside(_cached(key), buffer.getvalue())

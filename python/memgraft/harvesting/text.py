"""Keys to text with the recipient's tokenizer, text to donor tokens with the donor's own.

A key is dropped, and counted by reason, when its text would not be the text the recipient saw:

=================  ===================================================================================================
``partial_utf8``   the key cuts a character in two, so that its bytes are no text
``empty_text``     the tokens decode to nothing (control tokens, a decoder that strips)
``rewritten``      encoding the text and decoding it again gives another text: the tokenizer normalises
``retokenized``    only with ``round_trip="ids"``: the text is stable, but encodes to other tokens than the key's
``donor_empty``    the donor's tokenizer makes no token of the text
``donor_unknown``  the donor's tokenizer makes its unknown token of part of the text
=================  ===================================================================================================
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from memgraft.corpus.text import tokenizer_file_fingerprint
from memgraft.errors import ArgumentError, FormatError

_WRAPPING = ("version", "truncation", "padding", "post_processor")
REPLACEMENT = "\ufffd"
DROP_REASONS = ("partial_utf8", "empty_text", "rewritten", "retokenized", "donor_empty", "donor_unknown")

RoundTrip = Literal["text", "ids"]


class TextCodec(Protocol):
    """Text to token ids and back, in batches, adding and removing nothing."""

    vocab_size: int
    """Ids lie in ``0 .. vocab_size - 1``, added tokens included."""
    fingerprint: str
    """Hash of the mapping between text and ids, 64 hex characters; a file and the tokenizer loaded from it share it."""
    file_fingerprint: str | None
    """Fingerprint of the ``tokenizer.json`` it was opened from, which token corpora and key sets name."""
    known: npt.NDArray[np.bool_]
    """(vocab_size,) whether an id is a token; vocabularies have holes."""
    unknown: int | None
    """The unknown token's id, if the tokenizer has one."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; no special tokens added, nothing truncated or padded."""

    def decode(self, keys: Sequence[Sequence[int]]) -> list[str]:
        """Text of each key; special tokens kept, spaces as they are."""

    def token_id(self, token: str) -> int | None:
        """Id of a token by its spelling in the vocabulary, special tokens included; None where there is none."""


class FastCodec:
    """A codec over a ``tokenizers.Tokenizer``; it works on a copy, so that the caller's padding and truncation stay."""

    def __init__(self, tokenizer: Any, file_fingerprint: str | None = None) -> None:
        from tokenizers import Tokenizer

        self.file_fingerprint = file_fingerprint
        serialized = tokenizer.to_str()
        self._tokenizer = Tokenizer.from_str(serialized)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        # What only adds special tokens, cuts or pads is no part of the mapping between text and ids.
        mapping = {name: part for name, part in json.loads(serialized).items() if name not in _WRAPPING}
        self.fingerprint = hashlib.sha256(json.dumps(mapping, sort_keys=True).encode()).hexdigest()
        self.known = _known(self._tokenizer.get_vocab(with_added_tokens=True).values())
        self.vocab_size = len(self.known)
        name = getattr(self._tokenizer.model, "unk_token", None)
        self.unknown = None if name is None else self._tokenizer.token_to_id(name)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, keys: Sequence[Sequence[int]]) -> list[str]:
        """Text of each key."""
        texts: list[str] = self._tokenizer.decode_batch([list(key) for key in keys], skip_special_tokens=False)
        return texts

    def token_id(self, token: str) -> int | None:
        """Id of a token by its spelling."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found


class SlowCodec:
    """A codec over a transformers tokenizer that has no ``tokenizers`` backend."""

    def __init__(self, tokenizer: Any) -> None:
        self.file_fingerprint: str | None = None
        self._tokenizer = tokenizer
        self._vocabulary: dict[str, int] = dict(tokenizer.get_vocab())
        vocabulary = self._vocabulary
        self.known = _known(vocabulary.values())
        self.vocab_size = len(self.known)
        listing = "\n".join(
            f"{index} {token!r}" for token, index in sorted(vocabulary.items(), key=lambda item: item[1])
        )
        self.fingerprint = hashlib.sha256(f"{type(tokenizer).__name__}\n{listing}".encode()).hexdigest()
        self.unknown = getattr(tokenizer, "unk_token_id", None)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        return [list(self._tokenizer.encode(text, add_special_tokens=False)) for text in texts]

    def decode(self, keys: Sequence[Sequence[int]]) -> list[str]:
        """Text of each key."""
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return [self._tokenizer.decode(list(key), **options) for key in keys]

    def token_id(self, token: str) -> int | None:
        """Id of a token by its spelling."""
        return self._vocabulary.get(token)


def _known(ids: Collection[int]) -> npt.NDArray[np.bool_]:
    known = np.zeros(max(ids, default=-1) + 1, dtype=bool)
    known[list(ids)] = True
    return known


def open_tokenizer(source: Any) -> TextCodec:
    """A codec from a ``tokenizer.json``, a folder that holds one, or a tokenizer of ``tokenizers`` or transformers.

    Raises:
        ArgumentError: ``source`` is none of these, or the path does not exist.
        FormatError: the file is not a tokenizer.
    """
    if isinstance(source, (str, Path)):
        path = Path(source)
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise ArgumentError(
                f"tokenizer {path}: expected a tokenizer.json or a folder that holds one, found no such file"
            )
        from tokenizers import Tokenizer

        try:
            loaded = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise FormatError(f"tokenizer {path}: expected a file written by 'tokenizers', found: {error}") from error
        return FastCodec(loaded, tokenizer_file_fingerprint(path))
    if hasattr(source, "to_str") and hasattr(source, "encode_batch"):
        return FastCodec(source)
    if (backend := getattr(source, "backend_tokenizer", None)) is not None and hasattr(backend, "to_str"):
        return FastCodec(backend)
    if hasattr(source, "get_vocab") and hasattr(source, "decode"):
        return SlowCodec(source)
    raise ArgumentError(
        f"tokenizer: expected a path to tokenizer.json, a tokenizers.Tokenizer or a transformers tokenizer, "
        f"found {type(source).__name__}"
    )


@dataclass(frozen=True, kw_only=True)
class KeyTexts:
    """What a batch of keys became. All lists run over the batch's keys in order."""

    texts: list[str]
    reasons: list[str | None]
    """Why a key was dropped; None where it is kept."""
    donor_tokens: list[list[int]]
    """Donor tokens of each key's text; empty where dropped."""

    @property
    def dropped(self) -> Counter[str]:
        """Number of dropped keys by reason."""
        return Counter(reason for reason in self.reasons if reason is not None)


def key_texts(
    keys: Sequence[Sequence[int]], recipient: TextCodec, donor: TextCodec, *, round_trip: RoundTrip = "text"
) -> KeyTexts:
    """Decode each key, judge its round trip, encode the survivors for the donor.

    Raises:
        ArgumentError: ``round_trip`` is neither ``"text"`` nor ``"ids"``.
    """
    if round_trip not in ("text", "ids"):
        raise ArgumentError(f"round_trip: expected 'text' or 'ids', found {round_trip!r}")
    texts = recipient.decode(keys)
    again = recipient.encode(texts)
    texts_again = recipient.decode(again)
    reasons: list[str | None] = []
    for key, text, ids, text_again in zip(keys, texts, again, texts_again, strict=True):
        same_ids = list(key) == ids
        if not text:
            reasons.append("empty_text")
        elif REPLACEMENT in text and not same_ids:
            reasons.append("partial_utf8")
        elif text_again != text:
            reasons.append("rewritten")
        elif round_trip == "ids" and not same_ids:
            reasons.append("retokenized")
        else:
            reasons.append(None)
    kept = [row for row, reason in enumerate(reasons) if reason is None]
    donor_tokens: list[list[int]] = [[] for _ in texts]
    for row, tokens in zip(kept, donor.encode([texts[row] for row in kept]), strict=True):
        if not tokens:
            reasons[row] = "donor_empty"
        elif donor.unknown is not None and donor.unknown in tokens:
            reasons[row] = "donor_unknown"
        else:
            donor_tokens[row] = tokens
    return KeyTexts(texts=texts, reasons=reasons, donor_tokens=donor_tokens)

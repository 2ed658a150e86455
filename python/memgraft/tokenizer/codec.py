"""One opener for tokenizers: a file, a folder, or an object of ``tokenizers`` or transformers becomes a codec."""

import hashlib
import json
import os
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from memgraft import _core
from memgraft.decoding import Anchor, decode_inside, find_anchor
from memgraft.errors import ArgumentError
from memgraft.tokenizer.inside import closest, lost_bytes, without_edges
from memgraft.tokenizer.mapping import (
    added_fingerprint,
    fingerprint_of,
    listing_fingerprint,
    model_vocabulary,
    serialized_key,
)
from memgraft.tokenizer.probe import PROBE_TEXTS
from memgraft.tokenizer_file import load_tokenizer_file, tokenizer_path

_WRAPPING = ("version", "truncation", "padding", "post_processor")


class TextCodec(Protocol):
    """Text to token ids and back, in batches."""

    vocab_size: int
    """Ids lie in ``0 .. vocab_size - 1``, added tokens included."""
    file_fingerprint: str | None
    """Fingerprint of the ``tokenizer.json`` it was opened from, which token corpora and key sets name."""
    known: npt.NDArray[np.bool_]
    """(vocab_size,) whether an id is a token; vocabularies have holes."""
    unknown: int | None
    """The unknown token's id, if the tokenizer has one."""
    serialized: str | None
    """The tokenizer as the text of a ``tokenizer.json``; None where it has no such form."""

    @property
    def own_size(self) -> int:
        """As ``vocab_size``, without the tokens added beyond the model's vocabulary: embeddings may lack their rows."""

    @property
    def fingerprint(self) -> str:
        """Hash of the mapping between text and ids, 64 hex characters; however it is stored, loaded or wrapped."""

    @property
    def old_fingerprint(self) -> str:
        """The fingerprint that earlier banks record."""

    @property
    def content_key(self) -> str:
        """Hash of all that decides ids and texts, added tokens included: what follows from them is cached under it."""

    def added_fingerprint(self, vocab_size: int) -> str:
        """Hash of the added tokens with ids below ``vocab_size``, which the mapping's fingerprint leaves out."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; no special tokens added, nothing truncated or padded."""

    def decode(self, keys: Sequence[Sequence[int]]) -> list[str]:
        """Text of each key; special tokens kept, spaces as they are."""

    def encode_inside(self, texts: Sequence[str], likely: Sequence[Sequence[int]] = ()) -> list[list[int]]:
        """Token ids of each text as inside a document: no space is added before it.

        Args:
            texts: N texts.
            likely: N lists of ids that these are the texts of, so that such an answer needs no check; or none.
        """

    def decode_inside(self, keys: Sequence[Sequence[int]]) -> list[str]:
        """Text of each key as inside a document: a space before its first word is kept."""

    def stable(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text, inside a document, is encoded and decoded to itself."""

    def piece(self, token: int) -> str | None:
        """The vocabulary's own spelling of an id; None for a hole."""

    def token_id(self, token: str) -> int | None:
        """Id of a token by its spelling in the vocabulary, special tokens included; None where there is none."""


class _Codec:
    """What both codecs share: the edges of texts."""

    vocab_size: int
    known: npt.NDArray[np.bool_]
    unknown: int | None
    serialized: str | None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        raise NotImplementedError

    def decode(self, keys: Sequence[Sequence[int]]) -> list[str]:
        raise NotImplementedError

    def _encode_bare(self, texts: Sequence[str]) -> list[list[int]]:
        """As `encode`, by a tokenizer that adds no space, where such a one can be made."""
        return self.encode(texts)

    @cached_property
    def _anchor(self) -> Anchor:
        return find_anchor(lambda text: self.encode([text])[0], self.decode, self.unknown)

    def _keeps(self, texts: Sequence[str]) -> bool:
        """Whether what the tokenizer is made of says that these texts are decoded to themselves."""
        return False

    def encode_inside(self, texts: Sequence[str], likely: Sequence[Sequence[int]] = ()) -> list[list[int]]:
        """Token ids of each text as inside a document."""
        found = self._encode_bare(texts)
        if self._keeps(texts):
            return found
        asked = [row for row, ids in enumerate(found) if not likely or ids != likely[row]]
        read = self.decode_inside([found[row] for row in asked])
        wrong = [row for row, text in zip(asked, read, strict=True) if text != texts[row]]
        if not wrong:
            return found
        readings = [[found[row]] for row in wrong]
        for shape in ("cut", "plain"):
            other = [texts[row][1:] if shape == "cut" and texts[row][:1] == " " else texts[row] for row in wrong]
            for options, ids in zip(readings, self.encode(other), strict=True):
                options.append(ids)
        decoded = iter(self.decode_inside([ids for options in readings for ids in options]))
        for row, options in zip(wrong, readings, strict=True):
            found[row] = closest(texts[row], [(ids, next(decoded)) for ids in options])
        return found

    def decode_inside(self, keys: Sequence[Sequence[int]]) -> list[str]:
        """Text of each key as inside a document."""
        return decode_inside(keys, self.decode, self._anchor)

    def stable(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text, inside a document, is encoded and decoded to itself."""
        if self._keeps(texts):
            return [True] * len(texts)
        anchor, _ = self._anchor
        whole = [anchor + text for text in texts]
        return [one == other for one, other in zip(whole, self.decode(self.encode(whole)), strict=True)]


class FastCodec(_Codec):
    """A codec over a ``tokenizers.Tokenizer``; it works on a copy, so that the caller's padding and truncation stay."""

    def __init__(self, tokenizer: Any, file_fingerprint: str | None = None) -> None:
        from tokenizers import Tokenizer

        self.file_fingerprint = file_fingerprint
        self._serialized: str = tokenizer.to_str()
        self.serialized: str | None = self._serialized
        self._tokenizer = Tokenizer.from_str(self._serialized)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self.known = _known(self._tokenizer.get_vocab(with_added_tokens=True).values())
        self.vocab_size = len(self.known)
        name = getattr(self._tokenizer.model, "unk_token", None)
        self.unknown = None if name is None else self._tokenizer.token_to_id(name)
        if name is None and (place := self._facts["model"].get("unk_id")) is not None:
            self.unknown = int(place)

    @cached_property
    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self._serialized)
        return facts

    @cached_property
    def own_size(self) -> int:
        """Largest id of the model's own vocabulary plus one."""
        return max((token for _, token in model_vocabulary(self._facts["model"])), default=-1) + 1

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the mapping between text and ids."""
        return fingerprint_of(self._serialized)

    @cached_property
    def old_fingerprint(self) -> str:
        """The fingerprint of earlier banks: of the serialisation, so that a rebuilt tokenizer had another."""
        mapping = {name: part for name, part in self._facts.items() if name not in _WRAPPING}
        return hashlib.sha256(json.dumps(mapping, sort_keys=True).encode()).hexdigest()

    @property
    def content_key(self) -> str:
        """Hash of the serialisation."""
        return serialized_key(self._serialized)

    @cached_property
    def _added(self) -> dict[int, str]:
        own = {token for _, token in model_vocabulary(self._facts["model"])}
        return {int(t["id"]): t["content"] for t in self._facts.get("added_tokens") or () if int(t["id"]) not in own}

    def added_fingerprint(self, vocab_size: int) -> str:
        """Hash of the added tokens with ids below ``vocab_size``."""
        return added_fingerprint(self._added, vocab_size)

    @cached_property
    def _lost(self) -> frozenset[int] | None:
        return lost_bytes(self._facts)

    def _keeps(self, texts: Sequence[str]) -> bool:
        if self._lost is None:
            return False
        if not self._lost:
            return True
        joined = "".join(texts).encode("utf-8", "surrogatepass")
        return not any(byte in joined for byte in self._lost)

    @cached_property
    def _bare(self) -> Any:
        from tokenizers import Tokenizer

        bare = without_edges(self._facts)
        if bare == self._facts:
            return self._tokenizer
        made = Tokenizer.from_str(json.dumps(bare))
        made.no_truncation()
        made.no_padding()
        made.encode_special_tokens = True
        return made

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _encode_bare(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._bare.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, keys: Sequence[Sequence[int]]) -> list[str]:
        """Text of each key."""
        texts: list[str] = self._tokenizer.decode_batch([list(key) for key in keys], skip_special_tokens=False)
        return texts

    def piece(self, token: int) -> str | None:
        """The vocabulary's own spelling of an id."""
        found: str | None = self._tokenizer.id_to_token(token)
        return found

    def token_id(self, token: str) -> int | None:
        """Id of a token by its spelling."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found


class SlowCodec(_Codec):
    """A codec over a transformers tokenizer that has no ``tokenizers`` backend."""

    def __init__(self, tokenizer: Any) -> None:
        self.serialized = None
        self.file_fingerprint: str | None = None
        self._tokenizer = tokenizer
        self._vocabulary: dict[str, int] = {str(piece): int(token) for piece, token in tokenizer.get_vocab().items()}
        self._pieces = {token: piece for piece, token in self._vocabulary.items()}
        self.known = _known(self._vocabulary.values())
        self.vocab_size = len(self.known)
        self.unknown = getattr(tokenizer, "unk_token_id", None)

    @cached_property
    def _added(self) -> dict[int, str]:
        added: dict[str, int] = getattr(self._tokenizer, "get_added_vocab", dict)()
        size = int(getattr(self._tokenizer, "vocab_size", self.vocab_size))
        return {int(token): piece for piece, token in added.items() if token >= size}

    @cached_property
    def own_size(self) -> int:
        """Largest id that is no added token's plus one."""
        return max((token for token in self._vocabulary.values() if token not in self._added), default=-1) + 1

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what can be seen: vocabulary, ids of texts, texts of ids."""
        own = {piece: token for piece, token in self._vocabulary.items() if token not in self._added}
        encoded = self.encode(PROBE_TEXTS)
        return listing_fingerprint("slow", own, encoded, self.decode(encoded))

    @cached_property
    def old_fingerprint(self) -> str:
        """The fingerprint of earlier banks."""
        ordered = sorted(self._vocabulary.items(), key=lambda item: item[1])
        listing = "\n".join(f"{index} {token!r}" for token, index in ordered)
        return hashlib.sha256(f"{type(self._tokenizer).__name__}\n{listing}".encode()).hexdigest()

    @property
    def content_key(self) -> str:
        """Hash of every id's text."""
        texts = self.decode([[token] for token in range(self.vocab_size)])
        return hashlib.sha256(f"{self.fingerprint}{texts!r}".encode("utf-8", "surrogatepass")).hexdigest()

    def added_fingerprint(self, vocab_size: int) -> str:
        """Hash of the added tokens with ids below ``vocab_size``."""
        return added_fingerprint(self._added, vocab_size)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        return [list(self._tokenizer.encode(text, add_special_tokens=False)) for text in texts]

    def decode(self, keys: Sequence[Sequence[int]]) -> list[str]:
        """Text of each key."""
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return [self._tokenizer.decode(list(key), **options) for key in keys]

    def piece(self, token: int) -> str | None:
        """The vocabulary's own spelling of an id."""
        return self._pieces.get(token)

    def token_id(self, token: str) -> int | None:
        """Id of a token by its spelling."""
        return self._vocabulary.get(token)


def _known(ids: Collection[int]) -> npt.NDArray[np.bool_]:
    known = np.zeros(max(ids, default=-1) + 1, dtype=bool)
    known[list(ids)] = True
    return known


def tokenizer_file_fingerprint(path: str | os.PathLike[str]) -> str:
    """Fingerprint of the bytes of a ``tokenizer.json``, or a folder's, as token corpora and key sets record it."""
    return _core.fingerprint_file(os.fspath(tokenizer_path(path)))


def open_tokenizer(source: Any) -> TextCodec:
    """A codec from a ``tokenizer.json``, a folder that holds one, or a tokenizer of ``tokenizers`` or transformers.

    Raises:
        ArgumentError: ``source`` is none of these, or the path does not exist.
        FormatError: the file is not a tokenizer.
        ConfigError: the ``tokenizers`` library is missing.
    """
    if isinstance(source, _Codec):
        return source  # type: ignore[return-value]
    if isinstance(source, str) or hasattr(source, "__fspath__"):
        return FastCodec(load_tokenizer_file(source), tokenizer_file_fingerprint(source))
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

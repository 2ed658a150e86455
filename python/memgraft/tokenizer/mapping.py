"""The fingerprint of a tokenizer's mapping: what ids existing text gets, and what text ids give.

Two serialisations may mean one mapping (a ``Prepend`` and a ``Replace`` against a ``Metaspace``, two spellings of a
regular expression), so structure alone cannot decide. The rule hashes what is comparable as data (vocabulary, merges or
scores) and what the rest *does* on texts that tell normalisers, cuts, byte fallbacks and decoders apart. Every probe
begins with a letter and is read as inside a document, because what a tokenizer adds or strips at the very edge of a
text is no part of the mapping: transformers rebuilds a Llama-2 tokenizer with another treatment of leading blanks.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from memgraft.assets.cache import cache_directory
from memgraft.errors import StorageError
from memgraft.system import write_beside
from memgraft.tokenizer.inside import without_edges
from memgraft.tokenizer.probe import PROBE_TEXTS

REPLACEMENT = "\ufffd"


def serialized_key(serialized: str) -> str:
    """Hash under which what follows from a serialised tokenizer is kept."""
    return hashlib.sha256(serialized.encode()).hexdigest()


def base_serialization(facts: Mapping[str, Any]) -> dict[str, Any]:
    """A serialised tokenizer without what is no part of the mapping.

    Left out are padding, truncation, the post-processor, a training-time dropout, a space before every text, special
    tokens, and tokens that were added beyond the model's own vocabulary.
    """
    facts = without_edges(facts)
    model = dict(facts["model"])
    if "dropout" in model:
        model["dropout"] = None
    size = _model_size(model)
    added = [token for token in facts.get("added_tokens") or () if not token.get("special") and int(token["id"]) < size]
    return {
        **facts,
        "truncation": None,
        "padding": None,
        "post_processor": None,
        "model": model,
        "added_tokens": added,
    }


def mapping_fingerprint(tokenizer: Any, facts: Mapping[str, Any]) -> str:
    """SHA-256 of the mapping of a ``tokenizers.Tokenizer``, given its parsed serialisation.

    Args:
        tokenizer: made from `base_serialization` of ``facts``.
        facts: the parsed serialisation.
    """
    digest = hashlib.sha256(b"memgraft tokenizer mapping 1\n")
    model = facts["model"]
    vocabulary = model_vocabulary(model)
    _add(digest, "vocabulary", (f"{token} {piece}" for piece, token in vocabulary))
    _add(digest, "merges", _merges(model))
    digest.update(_scores(model))
    _add(digest, "pieces", (json.dumps(_pieces(tokenizer, text)) for text in PROBE_TEXTS))
    ids = [token for piece, token in vocabulary if not _looks_special(piece)]
    # Twice, because decoders strip the first space and a single token would not tell whether it has one.
    twice = tokenizer.decode_batch([[token, token] for token in ids], skip_special_tokens=False)
    texts = [text.removeprefix(" ") for text in twice]
    _add(digest, "texts", map(json.dumps, texts))
    probes = [*PROBE_TEXTS, *(f"x{text}" for text in texts if text and REPLACEMENT not in text)]
    encoded = [encoding.ids for encoding in tokenizer.encode_batch_fast(probes, add_special_tokens=False)]
    for row in encoded:
        digest.update(np.array([len(row), *row], dtype="<u4").tobytes())
    decoded = tokenizer.decode_batch(encoded[: len(PROBE_TEXTS)], skip_special_tokens=False)
    _add(digest, "decoded", map(json.dumps, decoded))
    return digest.hexdigest()


def listing_fingerprint(
    kind: str, vocabulary: Mapping[str, int], encoded: Sequence[list[int]], texts: list[str]
) -> str:
    """SHA-256 of what can be seen of a tokenizer without a ``tokenizers`` backend: vocabulary, ids, texts of ids."""
    digest = hashlib.sha256(f"memgraft tokenizer listing 1\n{kind}\n".encode())
    _add(digest, "vocabulary", (f"{token} {piece}" for piece, token in sorted(vocabulary.items(), key=_by_id)))
    for row in encoded:
        digest.update(np.array([len(row), *row], dtype="<u4").tobytes())
    _add(digest, "decoded", map(json.dumps, texts))
    return digest.hexdigest()


def added_fingerprint(added: Mapping[int, str], vocab_size: int) -> str:
    """SHA-256 of the added tokens (id to text) below ``vocab_size``: the rest was added after the mining."""
    digest = hashlib.sha256(b"memgraft added tokens 1\n")
    _add(digest, "added", (f"{token} {text}" for token, text in sorted(added.items()) if token < vocab_size))
    return digest.hexdigest()


def model_vocabulary(model: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Pieces and ids of the model's own vocabulary, by id; added tokens are not in it."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, Mapping):
        return sorted(((piece, int(token)) for piece, token in vocabulary.items()), key=_by_id)
    return [(str(entry[0]), place) for place, entry in enumerate(vocabulary)]


def _by_id(entry: tuple[str, int]) -> tuple[int, str]:
    return entry[1], entry[0]


def _model_size(model: Mapping[str, Any]) -> int:
    return max((token for _, token in model_vocabulary(model)), default=-1) + 1


def _merges(model: Mapping[str, Any]) -> Iterable[str]:
    """Merges in their order; both spellings of the format are the same pair."""
    for merge in model.get("merges") or ():
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        yield json.dumps([left, right])


def _scores(model: Mapping[str, Any]) -> bytes:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, Mapping):
        return b"no scores\n"
    # SentencePiece keeps them as float32; a file may say the same number with more or fewer digits.
    return b"scores\n" + np.array([entry[1] for entry in vocabulary], dtype="<f4").tobytes()


def _pieces(tokenizer: Any, text: str) -> list[str]:
    """How the text is normalised and cut before the model sees it."""
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    if tokenizer.pre_tokenizer is None:
        return [text]
    return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def _looks_special(piece: str) -> bool:
    """Whether a token may be listed as special by one loader and as plain by another."""
    return len(piece) > 2 and (piece[0], piece[-1]) in {("<", ">"), ("[", "]")}


def _add(digest: Any, name: str, lines: Iterable[str]) -> None:
    digest.update(f"{name}\n".encode())
    for line in lines:
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    digest.update(b"\0")


_RULE = 1
"""To be raised with the rule, so that fingerprints of another rule are not taken from the cache."""
_KNOWN: dict[str, str] = {}


def fingerprint_of(serialized: str) -> str:
    """`mapping_fingerprint` of a serialised tokenizer; made once and cached, because 262 k tokens take seconds."""
    key = f"{_RULE}-{serialized_key(serialized)}"
    if key not in _KNOWN:
        _KNOWN[key] = _cached(key) or _made(key, serialized)
    return _KNOWN[key]


def _cached(key: str) -> str | None:
    try:
        found = (cache_directory() / "tokenizers" / key).read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return found if len(found) == 64 else None


def _made(key: str, serialized: str) -> str:
    from tokenizers import Tokenizer

    facts = json.loads(serialized)
    made = mapping_fingerprint(Tokenizer.from_str(json.dumps(base_serialization(facts))), facts)
    # A cache that cannot be written costs time and nothing else.
    with contextlib.suppress(OSError, StorageError):
        write_beside(cache_directory() / "tokenizers" / key, made.encode())
    return made

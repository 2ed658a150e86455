"""Text as it stands inside a document, without what tokenizers add or take away at the edges of a text.

SentencePiece's put a space before every text and drop the first space of every decoding, WordPiece's take every text
for the start of a word. A key is cut out of the middle of a document, where none of this happens.
"""

import functools
from collections.abc import Mapping
from typing import Any


def without_edges(facts: Mapping[str, Any]) -> dict[str, Any]:
    """A serialised tokenizer that adds no space before a text.

    A Metaspace behind another pre-tokenizer stays: there it marks the start of every word, not of the text.
    """
    pre_tokenizer = facts.get("pre_tokenizer")
    if pre_tokenizer is not None and pre_tokenizer["type"] == "Sequence":
        parts = [_bare(part, first=place == 0) for place, part in enumerate(pre_tokenizer["pretokenizers"])]
        pre_tokenizer = {**pre_tokenizer, "pretokenizers": parts}
    else:
        pre_tokenizer = _bare(pre_tokenizer, first=True)
    return {**facts, "normalizer": _without_prepend(facts.get("normalizer")), "pre_tokenizer": pre_tokenizer}


def _without_prepend(part: Any) -> Any:
    if part is None or part["type"] == "Prepend":
        return None
    if part["type"] == "Sequence":
        return {**part, "normalizers": [kept for item in part["normalizers"] if (kept := _without_prepend(item))]}
    return part


def _bare(part: Any, *, first: bool) -> Any:
    if part is not None and part["type"] == "Metaspace" and first:
        return {**part, "prepend_scheme": "never"}
    if part is not None and part["type"] == "ByteLevel" and first:
        return {**part, "add_prefix_space": False}
    return part


def closest(text: str, readings: list[tuple[list[int], str]]) -> list[int]:
    """The ids whose text is ``text``, else the first that begins with a space where it does, else the first."""
    for ids, found in readings:
        if found == text:
            return ids
    for ids, found in readings:
        if found[:1].isspace() == text[:1].isspace():
            return ids
    return readings[0][0]


def lost_bytes(facts: Mapping[str, Any]) -> frozenset[int] | None:
    """The bytes that a serialised tokenizer has no token for, where it is byte-level BPE that loses nothing else.

    A text without them is decoded to itself. Cuts may drop nothing then, and added tokens are plain signs that bytes
    stand for too. None where it is anything else.
    """
    model, pre_tokenizer = facts["model"], facts.get("pre_tokenizer")
    decoder = facts.get("decoder") or {}
    if model.get("type") != "BPE" or decoder.get("type") != "ByteLevel" or facts.get("normalizer") is not None:
        return None
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix") or pre_tokenizer is None:
        return None
    parts = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    if not all(_keeps_all(part) for part in parts) or parts[-1]["type"] != "ByteLevel":
        return None
    plain = {chr(code) for code in range(ord("!"), ord("~") + 1)}
    added = facts.get("added_tokens") or ()
    if not all(set(token["content"]) <= plain and not token["lstrip"] and not token["rstrip"] for token in added):
        return None
    return frozenset(byte for byte, sign in enumerate(_byte_signs()) if sign not in model["vocab"])


def _keeps_all(part: Mapping[str, Any]) -> bool:
    """Whether a cut keeps every sign."""
    if part["type"] == "ByteLevel":
        return not bool(part["add_prefix_space"])
    return bool(part["type"] == "Digits" or (part["type"] == "Split" and part["behavior"] != "Removed"))


@functools.cache
def _byte_signs() -> tuple[str, ...]:
    """The sign that byte-level tokenizers write for each byte: itself where it is seen, else one past 255."""
    seen = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return tuple(chr(byte if byte in seen else next(others)) for byte in range(256))

"""Text of tokens as it stands inside a document.

SentencePiece's decoders drop the first space of every decoding, WordPiece's take every text for the start of a word. A
key is cut out of the middle of a document, so it is decoded behind a short text that is then taken off.
"""

from collections.abc import Callable, Sequence

ANCHORS = ("a", "A", "0", ".")
"""Texts that may stand before a key while it is decoded; the first that a tokenizer reads and gives back is taken."""

Decode = Callable[[Sequence[Sequence[int]]], list[str]]
Anchor = tuple[str, list[int]]


def find_anchor(encode: Callable[[str], list[int]], decode: Decode, unknown: int | None = None) -> Anchor:
    """A short text, and its ids, that may stand before a key; empty where there is none."""
    for anchor in ANCHORS:
        ids = encode(anchor)
        if ids and unknown not in ids and decode([ids])[0] == anchor:
            return anchor, ids
    return "", []


def decode_inside(keys: Sequence[Sequence[int]], decode: Decode, anchor: Anchor) -> list[str]:
    """The text of each key as inside a document."""
    before, ids = anchor
    texts = decode([[*ids, *key] for key in keys])
    lost = [row for row, text in enumerate(texts) if not text.startswith(before)]
    texts = [text[len(before) :] for text in texts]
    # A decoder that rewrites across the edge is asked for the key alone.
    for row, text in zip(lost, decode([keys[row] for row in lost]), strict=True):
        texts[row] = text
    return texts

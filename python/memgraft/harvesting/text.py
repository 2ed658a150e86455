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

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from memgraft.errors import ArgumentError
from memgraft.tokenizer import FastCodec, SlowCodec, TextCodec, open_tokenizer

__all__ = ["FastCodec", "KeyTexts", "RoundTrip", "SlowCodec", "TextCodec", "key_texts", "open_tokenizer"]

REPLACEMENT = "\ufffd"
DROP_REASONS = ("partial_utf8", "empty_text", "rewritten", "retokenized", "donor_empty", "donor_unknown")

RoundTrip = Literal["text", "ids"]


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

    @property
    def num_shared(self) -> int:
        """Number of kept keys whose text another kept key before them has: other tokens, the same text, one value."""
        kept = [text for text, reason in zip(self.texts, self.reasons, strict=True) if reason is None]
        return len(kept) - len(set(kept))


def key_texts(
    keys: Sequence[Sequence[int]], recipient: TextCodec, donor: TextCodec, *, round_trip: RoundTrip = "text"
) -> KeyTexts:
    """Decodes each key as it stands inside a document, judges its round trip, encodes the survivors for the donor.

    A key that starts a word keeps the space before it, one that goes on with a word has none.

    Raises:
        ArgumentError: ``round_trip`` is neither ``"text"`` nor ``"ids"``.
    """
    if round_trip not in ("text", "ids"):
        raise ArgumentError(f"round_trip: expected 'text' or 'ids', found {round_trip!r}")
    texts = recipient.decode_inside(keys)
    keys = [key if isinstance(key, list) else list(key) for key in keys]
    again = recipient.encode_inside(texts, keys)
    others = [row for row, ids in enumerate(again) if ids != keys[row]]
    reasons: list[str | None] = [None if text else "empty_text" for text in texts]
    # A key that its own text is encoded to has lost nothing.
    for row, stable in zip(others, recipient.stable([texts[row] for row in others]), strict=True):
        if REPLACEMENT in texts[row]:
            reasons[row] = "partial_utf8"
        elif texts[row] and not stable:
            reasons[row] = "rewritten"
        elif texts[row] and round_trip == "ids":
            reasons[row] = "retokenized"
    kept = [row for row, reason in enumerate(reasons) if reason is None]
    donor_tokens: list[list[int]] = [[] for _ in texts]
    if recipient.serialized is not None and recipient.serialized == donor.serialized:
        read = [again[row] for row in kept]
    else:
        read = donor.encode_inside([texts[row] for row in kept])
    for row, tokens in zip(kept, read, strict=True):
        if not tokens:
            reasons[row] = "donor_empty"
        elif donor.unknown is not None and donor.unknown in tokens:
            reasons[row] = "donor_unknown"
        else:
            donor_tokens[row] = tokens
    return KeyTexts(texts=texts, reasons=reasons, donor_tokens=donor_tokens)

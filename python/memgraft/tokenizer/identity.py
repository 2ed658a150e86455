"""Whether two tokenizers are one: the rule that banks, grafts and harvests share."""

from collections.abc import Mapping
from typing import Any

from memgraft.tokenizer.codec import TextCodec


def tokenizer_facts(codec: TextCodec, mined_for: int) -> dict[str, Any]:
    """What a bank records of the tokenizer that made its keys, which were mined for a vocabulary of ``mined_for``."""
    size = min(codec.vocab_size, mined_for)
    return {
        "fingerprint": codec.fingerprint,
        "added_fingerprint": codec.added_fingerprint(size),
        "file_fingerprint": codec.file_fingerprint,
        "vocab_size": size,
    }


def differs_from(codec: TextCodec, recorded: Mapping[str, Any]) -> str | None:
    """Why ``codec`` is not the recorded tokenizer, as "expected …, found …"; None where it is, or none is recorded.

    It is the recorded one where the file is the same, or the mapping and the added tokens of the recorded ids are.
    Earlier banks record an older fingerprint, which is compared too.
    """
    expected = recorded.get("fingerprint")
    file = recorded.get("file_fingerprint")
    if expected is None or (file is not None and file == codec.file_fingerprint):
        return None
    added = recorded.get("added_fingerprint")
    if added is None and expected == codec.old_fingerprint:
        return None
    if expected != codec.fingerprint:
        return f"expected {expected}, found {codec.fingerprint}"
    if added is not None:
        found = codec.added_fingerprint(int(recorded["vocab_size"]))
        if found != added:
            return f"expected added tokens {added} below id {recorded['vocab_size']}, found {found}"
    return None

"""Whether two tokenizers are one: the rule that banks, grafts and harvests share."""

from collections.abc import Mapping
from typing import Any

from memgraft.errors import FingerprintError
from memgraft.tokenizer.codec import TextCodec, open_tokenizer


def tokenizer_facts(codec: TextCodec, mined_for: int) -> dict[str, Any]:
    """What a bank records of the tokenizer that made its keys, which were mined for a vocabulary of ``mined_for``."""
    size = min(codec.vocab_size, mined_for)
    return {
        "fingerprint": codec.fingerprint,
        "added_fingerprint": codec.added_fingerprint(size),
        "file_fingerprint": codec.file_fingerprint,
        "vocab_size": size,
    }


def mapping_facts(tokenizer: Any, vocab_size: int | None = None) -> dict[str, Any]:
    """What corpora and key sets record beside the file's hash: the mapping of ``tokenizer``, below ``vocab_size``."""
    codec = open_tokenizer(tokenizer)
    facts = tokenizer_facts(codec, codec.vocab_size if vocab_size is None else vocab_size)
    return {name: fact for name, fact in facts.items() if name != "file_fingerprint"}


def recorded_facts(file: str | None, mapping: Mapping[str, Any] | None) -> dict[str, Any]:
    """The record of a corpus or a key set, as `differs_from` reads it; earlier ones name the file alone."""
    return {**(mapping or {}), "file_fingerprint": file}


def facts_of_keys(metadata: Mapping[str, Any], manifest: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The record of the tokenizer that made keys: of their ``metadata``, and of their bank's ``manifest.tokenizer``."""
    manifest = manifest or {}
    file = metadata.get("tokenizer") or manifest.get("file_fingerprint")
    return recorded_facts(file, metadata.get("tokenizer_mapping") or manifest)


def refuse_other_tokens(keys: Mapping[str, Any], corpus: Any) -> None:
    """Refuses a corpus whose token ids do not mean what those of the keys mean.

    Args:
        keys: the record of the keys' tokenizer (`facts_of_keys`).
        corpus: tokens that are read with them; one that names no tokenizer is taken.

    Raises:
        FingerprintError: both name their tokenizers, and these differ.
    """
    file, mapping = getattr(corpus, "tokenizer", None), getattr(corpus, "tokenizer_mapping", None)
    if other_mapping(keys, recorded_facts(file, mapping)):
        expected = keys["file_fingerprint"] or keys.get("fingerprint")
        raise FingerprintError(
            f"{corpus.paths[0]}: expected tokens of the tokenizer {expected}, which made the keys, found {file}; "
            "tokenise the text with the recipient's tokenizer"
        )


def other_mapping(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two records name different tokenizers; a record that names none is no other.

    Added tokens are compared where both vocabularies have one size: a larger one got tokens later.
    """
    files = one.get("file_fingerprint"), other.get("file_fingerprint")
    if None not in files and files[0] == files[1]:
        return False
    if "fingerprint" in one and "fingerprint" in other:
        if one["fingerprint"] != other["fingerprint"]:
            return True
        # Earlier records have no hash of the added tokens.
        added = [facts.get("added_fingerprint") for facts in (one, other)]
        return one.get("vocab_size") == other.get("vocab_size") and None not in added and added[0] != added[1]
    return None not in files


def differs_from(codec: TextCodec, recorded: Mapping[str, Any]) -> str | None:
    """Why ``codec`` is not the recorded tokenizer, as "expected …, found …"; None where it is, or none is recorded.

    It is the recorded one where the file is the same, or the mapping and the added tokens of the recorded ids are.
    Earlier banks record an older fingerprint, which is compared too.
    """
    expected = recorded.get("fingerprint")
    file = recorded.get("file_fingerprint")
    if file is not None and file == codec.file_fingerprint:
        return None
    if expected is None:
        known = None not in (file, codec.file_fingerprint)
        return f"expected the file {file}, found {codec.file_fingerprint}" if known else None
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

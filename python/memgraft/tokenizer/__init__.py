"""Tokenizers: opened in one place, told apart by one rule (docs/FORMAT.md, "Fingerprints of tokenizers")."""

from memgraft.tokenizer.codec import FastCodec, SlowCodec, TextCodec, open_tokenizer, tokenizer_file_fingerprint
from memgraft.tokenizer.identity import (
    differs_from,
    facts_of_keys,
    mapping_facts,
    other_mapping,
    recorded_facts,
    refuse_other_tokens,
    tokenizer_facts,
)

__all__ = [
    "FastCodec",
    "SlowCodec",
    "TextCodec",
    "differs_from",
    "facts_of_keys",
    "mapping_facts",
    "open_tokenizer",
    "other_mapping",
    "recorded_facts",
    "refuse_other_tokens",
    "tokenizer_facts",
    "tokenizer_file_fingerprint",
]

"""Tokenizers: opened in one place, told apart by one rule (docs/FORMAT.md, "Fingerprints of tokenizers")."""

from memgraft.tokenizer.codec import FastCodec, SlowCodec, TextCodec, open_tokenizer
from memgraft.tokenizer.identity import differs_from, mapping_facts, other_mapping, recorded_facts, tokenizer_facts

__all__ = [
    "FastCodec",
    "SlowCodec",
    "TextCodec",
    "differs_from",
    "mapping_facts",
    "open_tokenizer",
    "other_mapping",
    "recorded_facts",
    "tokenizer_facts",
]

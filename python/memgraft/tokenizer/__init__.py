"""Tokenizers: opened in one place, told apart by one rule (docs/FORMAT.md, "Fingerprints of tokenizers")."""

from memgraft.tokenizer.codec import FastCodec, SlowCodec, TextCodec, open_tokenizer
from memgraft.tokenizer.identity import differs_from, tokenizer_facts

__all__ = ["FastCodec", "SlowCodec", "TextCodec", "differs_from", "open_tokenizer", "tokenizer_facts"]

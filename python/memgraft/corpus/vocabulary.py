"""The tokenizer that made tokens, or is to make them: loaded, its number of ids, its special ids."""

import os
from typing import Any

from memgraft.errors import ArgumentError, CorpusError, FormatError
from memgraft.tokenizer_file import load_tokenizer_file


def load_tokenizer(path: str | os.PathLike[str]) -> Any:
    """Loads a ``tokenizer.json``, or a folder's, with the ``tokenizers`` library, truncation and padding off.

    Raises:
        ConfigError: the library is missing.
        CorpusError: the file is not a tokenizer.
    """
    try:
        tokenizer = load_tokenizer_file(path)
    except (ArgumentError, FormatError) as error:
        raise CorpusError(str(error)) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def tokenizer_size(tokenizer: Any) -> int:
    """Largest id of a tokenizer (or of the one at a path) plus one; ids may have holes, so not their number."""
    if isinstance(tokenizer, (str, os.PathLike)):
        tokenizer = load_tokenizer(tokenizer)
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def find_special_ids(tokenizer: Any) -> list[int]:
    """Ids of the special tokens of a loaded tokenizer, ascending."""
    return sorted(token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special)

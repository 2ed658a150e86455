"""What a harvest leaves in the bank's folder besides the bank: the recipient's tokenizer, the keys it dropped."""

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np

from memgraft.bank.extras import MOST_DROPPED, dropped_file, sample_file, tokenizer_files
from memgraft.harvesting.setup import Setup
from memgraft.harvesting.text import key_texts
from memgraft.index import NgramIndex
from memgraft.keyset import KeySet
from memgraft.keysets import rows_in
from memgraft.tokenizer_file import TOKENIZER_NAME

_CHUNK = 16384


def beside_bank(
    keys: KeySet, index: NgramIndex, setup: Setup, tokenizer: Any, *, keep_tokenizer: bool
) -> dict[str, bytes]:
    """The files, by name.

    Args:
        keys: what was mined.
        index: the index of the kept keys.
        setup: what the harvest was made with.
        tokenizer: the recipient's tokenizer as it was given.
        keep_tokenizer: False leaves it out.
    """
    files = dropped_file(itertools.islice(_dropped(keys, index, setup), MOST_DROPPED)) | sample_file(keys)
    if keep_tokenizer:
        files |= _tokenizer_files(tokenizer, setup)
    return files


def _tokenizer_files(tokenizer: Any, setup: Setup) -> dict[str, bytes]:
    if isinstance(tokenizer, (str, os.PathLike)):
        path = Path(tokenizer)
        if path.is_dir():
            return tokenizer_files([path])
        beside = tokenizer_files([path.parent]) if path.name == TOKENIZER_NAME else {}
        return {**beside, TOKENIZER_NAME: path.read_bytes()}
    serialized = setup.recipient.serialized
    return {} if serialized is None else {TOKENIZER_NAME: serialized.encode()}


def _dropped(keys: KeySet, index: NgramIndex, setup: Setup) -> Any:
    """Key, count and reason of each dropped key, from the most frequent on."""
    if len(index) == len(keys):
        return
    rows = np.flatnonzero(rows_in(keys, index) < 0)
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK].tolist()
        lists = [list(keys.key(row)) for row in part]
        judged = key_texts(lists, setup.recipient, setup.donor.tokenizer, round_trip=setup.round_trip)
        for row, key, reason in zip(part, lists, judged.reasons, strict=True):
            yield {"key": key, "count": keys.count(row), "reason": reason}

"""Files beside a bank's own: the recipient's tokenizer, the keys that were dropped, a sample of the mined corpus."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from memgraft._core import fingerprint_file
from memgraft.bank.manifest import Manifest
from memgraft.corpus.sample import CorpusSample, sample_path
from memgraft.errors import FormatError
from memgraft.keyset import KeySet
from memgraft.tokenizer import differs_from, open_tokenizer
from memgraft.tokenizer_file import TOKENIZER_NAME

TOKENIZER_FILES = (TOKENIZER_NAME, "tokenizer_config.json", "special_tokens_map.json")
DROPPED_NAME = "dropped.jsonl"
SAMPLE_NAME = "keys.mgk.sample"
MOST_DROPPED = 100_000
"""Dropped keys that are listed."""


def tokenizer_files(folders: Sequence[Path]) -> dict[str, bytes]:
    """The tokenizer's files, by name, in the first of ``folders`` with a ``tokenizer.json``; empty where none has."""
    folder = next((folder for folder in folders if (folder / TOKENIZER_NAME).is_file()), None)
    if folder is None:
        return {}
    return {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}


def sample_file(keys: KeySet) -> dict[str, bytes]:
    """The mined corpus's sample, by name: the one made with ``keys``, or beside their file; empty where none is."""
    if keys.sample is not None:
        return {SAMPLE_NAME: keys.sample}
    if keys.path is not None and (beside := sample_path(keys.path)).is_file():
        return {SAMPLE_NAME: beside.read_bytes()}
    return {}


def dropped_file(dropped: Iterable[Mapping[str, Any]]) -> dict[str, bytes]:
    """The list as a file, a JSON object a line; none where no key was dropped."""
    lines = [json.dumps(dict(entry)) + "\n" for entry in dropped]
    return {DROPPED_NAME: "".join(lines).encode()} if lines else {}


def read_dropped(folder: Path) -> list[dict[str, Any]]:
    """The list in a bank's folder; empty where there is none.

    Raises:
        FormatError: it is damaged.
    """
    path = folder / DROPPED_NAME
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: damaged: {error}; restore the file, or remove it") from None
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            found.append({"key": tuple(entry["key"]), "count": int(entry["count"]), "reason": str(entry["reason"])})
        except (ValueError, KeyError, TypeError):
            raise FormatError(
                f"{path}: line {number}: expected key, count and reason, found {line[:60]!r}; restore the file, "
                "or remove it"
            ) from None
    return found


def check_extras(folder: Path, manifest: Manifest) -> None:
    """Checks what lies beside a bank's own files, so far as it is there.

    Raises:
        FormatError: the tokenizer is not the one recorded, or the list does not hold the dropped keys.
    """
    path = folder / TOKENIZER_NAME
    recorded = manifest.tokenizer
    if path.is_file() and recorded.get("file_fingerprint") != fingerprint_file(str(path)):
        # A tokenizer that was given as an object is another file than the one that made the corpus.
        difference = differs_from(open_tokenizer(path), recorded)
        if difference or recorded.get("fingerprint") is None:
            raise FormatError(f"{path}: not the tokenizer of the bank: {difference}; restore the file, or remove it")
    if (folder / SAMPLE_NAME).is_file():
        CorpusSample.open(folder / SAMPLE_NAME)
    listed = len(read_dropped(folder))
    total = min(sum(manifest.dropped.values()), MOST_DROPPED)
    if (folder / DROPPED_NAME).is_file() and listed != total:
        raise FormatError(f"{folder / DROPPED_NAME}: expected {total} dropped keys, found {listed}; restore the file")

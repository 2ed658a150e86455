"""Which keys are harvested, what the donor reads of each, and in which order: judged once, kept beside the bank."""

import contextlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from memgraft.bank.files import fsync_directory, write_text
from memgraft.bank.locks import open_lock, wait_for_lock
from memgraft.bank.values import AnyArray
from memgraft.errors import KeySetError, StorageError, TokenError
from memgraft.harvesting.packing import IntArray, Ragged, shared_lengths, sorted_order
from memgraft.harvesting.text import DROP_REASONS, RoundTrip, key_texts
from memgraft.keyset import KeySet
from memgraft.progress import Progress as Progress
from memgraft.tokenizer import TextCodec

_TEXT_CHUNK = 16384
SORTED_ROWS = 1 << 23
"""Rows are sorted in blocks of so many, which bounds the memory (a GiB); blocks share no prefixes."""
_FACTS_NAME, _KEYS_NAME, _FOLDER_NAME, _LOCK_NAME = "selection.json", "keys.mgk", "selection", "selection.lock"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The kept keys, what the donor reads of them, and the order in which it does."""

    kept: KeySet
    dropped: dict[str, int]
    """Keys without a usable text, by reason."""
    tokens: Ragged
    """Donor tokens by row, without the prefix that the whole bank shares."""
    order: IntArray
    """(R,) rows, so that keys with common beginnings are neighbours."""
    num_prefixes: int
    """Distinct beginnings: what a donor that shares them runs, but for the bank's prefix."""

    def of_rows(self, rows: IntArray) -> "Selection":
        """The keys of ``rows`` alone, in the order of all."""
        rows = np.sort(rows)
        tokens = self.tokens.take(rows)
        order, num_prefixes = _ordered(tokens)
        return Selection(
            kept=self.kept.select(rows), dropped=self.dropped, tokens=tokens, order=order, num_prefixes=num_prefixes
        )


def select_keys(
    keys: KeySet, recipient: TextCodec, donor: TextCodec, round_trip: RoundTrip, progress: Progress | None = None
) -> Selection:
    """Judges every key's text.

    Raises:
        TokenError: a key holds a token that the recipient's tokenizer does not have.
        KeySetError: no key is left.
    """
    keep = np.zeros(len(keys), dtype=bool)
    dropped: Counter[str] = Counter()
    parts: list[Ragged] = []
    for start in range(0, len(keys), _TEXT_CHUNK):
        stop = min(start + _TEXT_CHUNK, len(keys))
        _check_known(keys, start, stop, recipient)
        judged = key_texts(_lists(keys, start, stop), recipient, donor, round_trip=round_trip)
        keep[start:stop] = [reason is None for reason in judged.reasons]
        parts.append(Ragged.of([tokens for tokens in judged.donor_tokens if tokens]))
        dropped.update(judged.dropped)
        if progress is not None:
            progress("text", stop, len(keys))
    counts = {reason: dropped[reason] for reason in DROP_REASONS if dropped[reason]}
    if not keep.any():
        raise KeySetError(
            f"no key is left to harvest: {len(keys)} mined, dropped {counts or 'none'}; "
            "mine a larger corpus or more orders"
        )
    tokens = Ragged.joined(parts)
    order, num_prefixes = _ordered(tokens)
    kept = keys if keep.all() else keys.select(keep)
    return Selection(kept=kept, dropped=counts, tokens=tokens, order=order, num_prefixes=num_prefixes)


def _ordered(tokens: Ragged) -> tuple[IntArray, int]:
    orders, num_prefixes = [], 0
    for start in range(0, len(tokens), SORTED_ROWS):
        part = tokens.part(start, min(start + SORTED_ROWS, len(tokens)))
        order = sorted_order(part)
        num_prefixes += len(part.tokens) - int(shared_lengths(part.take(order)).sum())
        orders.append(order + start)
    return np.concatenate(orders), num_prefixes


def selection_beside(
    partial: Path,
    settings: Mapping[str, Any],
    make: Callable[[], Selection],
) -> Selection:
    """The selection kept in ``partial``, or what ``make`` makes; of several processes one judges, the others wait.

    ``settings`` (JSON) are all that it depends on; one kept with others is made again.

    Raises:
        StorageError: the disk refused.
    """
    folder, existed = partial / _FOLDER_NAME, partial.exists()
    try:
        partial.mkdir(parents=True, exist_ok=True)
        path = partial / _LOCK_NAME
        lock = open_lock(path)
    except OSError as error:
        raise StorageError(f"{partial}: cannot be written: {error.strerror}; choose another path") from error
    try:
        wait_for_lock(lock, path)
        found = _load(folder, settings)
        if found is None:
            found = make()
            _save(folder, settings, found)
        return found
    except BaseException:
        if not existed:  # a refusal leaves nothing
            with contextlib.suppress(OSError):
                path.unlink()
                partial.rmdir()
        raise
    finally:
        os.close(lock)


def kept_path(partial: Path) -> Path:
    """The file of the kept keys, once they are judged."""
    return partial / _FOLDER_NAME / _KEYS_NAME


def _load(folder: Path, settings: Mapping[str, Any]) -> Selection | None:
    try:
        facts = json.loads((folder / _FACTS_NAME).read_text())
        if facts["settings"] != dict(settings):
            return None
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("tokens", "offsets", "order")]
        return Selection(
            kept=KeySet.open(folder / _KEYS_NAME),
            dropped=facts["dropped"],
            tokens=Ragged(arrays[0], arrays[1]),
            order=arrays[2],
            num_prefixes=facts["num_prefixes"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or a kill left half of it


def _save(folder: Path, settings: Mapping[str, Any], selection: Selection) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        selection.kept.save(folder / _KEYS_NAME)
        arrays: dict[str, AnyArray] = {
            "tokens": selection.tokens.tokens,
            "offsets": selection.tokens.offsets,
            "order": selection.order,
        }
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror}; free some room or move") from error
    fsync_directory(folder)
    facts = {"settings": dict(settings), "dropped": selection.dropped, "num_prefixes": selection.num_prefixes}
    write_text(folder / _FACTS_NAME, json.dumps(facts) + "\n")


def _lists(keys: KeySet, start: int, stop: int) -> list[list[int]]:
    """The keys of rows ``start .. stop`` as lists."""
    arrays = keys.arrays(start, stop)
    tokens, offsets = arrays.tokens.tolist(), arrays.offsets.tolist()
    return [tokens[first:last] for first, last in pairwise(offsets)]


def _check_known(keys: KeySet, start: int, stop: int, recipient: TextCodec) -> None:
    """Decoders skip ids they do not know, which would pass for a shorter key."""
    arrays = keys.arrays(start, stop)
    ids = arrays.tokens
    strange = (ids >= len(recipient.known)) | ~recipient.known[np.minimum(ids, len(recipient.known) - 1)]
    if strange.any():
        place = int(np.flatnonzero(strange)[0])
        row = start + int(np.searchsorted(arrays.offsets, place, side="right")) - 1
        raise TokenError(
            f"key {keys.key(row)} (row {row}): the recipient tokenizer has no token {int(ids[place])}; "
            "name the tokenizer that made these tokens"
        )


def keys_text(selection: Selection, rows: Sequence[int], recipient: TextCodec) -> str:
    """The keys of ``rows`` for an error text, at most eight."""
    keys = [selection.kept.key(int(row)) for row in rows[:8]]
    texts = recipient.decode(keys)
    named = [f"row {row}: key {key} {text!r}" for row, key, text in zip(rows, keys, texts, strict=False)]
    return "; ".join(named) + ("; …" if len(rows) > 8 else "")

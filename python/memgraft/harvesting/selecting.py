"""Which keys are harvested, what the donor reads of each, and in which order: judged once, kept beside the bank."""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from memgraft.bank.files import mapped_table, write_text
from memgraft.bank.locks import open_lock, try_lock, unlock
from memgraft.errors import KeySetError, MemgraftError, StorageError, TokenError
from memgraft.harvesting.judging import Judge, Judged, JudgedBlocks
from memgraft.harvesting.ordering import count_prefixes, order_keys
from memgraft.harvesting.packing import IntArray, Ragged
from memgraft.harvesting.text import DROP_REASONS, RoundTrip
from memgraft.keyset import KeySet
from memgraft.progress import Progress as Progress
from memgraft.system import sync_folder
from memgraft.tokenizer import TextCodec

_FACTS_NAME, _KEYS_NAME, _FOLDER_NAME = "selection.json", "keys.mgk", "selection"
_LOCK_NAME, _CLAIMS_NAME = "selection.lock", "selection.claims"
_SORT_MEMORY = 1 << 30
_POLL_SECONDS = 0.1


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
        return _in_memory(self.kept.select(rows), self.dropped, self.tokens.take(rows))


def select_keys(
    keys: KeySet, recipient: TextCodec, donor: TextCodec, round_trip: RoundTrip, progress: Progress | None = None
) -> Selection:
    """Judges every key's text; what is kept is in memory, 28 bytes a key besides its donor tokens.

    Raises:
        TokenError: a key holds a token that the recipient's tokenizer does not have.
        KeySetError: no key is left.
    """
    judge = Judge(keys=keys, recipient=recipient, donor=donor, round_trip=round_trip)
    parts = []
    for number in range(judge.num_blocks):
        parts.append(judge.judged(number))
        if progress is not None:
            progress("text", min((number + 1) * judge.block_rows, len(keys)), len(keys))
    if not parts:
        _refuse_none(keys, Counter())
    judged = Judged.joined(parts)
    if not judged.keep.any():
        _refuse_none(keys, judged.dropped)
    kept = keys if judged.keep.all() else keys.select(judged.keep)
    return _in_memory(kept, _in_order(judged.dropped), judged.tokens)


def _in_memory(kept: KeySet, dropped: dict[str, int], tokens: Ragged) -> Selection:
    order = np.empty(len(tokens), np.int64)
    order_keys(tokens, order, np.empty_like(order), _SORT_MEMORY)
    num_prefixes = count_prefixes(tokens, order)
    return Selection(kept=kept, dropped=dropped, tokens=tokens, order=order, num_prefixes=num_prefixes)


def _in_order(dropped: Counter[str]) -> dict[str, int]:
    return {reason: dropped[reason] for reason in DROP_REASONS if dropped[reason]}


def _refuse_none(keys: KeySet, dropped: Counter[str]) -> NoReturn:
    raise KeySetError(
        f"no key is left to harvest: {len(keys)} mined, dropped {_in_order(dropped) or 'none'}; "
        "mine a larger corpus or more orders"
    )


def selection_beside(
    partial: Path,
    settings: Mapping[str, Any],
    judge: Judge,
    *,
    memory: int,
    share: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> Selection:
    """The selection kept in ``partial``; else the keys are judged, by all processes that come, and sorted by one.

    Args:
        partial: the folder of the unfinished bank.
        settings: all that the selection depends on (JSON); one kept with others is made again.
        judge: judges keys.
        memory: bytes that sorting may allocate; texts come on top, see `Judge`.
        share: this process among how many.
        progress: called as ``progress("text", keys judged, keys in all)``.

    Raises:
        StorageError: the disk refused.
        TokenError, KeySetError: as for `select_keys`.
    """
    folder, existed = partial / _FOLDER_NAME, partial.exists()
    name = hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode()).hexdigest()[:16]
    judged = partial / f"judged-{name}"
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = open_lock(partial / _LOCK_NAME)
    except OSError as error:
        raise StorageError(f"{partial}: cannot be written: {error.strerror}; choose another path") from error
    blocks: JudgedBlocks | None = None
    try:
        blocks = JudgedBlocks(judged, partial / _CLAIMS_NAME, judge, lambda: _load(folder, settings) is not None, share)
        while (found := _load(folder, settings)) is None:
            left = blocks.num_left
            if progress is not None and left < judge.num_blocks:
                progress("text", max(len(judge.keys) - left * judge.block_rows, 0), len(judge.keys))
            if (left and blocks.judge_one()) or (not left and _merge(folder, settings, judge, blocks, lock, memory)):
                continue
            time.sleep(_POLL_SECONDS)
        shutil.rmtree(judged, ignore_errors=True)
        return found
    except MemgraftError as error:
        if not existed:  # a refusal leaves nothing; after Ctrl-C others may be at it, and what was judged stays
            if isinstance(error, (TokenError, KeySetError)):
                shutil.rmtree(judged, ignore_errors=True)
            with contextlib.suppress(OSError):
                for path in (partial / _CLAIMS_NAME, partial / _LOCK_NAME):
                    path.unlink(missing_ok=True)
                partial.rmdir()
        raise
    finally:
        if blocks is not None:
            blocks.close()
        os.close(lock)


def _merge(
    folder: Path, settings: Mapping[str, Any], judge: Judge, blocks: JudgedBlocks, lock: int, memory: int
) -> bool:
    """Makes the selection of all blocks, unless another process is at it or has done it; whether it is there."""
    if not try_lock(lock, folder.parent / _LOCK_NAME):
        return False
    try:
        if _load(folder, settings) is not None:
            return True
        try:
            _write(folder, settings, judge, blocks, memory)
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"{folder}: cannot be written: {error.strerror}; free some room or move") from error
        return True
    finally:
        unlock(lock)


def _write(folder: Path, settings: Mapping[str, Any], judge: Judge, blocks: JudgedBlocks, memory: int) -> None:
    num_rows, num_tokens = blocks.sizes()
    if not num_rows:
        dropped = sum((block.dropped for block in blocks), Counter())
        blocks.remove()
        _refuse_none(judge.keys, dropped)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    tokens = mapped_table(folder / "tokens.npy", (num_tokens,), np.int32)
    offsets = mapped_table(folder / "offsets.npy", (num_rows + 1,), np.int64)
    keep = np.zeros(len(judge.keys), bool)
    dropped = Counter()
    row = token = place = 0
    for block in blocks:
        keep[place : place + len(block.keep)] = block.keep
        offsets[row : row + len(block.tokens) + 1] = block.tokens.offsets + token
        tokens[token : token + len(block.tokens.tokens)] = block.tokens.tokens
        dropped.update(block.dropped)
        place, row, token = place + len(block.keep), row + len(block.tokens), token + len(block.tokens.tokens)
    kept = judge.keys if keep.all() else judge.keys.select(keep)
    kept.save(folder / _KEYS_NAME)
    del kept
    keys = Ragged(tokens, offsets)
    order = mapped_table(folder / "order.npy", (num_rows,), np.int64)
    spare = mapped_table(folder / "spare.npy", (num_rows,), np.int64)
    order_keys(keys, order, spare, memory)
    (folder / "spare.npy").unlink()
    for array in (tokens, offsets, order):
        array.flush()
    sync_folder(folder)
    facts = {
        "settings": dict(settings),
        "dropped": _in_order(dropped),
        "num_prefixes": count_prefixes(keys, order),
    }
    write_text(folder / _FACTS_NAME, json.dumps(facts) + "\n")


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


def keys_text(selection: Selection, rows: Sequence[int], recipient: TextCodec) -> str:
    """The keys of ``rows`` for an error text, at most eight."""
    keys = [selection.kept.key(int(row)) for row in rows[:8]]
    texts = recipient.decode_inside(keys)
    named = [f"row {row}: key {key} {text!r}" for row, key, text in zip(rows, keys, texts, strict=False)]
    return "; ".join(named) + ("; …" if len(rows) > 8 else "")

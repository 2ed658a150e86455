"""Counts of others: n-grams that Spark, DuckDB, Polars or anything else has counted, from Parquet to a key set.

Rows go into files by a hash of their key, so that equal keys meet in one file. A file is read in pieces that fit the
memory, whose equal keys are summed; where more different keys are left than fit, the file is cut up once more by
another part of the hash. What cannot be selected any more is dropped.
"""

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memgraft.config import MAX_ORDER
from memgraft.corpus.writer import storage_errors
from memgraft.errors import ArgumentError, ConfigError, KeySetError, TokenError
from memgraft.keyset import KeySet
from memgraft.mining.options import budgets_by_order, parse_bytes, positive
from memgraft.system import temporary_folder

PathLike = str | os.PathLike[str]

_ROWS, _FEWEST_ROWS = 1 << 16, 1 << 10
"""Rows decoded at a time: at most, at least."""
_FILES = 512
"""Files that rows are scattered into at a time."""
_WORDS = 10
"""Words of a row: 8 of two tokens each, the count, the documents."""
_BYTES_DECODED = _WORDS * 8 * 8
"""Bytes that a row takes while it is decoded, and while it is sorted and summed."""
_BYTES_PER_ROW = _WORDS * 8 * 5
_MAX_COUNT = 1 << 62
"""No count is larger, summed over equal keys."""
_OUTSIDE = 1 << 40
_Rows = npt.NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Where a table has keys and counts."""

    tokens: str | Sequence[str] = "tokens"
    """A column of lists, or one column for each position (null past the end of a shorter key)."""
    count: str = "count"
    documents: str = "documents"
    """Not needed; zeros where there is none."""


def import_counts(
    paths: PathLike | Sequence[PathLike],
    *,
    vocab_size: int | None = None,
    reserved: Sequence[int] | None = None,
    budget: int | Mapping[int, int] | None = None,
    min_count: int = 1,
    columns: Columns | None = None,
    memory: int | str = "4GiB",
    temporary: PathLike | None = None,
) -> KeySet:
    """Reads keys with counts from Parquet, in any order, sums those of equal keys, and selects as ``mine`` does.

    Args:
        paths: Parquet files, or folders of them.
        vocab_size: tokens are smaller than this; default: what ``memgraft keys export`` recorded.
        reserved: tokens that no key may hold; default: as recorded.
        budget: keys in all (equal shares of the orders present), per order, or ``None`` for all.
        min_count: fewest occurrences of a key, after summing.
        columns: where keys and counts are.
        memory: working memory; the finished key set comes on top.
        temporary: folder for what outgrows it; default: ``$TMPDIR``.

    Raises:
        ConfigError: pyarrow is missing.
        KeySetError: no Parquet, other columns, nulls, a key with a reserved token, or counts that add up to 2**62.
        TokenError: a token outside the vocabulary.
        ArgumentError: no vocabulary size.
    """
    where = columns or Columns()
    files = _files(paths)
    recorded = _recorded(files[0])
    size = vocab_size if vocab_size is not None else recorded.get("vocab_size")
    if size is None:
        raise ArgumentError(f"{files[0]}: expected to learn the vocabulary size, found none recorded; give vocab_size=")
    kept_out = sorted({int(token) for token in (recorded.get("reserved", ()) if reserved is None else reserved)})
    bytes_used = parse_bytes(memory)
    most = max(bytes_used // _BYTES_PER_ROW, 4)
    batch = min(max(bytes_used // _BYTES_DECODED, _FEWEST_ROWS), _ROWS)
    num_parts = -(-sum(_num_rows(file) for file in files) // most)
    with temporary_folder(temporary) as folder:
        parts = [Path(folder) / f"{part}.rows" for part in range(min(max(num_parts, 1), _FILES))]
        read = (rows for file in files for rows in _read(file, where, int(size), kept_out, batch))
        orders = _scatter(read, parts, 0)
        shares = budgets_by_order(orders or [1], budget)
        kept: dict[int, _Rows] = {order: np.empty((0, _WORDS), np.uint64) for order in shares}
        for rows in _distinct(parts, most):
            frequent = rows[rows[:, 8] >= positive("min_count", min_count)]
            lengths = _lengths(frequent)
            for order, share in shares.items():
                kept[order] = _best(np.concatenate([kept[order], frequent[lengths == order]]), share)
    return _key_set(np.concatenate(list(kept.values())), int(size), kept_out, recorded.get("metadata"))


def _files(paths: PathLike | Sequence[PathLike]) -> list[Path]:
    listed = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    files: list[Path] = []
    for path in map(Path, listed):
        files += sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise KeySetError(f"{listed[0] if listed else 'paths'}: expected Parquet files, found none")
    return files


def _parquet(file: Path) -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ConfigError(f"{file}: reading Parquet needs pyarrow: run  pip install 'memgraft[parquet]'") from None
    try:
        return pyarrow.parquet.ParquetFile(file)
    except (ValueError, OSError) as error:
        raise KeySetError(f"{file}: expected a Parquet file, found: {error}") from None


def _recorded(file: Path) -> dict[str, Any]:
    with _parquet(file) as parquet:
        found = (parquet.schema_arrow.metadata or {}).get(b"memgraft.keyset")
    facts: dict[str, Any] = json.loads(found) if found else {}
    return facts


def _num_rows(file: Path) -> int:
    with _parquet(file) as parquet:
        return int(parquet.metadata.num_rows)


def _scatter(pieces: Iterable[_Rows], parts: Sequence[Path], level: int) -> list[int]:
    """Appends every row to the file of its key's hash, other bits of it at each ``level``; returns the orders seen."""
    seen = np.zeros(17, np.bool_)
    for rows in pieces:
        seen[np.unique(_lengths(rows))] = True
        place = (_hash(rows) >> np.uint64(9 * level % 63)) % np.uint64(len(parts))
        for part in np.unique(place):
            unwritten = "cannot write temporary data; give another temporary="
            with storage_errors(parts[part], unwritten), parts[part].open("ab") as stream:
                rows[place == part].tofile(stream)
    return [order for order in range(1, 17) if seen[order]]


def _distinct(parts: Sequence[Path], most: int, level: int = 1) -> Iterator[_Rows]:
    """Every key of the files once, with its sums, in pieces of at most ``most`` rows; removes the files."""
    for part in parts:
        if not part.exists():
            continue
        held = np.empty((0, _WORDS), np.uint64)
        pieces = _stored(part, -(-most // 2))
        for rows in pieces:
            held = _summed(np.concatenate([held, rows]))
            if 2 * len(held) > most and part.stat().st_size > most * _WORDS * 8:
                # Too many keys for one file, unless they were its last.
                finer = [part.with_name(f"{part.stem}-{place}.rows") for place in range(_FILES)]
                _scatter(itertools.chain([held], pieces), finer, level)
                part.unlink()
                yield from _distinct(finer, most, level + 1)
                break
        else:
            part.unlink()
            yield held


def _stored(part: Path, num_rows: int) -> Iterator[_Rows]:
    with part.open("rb") as stream:
        while len(rows := np.fromfile(stream, np.uint64, num_rows * _WORDS)):
            yield rows.reshape(-1, _WORDS)


def _read(file: Path, where: Columns, vocab_size: int, reserved: Sequence[int], num_rows: int) -> Iterator[_Rows]:
    with _parquet(file) as parquet:
        names = parquet.schema_arrow.names
        wanted = [where.tokens] if isinstance(where.tokens, str) else list(where.tokens)
        for name in (*wanted, where.count):
            if name not in names:
                raise KeySetError(f"{file}: expected a column {name!r}, found {', '.join(names)}")
        has_documents = where.documents in names
        chosen = [*wanted, where.count, *([where.documents] if has_documents else [])]
        try:
            for batch in parquet.iter_batches(batch_size=num_rows, columns=chosen):
                if batch.num_rows == 0:
                    continue
                keys = (
                    _listed(file, batch, where.tokens) if isinstance(where.tokens, str) else _apart(file, batch, wanted)
                )
                _check(file, keys, vocab_size, reserved)
                rows = np.empty((batch.num_rows, _WORDS), np.uint64)
                # Token i plus one in half i, so that words sort like tuples and zero has ended.
                halves = (keys + 1).astype(np.uint64)
                rows[:, :8] = (halves[:, 0::2] << np.uint64(32)) | halves[:, 1::2]
                rows[:, 8] = _numbers(file, batch, where.count)
                rows[:, 9] = _numbers(file, batch, where.documents) if has_documents else 0
                yield rows
        except OSError as error:
            raise KeySetError(f"{file}: expected a Parquet file, found: {error}; copy or write it again") from None


def _listed(file: Path, batch: Any, name: str) -> npt.NDArray[np.int64]:
    """Keys of a column of lists as ``(rows, MAX_ORDER)``, -1 past the end."""
    import pyarrow as pa

    column = batch.column(name)
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(kind(column.type) for kind in kinds) or not pa.types.is_integer(column.type.value_type):
        raise KeySetError(f"{file}: expected lists of token ids in {name!r}, found {column.type}")
    values = column.flatten()
    if column.null_count or values.null_count:
        raise KeySetError(f"{file}: expected keys without nulls in {name!r}, found some; filter them out")
    lengths = column.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    if lengths.min() < 1 or lengths.max() > MAX_ORDER:
        raise KeySetError(
            f"{file}: expected keys of 1 to {MAX_ORDER} tokens, found {lengths.min()} to {lengths.max()}; filter them"
        )
    tokens = values.to_numpy(zero_copy_only=False).astype(np.int64)
    keys = np.full((len(lengths), MAX_ORDER), -1, np.int64)
    # A negative token is as far outside the vocabulary as can be, and never the mark of an end.
    keys[np.arange(MAX_ORDER) < lengths[:, None]] = np.where(tokens < 0, _OUTSIDE, tokens)
    return keys


def _apart(file: Path, batch: Any, names: Sequence[str]) -> npt.NDArray[np.int64]:
    """Keys with a column a position; null where a key has ended."""
    import pyarrow as pa

    if not 1 <= len(names) <= MAX_ORDER:
        raise ArgumentError(f"columns: expected 1 to {MAX_ORDER} columns of tokens, got {len(names)}")
    keys = np.full((batch.num_rows, MAX_ORDER), -1, np.int64)
    ended = np.zeros(batch.num_rows, np.bool_)
    for place, name in enumerate(names):
        column = batch.column(name)
        if not pa.types.is_integer(column.type):
            raise KeySetError(f"{file}: expected token ids in {name!r}, found {column.type}")
        there = column.is_valid().to_numpy(zero_copy_only=False)
        if (there & ended).any() or (place == 0 and not there.all()):
            raise KeySetError(f"{file}: expected nulls at the end of keys alone, found some before {name!r}")
        tokens = column.drop_null().to_numpy(zero_copy_only=False).astype(np.int64)
        keys[there, place] = np.where(tokens < 0, _OUTSIDE, tokens)
        ended |= ~there
    return keys


def _check(file: Path, keys: npt.NDArray[np.int64], vocab_size: int, reserved: Sequence[int]) -> None:
    inside = keys != -1
    bad = keys[keys >= vocab_size]
    if bad.size:
        shown = "below 0" if bad[0] == _OUTSIDE else str(bad[0])
        raise TokenError(
            f"{file}: token {shown} lies outside the vocabulary of {vocab_size}; pass the vocab_size of the tokenizer"
        )
    held = np.isin(keys, np.asarray(reserved, np.int64)) & inside
    if held.any():
        raise KeySetError(f"{file}: found a key with the reserved token {keys[held][0]}; filter such keys out")


def _numbers(file: Path, batch: Any, name: str) -> npt.NDArray[np.uint64]:
    import pyarrow as pa

    column = batch.column(name)
    whole = pa.types.is_integer(column.type) or pa.types.is_decimal(column.type)
    if not whole or column.null_count:
        raise KeySetError(f"{file}: expected whole numbers without nulls in {name!r}, found {column.type}")
    if pa.types.is_decimal(column.type):  # DuckDB's sum() of integers is a HUGEINT, which Parquet has as decimal
        try:
            column = column.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise KeySetError(f"{file}: expected whole numbers below 2**63 in {name!r}, found: {error}") from None
    values = column.to_numpy(zero_copy_only=False)
    if values.dtype.kind == "i" and values.min() < 0:
        raise KeySetError(f"{file}: expected counts of 0 and more in {name!r}, found {values.min()}")
    found: _Rows = values.astype(np.uint64)
    return found


def _lengths(rows: _Rows) -> npt.NDArray[np.int64]:
    words = rows[:, :8]
    lengths: npt.NDArray[np.int64] = np.zeros(len(rows), np.int64)
    lengths += ((words >> np.uint64(32)) != 0).sum(1)
    lengths += ((words & np.uint64(0xFFFFFFFF)) != 0).sum(1)
    return lengths


def _hash(rows: _Rows) -> npt.NDArray[np.uint64]:
    found = np.zeros(len(rows), np.uint64)
    for word in range(8):
        found = (found ^ rows[:, word]) * np.uint64(0x9E3779B97F4A7C15)
        found ^= found >> np.uint64(29)
    return found


def _summed(rows: _Rows) -> _Rows:
    """Rows of distinct keys, ascending, with the sums of equal ones."""
    if len(rows) == 0:
        return rows
    rows = rows[np.lexsort([rows[:, word] for word in range(7, -1, -1)])]
    starts = np.flatnonzero(np.concatenate(([True], (rows[1:, :8] != rows[:-1, :8]).any(1))))
    summed = rows[starts]
    if np.add.reduceat(rows[:, 8:].astype(np.float64), starts, axis=0).max() >= _MAX_COUNT:
        raise KeySetError(
            f"counts: expected sums of equal keys below {_MAX_COUNT}, found larger ones; check the counts"
        )
    summed[:, 8:] = np.add.reduceat(rows[:, 8:], starts, axis=0)
    return summed


def _best(rows: _Rows, budget: int | None) -> _Rows:
    """The ``budget`` most frequent rows, ties by key."""
    if budget is None or len(rows) <= budget:
        return rows
    order = np.lexsort([*(rows[:, word] for word in range(7, -1, -1)), ~rows[:, 8]])
    return rows[order[:budget]]


def _key_set(rows: _Rows, vocab_size: int, reserved: Sequence[int], metadata: Mapping[str, Any] | None) -> KeySet:
    halves = np.stack([rows[:, :8] >> np.uint64(32), rows[:, :8] & np.uint64(0xFFFFFFFF)], axis=2).reshape(-1, 16)
    inside = halves != 0
    offsets = np.concatenate(([0], np.cumsum(inside.sum(1)))).astype(np.uint64)
    tokens = (halves[inside] - np.uint64(1)).astype(np.uint32)
    counts, documents = np.ascontiguousarray(rows[:, 8]), np.ascontiguousarray(rows[:, 9])
    return KeySet.from_arrays(
        tokens, offsets, counts, documents, vocab_size=vocab_size, reserved=reserved, metadata=metadata
    )

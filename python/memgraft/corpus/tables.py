"""Rows of token ids in Parquet files and in datasets that the ``datasets`` library saved."""

import errno
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memgraft.boundaries import MARKS, read_rows, refuse_unread
from memgraft.corpus.foreign import listed, refuse_splits
from memgraft.corpus.writer import CorpusWriter, storage_errors
from memgraft.errors import ArgumentError, ConfigError, CorpusError
from memgraft.progress import Progress

TABLE_SUFFIXES = (".parquet", ".arrow")
COLUMN = "input_ids"

_ROWS = 4096
"""Rows of a Parquet file decoded at a time."""
_CACHE_NAME = re.compile(r"(cache|tmp)-?[0-9a-z_]{8,}(_\d+_of_\d+)?")
"""What the ``datasets`` library calls the result of a map."""


def is_table(path: Path) -> bool:
    """Whether ``path`` is a Parquet or Arrow file, or a folder of them."""
    if path.is_dir():
        return any((path / name).is_file() for name in ("state.json", "dataset_dict.json")) or bool(_listed(path))
    return path.suffix in TABLE_SUFFIXES


def _listed(folder: Path) -> list[Path]:
    return [file for file in listed(folder, TABLE_SUFFIXES) if file.suffix in TABLE_SUFFIXES]


def table_files(path: Path) -> list[Path]:
    """The files of a table in the order of its rows.

    Raises:
        CorpusError: a folder of several splits, or a saved dataset with files missing.
    """
    if not path.is_dir():
        if not path.exists():
            raise CorpusError(f"{path}: expected a Parquet or Arrow file, found nothing there")
        return [path]
    if (path / "dataset_dict.json").is_file():
        splits = _read_json(path / "dataset_dict.json").get("splits", [])
        example = path / str(splits[0]) if splits else path / "train"
        raise CorpusError(f"{path}: expected one split of a saved dataset, found {splits}; name one, such as {example}")
    if (path / "state.json").is_file():
        entries = _read_json(path / "state.json").get("_data_files", [])
        found = [path / str(entry.get("filename", "")) for entry in entries if isinstance(entry, dict)]
        for file in found:
            if not file.is_file():
                raise CorpusError(f"{file}: expected a file of the saved dataset {path}, found none; copy it whole")
        if found:
            return found
    files = _listed(path)
    refuse_splits(path, files)
    caches = [file.name for file in files if _CACHE_NAME.fullmatch(file.stem)]
    if caches and len(caches) < len(files):
        raise CorpusError(
            f"{path}: expected the files of one dataset, found what datasets.map left in its cache ({caches[0]}) "
            "beside them; save the one you mean with save_to_disk, or name its files"
        )
    if not files:
        raise CorpusError(f"{path}: expected Parquet or Arrow files, found none")
    return files


def row_mapping(path: Path) -> list[Path] | None:
    """The files that say which rows of a saved dataset are in it, and in which order; None where all of them are.

    Raises:
        CorpusError: a file of the mapping is missing.
    """
    if not (path / "state.json").is_file():
        return None
    entries = _read_json(path / "state.json").get("_indices_data_files")
    if not entries:
        return None
    found = [path / str(entry.get("filename", "")) for entry in entries if isinstance(entry, dict)]
    for file in found:
        if not file.is_file():
            raise CorpusError(
                f"{file}: expected the mapping of rows of the saved dataset {path}, found none; copy it whole"
            )
    return found


def _read_json(path: Path) -> dict[str, Any]:
    with storage_errors(path, "cannot read the dataset's description"):
        text = path.read_bytes()
    try:
        found = json.loads(text)
    except ValueError as error:
        raise CorpusError(f"{path}: expected JSON of a saved dataset, found: {error}; save it again") from None
    return found if isinstance(found, dict) else {}


def write_tables(
    paths: Sequence[Path], out: str | os.PathLike[str], *, column: str, progress: Progress | None, **facts: Any
) -> Path:
    """Writes the rows of tables into a token corpus ``<out>.bin/.idx/.json`` and returns the ``.bin``.

    A row is a document, unless a column of those that `memgraft.boundaries` lists says that it holds several (packed
    rows); padding is left out.

    Args:
        paths: Parquet or Arrow files, or folders of them.
        out: prefix of the corpus.
        column: the column of token ids.
        progress: called with (phase, bytes of files done, bytes in all).
        facts: for :class:`CorpusWriter`.

    Raises:
        ConfigError: pyarrow is missing.
        CorpusError: a file is damaged, or has no such column of whole numbers.
    """
    tables = [(table_files(path), row_mapping(path)) for path in paths]
    total = sum(file.stat().st_size for files, _ in tables for file in files)
    done = 0
    with CorpusWriter(out, **facts) as writer:
        for files, mapping in tables:
            for file, batches in _readers(files, mapping, column):
                for batch in batches:
                    tokens, lengths = _documents(file, batch, column)
                    writer.add_many(tokens, lengths)
                done += file.stat().st_size if mapping is None else sum(each.stat().st_size for each in files)
                if progress is not None:
                    progress("read tables", done, total)
        return writer.finish(", ".join(os.fspath(path) for path in paths))


def read_labels(paths: Sequence[Path], column: str) -> list[str]:
    """What ``column`` says of each row of tables, in the order of their documents; null is ``"-"``.

    Raises:
        CorpusError: there is no such column, or it holds lists.
        ConfigError: pyarrow is missing.
    """
    labels: list[str] = []
    for path in paths:
        files, mapping = table_files(path), row_mapping(path)
        of_files = [
            str(value) if value is not None else "-"
            for file in files
            for batch in _batches(file, column, of_lists=False)
            for value in _plain_values(file, batch, column)
        ]
        if mapping is None:
            labels += of_files
            continue
        for file in mapping:
            for batch in _batches(file, "indices", of_lists=False):
                labels += [of_files[place] for place in batch.column(0).to_pylist()]
    return labels


def _plain_values(file: Path, batch: Any, column: str) -> list[Any]:
    found = batch.column(0)
    if _is_list(found.type):
        raise CorpusError(f"{file}: expected one value a row in column {column!r}, found lists; name another column")
    values: list[Any] = found.to_pylist()
    return values


def _readers(
    files: Sequence[Path], mapping: Sequence[Path] | None, column: str
) -> Iterator[tuple[Path, Iterable[Any]]]:
    """Each file with its record batches; of a dataset with a mapping of rows, one stream in the mapping's order."""
    if mapping is None:
        yield from ((file, _batches(file, column)) for file in files)
    else:
        yield files[0], _mapped_batches(files, mapping, column)


def _mapped_batches(files: Sequence[Path], mapping: Sequence[Path], column: str) -> Iterator[Any]:
    """The rows that a saved dataset's mapping names, in its order."""
    import pyarrow as pa

    batches = [batch for file in files for batch in _batches(file, column)]
    firsts = np.cumsum([0, *(batch.num_rows for batch in batches)])
    for file in mapping:
        for indices in _batches(file, "indices", of_lists=False):
            places = indices.column(0).to_numpy(zero_copy_only=False)
            if places.dtype.kind not in "iu" or (places.size and not 0 <= places.min() <= places.max() < firsts[-1]):
                raise CorpusError(
                    f"{file}: expected numbers of the {firsts[-1]} rows of the saved dataset, found "
                    "others; save it again"
                )
            for start in range(0, len(places), _ROWS):
                rows = places[start : start + _ROWS].astype(np.int64)
                owners = np.searchsorted(firsts, rows, side="right") - 1
                parts, order = [], []
                for owner in np.unique(owners):
                    chosen = np.flatnonzero(owners == owner)
                    parts.append(batches[owner].take(pa.array(rows[chosen] - firsts[owner])))
                    order.append(chosen)
                taken = pa.Table.from_batches(parts).combine_chunks().take(pa.array(np.argsort(np.concatenate(order))))
                yield from taken.combine_chunks().to_batches()


def _batches(file: Path, column: str, of_lists: bool = True) -> Iterator[Any]:
    """Records batches with the wanted columns, or with ``column`` alone where it is no column of lists."""
    choose = _columns if of_lists else _single
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ConfigError(
            f"{file}: reading Parquet and Arrow needs pyarrow: run  pip install 'memgraft[parquet]'"
        ) from None
    try:
        if file.suffix == ".parquet":
            with pyarrow.parquet.ParquetFile(file) as parquet:
                wanted = choose(file, parquet.schema_arrow, column)
                yield from parquet.iter_batches(batch_size=_ROWS, columns=wanted)
            return
        with _open_arrow(file) as source:
            # datasets writes streams; feather and others write files with a footer.
            if source.read(6) == b"ARROW1":
                with pa.ipc.open_file(source) as reader:
                    wanted = choose(file, reader.schema, column)
                    yield from (reader.get_batch(place).select(wanted) for place in range(reader.num_record_batches))
                return
            source.seek(0)
            with pa.ipc.open_stream(source) as reader:
                wanted = choose(file, reader.schema, column)
                yield from (batch.select(wanted) for batch in reader)
    except (pa.ArrowException, OSError) as error:
        kind = "a Parquet" if file.suffix == ".parquet" else "an Arrow"
        raise CorpusError(f"{file}: expected {kind} file, found: {error}; copy or write it again") from None


def _open_arrow(file: Path) -> Any:
    """``file`` mapped, or read where its file system cannot map."""
    import pyarrow as pa

    try:
        return pa.memory_map(os.fspath(file))
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        return pa.OSFile(os.fspath(file))


def _single(file: Path, schema: Any, column: str) -> list[str]:
    if column not in schema.names:
        raise CorpusError(
            f"{file}: expected a column {column!r}, found {', '.join(schema.names) or 'none'}; save it again"
        )
    return [column]


def _columns(file: Path, schema: Any, column: str) -> list[str]:
    """The columns to read: the tokens, and what says where documents and padding are."""
    import pyarrow as pa

    if column not in schema.names:
        if {"tokens", "count"} <= set(schema.names):
            # With a column of text, too, where `keys export` was given a tokenizer.
            raise CorpusError(
                f"{file}: expected documents in a column {column!r}, found keys with their counts "
                f"({', '.join(schema.names)}); `memgraft keys import` makes a key set of it"
            )
        hint = "; it holds text: tokenise it first" if "text" in schema.names else ""
        raise CorpusError(
            f"{file}: expected a column {column!r} of token ids, found {', '.join(schema.names) or 'none'}{hint}; name "
            "another with column="
        )
    lists = {name for name in schema.names if _is_list(schema.field(name).type)}
    try:
        # One number or word for a row says nothing about the inside of it.
        refuse_unread((name for name in lists if name != column), str(file))
    except ArgumentError as error:
        raise CorpusError(str(error)) from None
    wanted = [column, *(name for name in MARKS if name in lists and name != column)]
    for name in wanted:
        kind = schema.field(name).type
        if name not in lists or not (pa.types.is_integer(kind.value_type) or pa.types.is_boolean(kind.value_type)):
            raise CorpusError(f"{file}: expected lists of whole numbers in column {name!r}, found {kind}")
    return wanted


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return any(is_kind(kind) for is_kind in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _documents(file: Path, batch: Any, column: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Tokens of a record batch, and the lengths of its documents."""
    tokens, lengths = _flat(file, batch, column)
    marks = {name: _flat(file, batch, name) for name in batch.schema.names if name != column}
    if not marks:
        return tokens, lengths
    try:
        starts, kept = read_rows(lengths, marks)
    except ArgumentError as error:
        raise CorpusError(f"{file}: {error}") from None
    kept_before = np.concatenate([[0], np.cumsum(kept)])
    ends = np.cumsum(lengths)
    if np.count_nonzero(starts) == np.count_nonzero(lengths):
        return tokens[kept], np.diff(kept_before[ends], prepend=0)
    documents = np.diff(kept_before[np.append(np.flatnonzero(starts), len(tokens))])
    return tokens[kept], documents[documents > 0]


def _flat(file: Path, batch: Any, name: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """A column's numbers in one array, and the length of each row."""
    import pyarrow.compute

    lists = batch.column(name)
    values = lists.flatten()
    if lists.null_count or values.null_count:
        raise CorpusError(f"{file}: expected lists without nulls in column {name!r}, found some; fill or drop them")
    lengths = pyarrow.compute.list_value_length(lists).to_numpy(zero_copy_only=False)
    return values.to_numpy(zero_copy_only=False), lengths.astype(np.int64)

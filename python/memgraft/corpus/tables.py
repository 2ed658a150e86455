"""Rows of token ids in Parquet files and in datasets that the ``datasets`` library saved."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memgraft.corpus.text import Progress
from memgraft.corpus.writer import CorpusWriter, storage_errors
from memgraft.errors import ConfigError, CorpusError

TABLE_SUFFIXES = (".parquet", ".arrow")
COLUMN = "input_ids"

#: Rows of a Parquet file decoded at a time.
_ROWS = 4096
#: ``train-00000-of-00008.parquet``: the hub's way of naming the shards of a split.
_SPLIT_NAME = re.compile(r"(.+?)-\d+-of-\d+(?:-[0-9a-f]+)?")


def is_table(path: Path) -> bool:
    """Whether ``path`` is a Parquet or Arrow file, or a folder of them."""
    if path.is_dir():
        return any((path / name).is_file() for name in ("state.json", "dataset_dict.json")) or bool(_listed(path))
    return path.suffix in TABLE_SUFFIXES


def _listed(folder: Path) -> list[Path]:
    with storage_errors(folder, "cannot list the folder; check its permissions"):
        return sorted(entry for entry in folder.iterdir() if entry.suffix in TABLE_SUFFIXES and entry.is_file())


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
    splits = sorted({match[1] for file in files if (match := _SPLIT_NAME.fullmatch(file.stem))})
    if len(splits) > 1:
        raise CorpusError(
            f"{path}: expected the files of one split, found {', '.join(splits)}; name the files of the one you mean"
        )
    if not files:
        raise CorpusError(f"{path}: expected Parquet or Arrow files, found none")
    return files


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

    A row is a document. Where there is a column ``attention_mask``, positions with a zero are padding and left out;
    where there is one of ``position_ids``, a position that does not follow the one before it begins a document
    (packed rows).

    Args:
        paths: Parquet or Arrow files, or folders of them.
        out: prefix of the corpus.
        column: the column of token ids.
        progress: called with (stage, bytes of files done, bytes in all).
        facts: for :class:`CorpusWriter`.

    Raises:
        ConfigError: pyarrow is missing.
        CorpusError: a file is damaged, or has no such column of whole numbers.
    """
    files = [file for path in paths for file in table_files(path)]
    total = sum(file.stat().st_size for file in files)
    done = 0
    with CorpusWriter(out, **facts) as writer:
        for file in files:
            for batch in _batches(file, column):
                tokens, lengths = _documents(file, batch, column)
                writer.add_many(tokens, lengths)
            done += file.stat().st_size
            if progress is not None:
                progress("read tables", done, total)
        return writer.finish()


def _batches(file: Path, column: str) -> Iterator[Any]:
    """Record batches with the wanted columns."""
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
                wanted = _columns(file, parquet.schema_arrow, column)
                yield from parquet.iter_batches(batch_size=_ROWS, columns=wanted)
            return
        with pa.memory_map(os.fspath(file)) as source:
            # datasets writes streams; feather and others write files with a footer.
            if source.read(6) == b"ARROW1":
                with pa.ipc.open_file(source) as reader:
                    wanted = _columns(file, reader.schema, column)
                    yield from (reader.get_batch(place).select(wanted) for place in range(reader.num_record_batches))
                return
            source.seek(0)
            with pa.ipc.open_stream(source) as reader:
                wanted = _columns(file, reader.schema, column)
                yield from (batch.select(wanted) for batch in reader)
    except (pa.ArrowException, OSError) as error:
        kind = "a Parquet" if file.suffix == ".parquet" else "an Arrow"
        raise CorpusError(f"{file}: expected {kind} file, found: {error}; copy or write it again") from None


def _columns(file: Path, schema: Any, column: str) -> list[str]:
    """The columns to read: the tokens, and what says where documents and padding are."""
    import pyarrow as pa

    if column not in schema.names:
        hint = "; it holds text: tokenise it first" if "text" in schema.names else ""
        raise CorpusError(
            f"{file}: expected a column {column!r} of token ids, found {', '.join(schema.names) or 'none'}{hint}; name "
            "another with column="
        )
    wanted = [name for name in (column, "attention_mask", "position_ids") if name in schema.names]
    for name in wanted:
        kind = schema.field(name).type
        lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if not lists or not (pa.types.is_integer(kind.value_type) or pa.types.is_boolean(kind.value_type)):
            raise CorpusError(f"{file}: expected lists of whole numbers in column {name!r}, found {kind}")
    return wanted


def _documents(file: Path, batch: Any, column: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Tokens of a record batch, and the lengths of its documents."""
    names = batch.schema.names
    tokens, lengths = _flat(file, batch, column)
    others = {name: _flat(file, batch, name) for name in names if name != column}
    for name, (_, sizes) in others.items():
        if not np.array_equal(sizes, lengths):
            raise CorpusError(f"{file}: expected rows of {name!r} as long as those of {column!r}, found other lengths")
    ends = np.cumsum(lengths)
    kept = others["attention_mask"][0] != 0 if "attention_mask" in others else np.ones(len(tokens), np.bool_)
    kept_before = np.concatenate([[0], np.cumsum(kept)])
    if "position_ids" not in others:
        return tokens[kept], np.diff(kept_before[ends], prepend=0)
    positions = others["position_ids"][0].astype(np.int64)
    bounds = np.union1d(ends, 1 + np.flatnonzero(positions[1:] != positions[:-1] + 1))
    documents = np.diff(kept_before[bounds], prepend=0)
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

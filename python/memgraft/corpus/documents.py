"""Documents of text: which files hold some, and how each of them is cut into documents."""

import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from memgraft.corpus.foreign import refuse_text_splits
from memgraft.corpus.writer import storage_errors
from memgraft.errors import ArgumentError, ConfigError, CorpusError, MemgraftError

_WHOLE = (".txt", ".md")
_LINES = (".jsonl", ".ndjson")
_PACKED = (".gz", ".zst")
TEXT_SUFFIXES = (
    *_WHOLE,
    *_LINES,
    *(f"{name}{packed}" for name in (*_WHOLE, *_LINES, ".json") for packed in _PACKED),
)
"""One document per file, but for lines of JSON: one per line. Each of them also compressed; ``.json`` only so, because
that is how collections of lines are published, while a plain one is anything."""
TOKEN_SUFFIXES = (".bin", ".ds", ".npy")
BYTE_ORDER_MARK = "\ufeff"
_NAMED = 8
"""Files that a line names."""


@dataclass(frozen=True, kw_only=True)
class Cutting:
    """How text is cut into documents.

    Attributes:
        field: the entry of each line of JSON that holds its text.
        column: the column of Parquet files that holds text; None leaves Parquet files out.
        separator: text between the documents of ``.txt`` and ``.md`` files; None takes each file as one document.
    """

    field: str = "text"
    column: str | None = None
    separator: str | None = None

    def __post_init__(self) -> None:
        if self.separator == "":
            raise ArgumentError("separator: expected some text, got none")

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Names of files that are read end like this."""
        return TEXT_SUFFIXES if self.column is None else (*TEXT_SUFFIXES, ".parquet")


@dataclass(frozen=True)
class Document:
    """One document, the file that it is from, and the bytes of the file that are done with it."""

    text: str
    file: Path
    num_bytes: int


def text_files(path: Path, suffixes: tuple[str, ...] = TEXT_SUFFIXES) -> Iterator[Path]:
    """Yields a text file itself, or those below a folder, by folder and name; hidden ones are left out.

    Links to folders are followed, each folder once.

    Raises:
        StorageError: a folder cannot be listed.
    """
    yield from (file for file in _files(path) if not path.is_dir() or file.name.lower().endswith(suffixes))


def left_out(path: Path, suffixes: tuple[str, ...] = TEXT_SUFFIXES) -> list[Path]:
    """The files below a folder that are not read because of their names, hidden ones not counted."""
    return [file for file in _files(path) if path.is_dir() and not file.name.lower().endswith(suffixes)]


def unread(folder: Path) -> str | None:
    """A line that names the files of a folder which are no text by their names; None where all are."""
    files = left_out(folder)
    named = ", ".join(str(path.relative_to(folder)) for path in files[:_NAMED])
    more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    return f"left out, since their names are not those of text: {named}{more}" if files else None


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return

    def refuse(error: OSError) -> None:
        with storage_errors(Path(error.filename or path), "cannot list the folder; check its permissions"):
            raise error

    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(path, onerror=refuse, followlinks=True):
        facts = os.stat(folder)
        if (facts.st_dev, facts.st_ino) in seen:
            folders.clear()
            continue
        seen.add((facts.st_dev, facts.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(folder) / name


def is_text(path: Path) -> bool:
    """Whether ``path`` is a text file, or a folder with text and no token files in it."""
    if not path.is_dir():
        return path.name.lower().endswith(TEXT_SUFFIXES)
    return not has_token_files(path) and next(text_files(path), None) is not None


def has_token_files(folder: Path) -> bool:
    """Whether token files lie in ``folder`` itself."""
    with storage_errors(folder, "cannot list the folder; check its permissions"):
        return any(entry.suffix in TOKEN_SUFFIXES for entry in folder.iterdir() if not entry.name.startswith("."))


def read_documents(path: str | os.PathLike[str], *, cutting: Cutting | None = None) -> Iterator[str]:
    """Yields the documents of a text file or folder: files by folder and name, lines of ``.jsonl`` in order.

    Text is taken as it is, line ends included, but for a byte order mark at a file's start.

    Raises:
        CorpusError: no text file; bytes that are not UTF-8 (with their offset); a line without a ``text`` string.
    """
    cutting = Cutting() if cutting is None else cutting
    refuse_text_splits(Path(path), text_files(Path(path), cutting.suffixes))
    for document in documents(Path(path), cutting):
        if document.text or not document.num_bytes:
            yield document.text


def documents(path: Path, cutting: Cutting) -> Iterator[Document]:
    """Documents of a text file or folder: files by folder and name, their documents in order.

    Raises:
        ConfigError: a library that a file needs is missing.
        CorpusError: no text; bytes that are not UTF-8 (with their offset); a line without a string in ``field``; a file
            without such a column of strings; a damaged compressed file.
        StorageError: a file cannot be read.
    """
    if not path.exists():
        raise CorpusError(f"{path}: expected a folder of text (.txt, .md, .jsonl), found nothing there")
    found = False
    for file in text_files(path, cutting.suffixes):
        found = True
        name = file.name.lower().removesuffix(".gz").removesuffix(".zst")
        if name.endswith(".parquet") and cutting.column is not None:
            yield from _of_parquet(file, cutting.column)
        elif name.endswith((*_LINES, ".json")):
            yield from _of_lines(file, cutting.field)
        else:
            yield from _of_whole(file, cutting.separator)
    if not found:
        raise CorpusError(f"{path}: expected text files (.txt, .md, .jsonl), found none{_seen(path)}")


def _seen(path: Path) -> str:
    names = [file.name for file in left_out(path)]
    tables = any(name.endswith(".parquet") for name in names)
    way = "; tokenize --column names the column of a Parquet file that holds text" if tables else ""
    return f" among {', '.join(names[:3])}{' …' if len(names) > 3 else ''}{way}" if names else ""


def _of_whole(file: Path, separator: str | None) -> Iterator[Document]:
    with _opened(file) as stream:
        data = _guarded(file, stream.read)
    text = _decode(file, data, 0).removeprefix(BYTE_ORDER_MARK)
    parts = [text] if separator is None else text.split(separator)
    size = _size(file)
    for part in parts[:-1]:
        yield Document(part, file, 0)
    yield Document(parts[-1], file, size)


def _of_lines(file: Path, field: str) -> Iterator[Document]:
    packed = file.suffix.lower() in _PACKED
    offset = number = 0
    with _opened(file) as stream:
        while line := _guarded(file, stream.readline):
            number += 1
            text = _decode(file, line, offset)
            if number == 1:
                text = text.removeprefix(BYTE_ORDER_MARK)
            offset += len(line)
            if text.strip():
                yield Document(_line_text(file, number, text, field), file, 0 if packed else len(line))
    if packed:
        yield Document("", file, _size(file))


def _of_parquet(file: Path, column: str) -> Iterator[Document]:
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ConfigError(f"{file}: reading Parquet needs pyarrow: run  pip install 'memgraft[parquet]'") from None
    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            schema = parquet.schema_arrow
            if column not in schema.names:
                raise CorpusError(
                    f"{file}: expected a column {column!r} of text, found {', '.join(schema.names)}; name another"
                )
            kind = schema.field(column).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise CorpusError(f"{file}: expected text in column {column!r}, found {kind}; name another")
            for batch in parquet.iter_batches(batch_size=1024, columns=[column]):
                for text in batch.column(0).to_pylist():
                    if text is None:
                        raise CorpusError(f"{file}: expected text in column {column!r}, found a null; drop such rows")
                    yield Document(text, file, 0)
    except MemgraftError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"{file}: expected a Parquet file, found: {error}; copy or write it again") from None
    yield Document("", file, _size(file))


def _opened(file: Path) -> AbstractContextManager[IO[bytes]]:
    """The bytes of a file, unpacked where its name says that it is packed."""
    with storage_errors(file, "cannot read the text; check its permissions"):
        match file.suffix.lower():
            case ".gz":
                return cast(AbstractContextManager[IO[bytes]], gzip.open(file, "rb"))
            case ".zst":
                return _zstandard(file)
            case _:
                return open(file, "rb")


def _zstandard(file: Path) -> AbstractContextManager[IO[bytes]]:
    try:
        import pyarrow as pa
    except ModuleNotFoundError:
        raise ConfigError(f"{file}: reading .zst needs pyarrow: run  pip install 'memgraft[parquet]'") from None
    return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(os.fspath(file)), "zstd"))


def _guarded(file: Path, read: Callable[[], bytes]) -> bytes:
    """What ``read`` gives; a packed file that is damaged or cut short is a CorpusError."""
    packed = file.suffix.lower() in _PACKED
    try:
        return read()
    except OSError as error:
        if error.errno is None and packed:  # gzip's and pyarrow's own
            raise CorpusError(f"{file}: expected a whole compressed file, found: {error}; copy it again") from None
        with storage_errors(file, "cannot read the text; check its permissions"):
            raise
    except (EOFError, zlib.error) as error:
        raise CorpusError(f"{file}: expected a whole compressed file, found: {error}; copy it again") from None


def _size(file: Path) -> int:
    with storage_errors(file, "cannot read the text; check its permissions, or whether a link leads nowhere"):
        return file.stat().st_size


def num_bytes(path: Path, cutting: Cutting) -> int:
    """Bytes of all files that `documents` reads."""
    return sum(map(_size, text_files(path, cutting.suffixes))) if path.exists() else 0


def _decode(file: Path, data: bytes, offset: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{file}: expected UTF-8, found byte 0x{data[error.start]:02x} at offset {offset + error.start} "
            f"({error.reason}); convert the file (`iconv -t UTF-8`), or leave it out"
        ) from None


def _line_text(file: Path, number: int, line: str, field: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise CorpusError(
            f"{file}: line {number}: expected a JSON object, found {line.strip()[:40]!r} ({error})"
        ) from None
    text = record.get(field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        others = [name for name, value in record.items() if isinstance(value, str)] if isinstance(record, dict) else []
        way = f"; its strings are {', '.join(others[:8])}: tokenize --field names the one to read" if others else ""
        raise CorpusError(
            f'{file}: line {number}: expected an object with a string "{field}", found {line.strip()[:40]!r}{way}'
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CorpusError(
            f"{file}: line {number}: expected text, found half of a surrogate pair ({text[error.start]!a}) in it; "
            "write the line again from the whole text"
        ) from None
    return text

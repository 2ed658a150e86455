"""From a folder of text to a token corpus, documents kept apart."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from memgraft import _core
from memgraft.corpus.foreign import refuse_text_splits
from memgraft.corpus.writer import CorpusWriter, storage_errors
from memgraft.errors import ArgumentError, ConfigError, CorpusError, TokenError

#: One document per file, but ``.jsonl``: one per line.
TEXT_SUFFIXES = (".txt", ".md", ".jsonl")
TOKEN_SUFFIXES = (".bin", ".ds", ".npy")

BYTE_ORDER_MARK = "\ufeff"

#: Characters handed to the tokenizer at a time: enough for its threads, little memory.
BATCH_CHARACTERS = 4_000_000

Progress = Callable[[str, int, int], object]


def is_text(path: Path) -> bool:
    """Whether ``path`` is a text file, or a folder with text and no token files in it."""
    if not path.is_dir():
        return path.suffix.lower() in TEXT_SUFFIXES
    return not has_token_files(path) and next(text_files(path), None) is not None


def has_token_files(folder: Path) -> bool:
    """Whether token files lie in ``folder`` itself."""
    with storage_errors(folder, "cannot list the folder; check its permissions"):
        return any(entry.suffix in TOKEN_SUFFIXES for entry in folder.iterdir())


def text_files(path: Path) -> Iterator[Path]:
    """Yields a text file itself, or those below a folder, by folder and name; hidden ones are left out.

    Links to folders are followed, each folder once.

    Raises:
        StorageError: a folder cannot be listed.
    """
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
            if name.lower().endswith(TEXT_SUFFIXES) and not name.startswith("."):
                yield Path(folder) / name


def read_documents(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yields the documents of a text file or folder: files by folder and name, lines of ``.jsonl`` in order.

    Text is taken as it is, line ends included, but for a byte order mark at a file's start.

    Raises:
        CorpusError: no text file; bytes that are not UTF-8 (with their offset); a line without a ``text`` string.
    """
    refuse_text_splits(Path(path), text_files(Path(path)))
    for document, _ in _read_sized(Path(path)):
        yield document


def _read_sized(path: Path) -> Iterator[tuple[str, int]]:
    """Documents with the bytes they took."""
    if not path.exists():
        raise CorpusError(f"{path}: expected a folder of text (.txt, .md, .jsonl), found nothing there")
    found = False
    for file in text_files(path):
        found = True
        if file.suffix.lower() != ".jsonl":
            with storage_errors(file, "cannot read the text; check its permissions"):
                data = file.read_bytes()
            yield _decode(file, data, 0).removeprefix(BYTE_ORDER_MARK), len(data)
            continue
        offset = 0
        with storage_errors(file, "cannot read the text; check its permissions"), open(file, "rb") as stream:
            for number, line in enumerate(stream, 1):
                text = _decode(file, line, offset)
                if number == 1:
                    text = text.removeprefix(BYTE_ORDER_MARK)
                offset += len(line)
                if text.strip():
                    yield _line_text(file, number, text), len(line)
    if not found:
        raise CorpusError(f"{path}: expected text files (.txt, .md, .jsonl), found none")


def _size(file: Path) -> int:
    with storage_errors(file, "cannot read the text; check its permissions, or whether a link leads nowhere"):
        return file.stat().st_size


def _decode(file: Path, data: bytes, offset: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{file}: expected UTF-8, found byte 0x{data[error.start]:02x} at offset {offset + error.start} "
            f"({error.reason}); convert the file (`iconv -t UTF-8`), or leave it out"
        ) from None


def _line_text(file: Path, number: int, line: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise CorpusError(
            f"{file}: line {number}: expected a JSON object, found {line.strip()[:40]!r} ({error})"
        ) from None
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise CorpusError(
            f'{file}: line {number}: expected an object with a string "text", found {line.strip()[:40]!r}'
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CorpusError(
            f"{file}: line {number}: expected text, found half of a surrogate pair ({text[error.start]!a}) in it; "
            "write the line again from the whole text"
        ) from None
    return text


def tokenizer_path(path: str | os.PathLike[str]) -> Path:
    """The ``tokenizer.json`` that ``path`` names: itself, or the one in a folder."""
    return Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)


def load_tokenizer(path: str | os.PathLike[str]) -> Any:
    """Loads a ``tokenizer.json``, or a folder's, with the ``tokenizers`` library, truncation and padding off.

    Raises:
        ConfigError: the library is missing.
        CorpusError: the file is not a tokenizer.
    """
    path = tokenizer_path(path)
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise ConfigError(
            "reading a tokenizer.json needs the tokenizers library: pip install 'memgraft[cli]'"
        ) from None
    if not path.is_file():
        raise CorpusError(f"{path}: expected a tokenizer.json, found no such file")
    try:
        tokenizer = Tokenizer.from_file(os.fspath(path))
    except Exception as error:  # the library raises bare Exception
        raise CorpusError(f"{path}: expected a tokenizer.json of the tokenizers library, found: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def tokenizer_file_fingerprint(path: str | os.PathLike[str]) -> str:
    """Fingerprint of the bytes of a ``tokenizer.json``, or a folder's, as token corpora and key sets record it."""
    return _core.fingerprint_file(os.fspath(tokenizer_path(path)))


def tokenizer_size(tokenizer: Any) -> int:
    """Largest id of a tokenizer (or of the one at a path) plus one; ids may have holes, so not their number."""
    if isinstance(tokenizer, (str, os.PathLike)):
        tokenizer = load_tokenizer(tokenizer)
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def find_special_ids(tokenizer: Any) -> list[int]:
    """Ids of the special tokens of a loaded tokenizer, ascending."""
    return sorted(token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special)


def tokenize_folder(
    path: str | os.PathLike[str],
    tokenizer: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    eos: str | int | None = None,
    vocab_size: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Tokenises text files into ``<out>.bin/.idx/.json`` and returns the ``.bin``; see :class:`CorpusWriter`.

    One document per ``.txt`` or ``.md`` file and per line of ``.jsonl`` (its ``text``). No special tokens are added but
    ``eos``, at the end of every document. Documents without tokens are left out.

    Args:
        path: a text file, or a folder that is searched to the bottom.
        tokenizer: path of a ``tokenizer.json``, or of its folder.
        out: prefix of the corpus.
        eos: the delimiter, as token text or id; ``None`` appends none (the index keeps documents apart).
        vocab_size: declared vocabulary of the model; default: the tokenizer's size.
        progress: called with (stage, bytes done, bytes in all).

    Raises:
        CorpusError: no text, text that is not UTF-8, a file that is no tokenizer.
        TokenError: the tokenizer is larger than ``vocab_size``.
        ArgumentError: the tokenizer does not know ``eos``.
    """
    source = Path(path)
    refuse_text_splits(source, text_files(source))
    loaded = load_tokenizer(tokenizer)
    size = tokenizer_size(loaded)
    if vocab_size is not None and size > vocab_size:
        raise TokenError(
            f"{os.fspath(tokenizer)}: expected a tokenizer of at most {vocab_size} ids (the declared vocab_size), "
            f"found {size}; declare the model's real vocabulary, or take its own tokenizer"
        )
    eos_id = _eos_id(loaded, eos, size, tokenizer)
    total = sum(map(_size, text_files(source))) if source.exists() else 0
    done = 0
    with CorpusWriter(
        out,
        vocab_size=vocab_size or size,
        eos_id=eos_id,
        tokenizer=tokenizer_file_fingerprint(tokenizer),
        special_ids=find_special_ids(loaded),
    ) as writer:
        for batch, num_bytes in _batches(_read_sized(source)):
            for encoding in loaded.encode_batch_fast(batch, add_special_tokens=False):
                ids = encoding.ids
                if ids:
                    writer.add(np.array(ids if eos_id is None else [*ids, eos_id], np.uint32))
            done += num_bytes
            if progress is not None:
                progress("tokenize", min(done, total - 1), total)
        if progress is not None:
            progress("tokenize", total, total)
        return writer.finish()


def _eos_id(tokenizer: Any, eos: str | int | None, size: int, path: str | os.PathLike[str]) -> int | None:
    if eos is None:
        return None
    found = tokenizer.token_to_id(eos) if isinstance(eos, str) else eos
    if found is None or not 0 <= found < size:
        raise ArgumentError(f"eos: expected a token of {os.fspath(path)} ({size} ids), got {eos!r}")
    return int(found)


def _batches(documents: Iterator[tuple[str, int]]) -> Iterator[tuple[list[str], int]]:
    batch: list[str] = []
    characters = num_bytes = 0
    for document, size in documents:
        batch.append(document)
        characters += len(document)
        num_bytes += size
        if characters >= BATCH_CHARACTERS:
            yield batch, num_bytes
            batch, characters, num_bytes = [], 0, 0
    if batch:
        yield batch, num_bytes

"""From a folder of text to a token corpus, documents kept apart."""

import functools
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memgraft.corpus.documents import (
    BYTE_ORDER_MARK,
    TEXT_SUFFIXES,
    TOKEN_SUFFIXES,
    Cutting,
    Document,
    documents,
    has_token_files,
    is_text,
    left_out,
    num_bytes,
    read_documents,
    text_files,
    unread,
)
from memgraft.corpus.foreign import refuse_text_splits
from memgraft.corpus.vocabulary import find_special_ids, load_tokenizer, tokenizer_size
from memgraft.corpus.writer import CorpusWriter
from memgraft.errors import ArgumentError, TokenError
from memgraft.progress import Progress as Progress
from memgraft.progress import callback
from memgraft.system import interruptible
from memgraft.tokenizer import mapping_facts, tokenizer_file_fingerprint
from memgraft.tokenizer_file import tokenizer_path

__all__ = [
    "BYTE_ORDER_MARK",
    "TEXT_SUFFIXES",
    "TOKEN_SUFFIXES",
    "Cutting",
    "Progress",
    "find_special_ids",
    "has_token_files",
    "interruptible",
    "is_text",
    "left_out",
    "load_tokenizer",
    "read_documents",
    "text_files",
    "tokenize_folder",
    "tokenizer_file_fingerprint",
    "tokenizer_path",
    "tokenizer_size",
    "unread",
]

BATCH_CHARACTERS = 4_000_000
"""Characters handed to the tokenizer at a time: enough for its threads, little memory."""

SLICE = 1 << 19
"""Ids turned into an array at a time. One call that turns them all would answer Ctrl-C only at its end."""

_NAMED = 16
"""Special tokens that a message names."""

GIANT_CHARACTERS = 1_000_000
"""A document of fewer characters is not looked at for marks of document ends inside it."""


def tokenize_folder(
    path: str | os.PathLike[str],
    tokenizer: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    eos: str | int | None = None,
    vocab_size: int | None = None,
    cutting: Cutting | None = None,
    files: dict[Path, int] | None = None,
    progress: Progress | bool | None = None,
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
        cutting: how text is cut into documents, and which columns and fields hold it.
        files: is told the number of tokens of each file, in the order in which they lie in the corpus.
        progress: True for bars, or called with (phase, bytes done, bytes in all).

    Raises:
        CorpusError: no text, text that is not UTF-8, a file that is no tokenizer.
        TokenError: the tokenizer is larger than ``vocab_size``.
        ArgumentError: the tokenizer does not know ``eos``.
    """
    progress = callback(progress)
    source = Path(path)
    cutting = Cutting() if cutting is None else cutting
    refuse_text_splits(source, text_files(source, cutting.suffixes))
    loaded = load_tokenizer(tokenizer)
    size = tokenizer_size(loaded)
    if vocab_size is not None and size > vocab_size:
        raise TokenError(
            f"{os.fspath(tokenizer)}: expected a tokenizer of at most {vocab_size} ids (the declared vocab_size), "
            f"found {size}; declare the model's real vocabulary, or take its own tokenizer"
        )
    eos_id = _eos_id(loaded, eos, size, tokenizer)
    total = num_bytes(source, cutting)
    done = 0
    with CorpusWriter(
        out,
        vocab_size=vocab_size or size,
        eos_id=eos_id,
        tokenizer=tokenizer_file_fingerprint(tokenizer),
        tokenizer_mapping=mapping_facts(loaded, vocab_size),
        special_ids=find_special_ids(loaded),
    ) as writer:
        for batch, size in _batches(_watched(documents(source, cutting), loaded, cutting)):
            texts = [document.text for document in batch]
            encodings = interruptible(functools.partial(loaded.encode_batch_fast, texts, add_special_tokens=False))
            for document, encoding in zip(batch, encodings, strict=True):
                ids = token_array(encoding.ids, eos_id)
                if ids.size:
                    writer.add(ids)
                if files is not None:
                    files[document.file] = files.get(document.file, 0) + ids.size
            done += size
            if progress is not None:
                progress("tokenize", min(done, total - 1), total)
        if progress is not None:
            progress("tokenize", total, total)
        return writer.finish(source)


def _eos_id(tokenizer: Any, eos: str | int | None, size: int, path: str | os.PathLike[str]) -> int | None:
    if eos is None:
        return None
    found = tokenizer.token_to_id(eos) if isinstance(eos, str) else eos
    if found is None or not 0 <= found < size:
        special = [tokenizer.id_to_token(token) for token in find_special_ids(tokenizer)]
        more = f" and {len(special) - _NAMED} more" if len(special) > _NAMED else ""
        known = f"; special tokens there: {', '.join(special[:_NAMED])}{more}" if special else ""
        raise ArgumentError(f"eos: expected a token of {os.fspath(path)} ({size} ids), got {eos!r}{known}")
    return int(found)


def token_array(ids: list[int], eos_id: int | None) -> npt.NDArray[np.uint32]:
    """The ids of a document, (n,) uint32, with ``eos_id`` at the end of one that has any."""
    if not ids:
        return np.empty(0, np.uint32)
    found = np.empty(len(ids) + (eos_id is not None), np.uint32)
    for start in range(0, len(ids), SLICE):
        part = ids[start : start + SLICE]
        found[start : start + len(part)] = part
    if eos_id is not None:
        found[-1] = eos_id
    return found


def _watched(found: Iterator[Document], tokenizer: Any, cutting: Cutting) -> Iterator[Document]:
    """``found``; warns once of one large document with marks of document ends inside, which keys would cross."""
    special = [added.content for added in tokenizer.get_added_tokens_decoder().values() if added.special]
    marks = [mark for mark in special if len(mark) > 2] if cutting.separator is None else []
    for document in found:
        if len(document.text) >= GIANT_CHARACTERS:
            for mark in marks:
                if (count := document.text.count(mark)) > 1:
                    warnings.warn(
                        f"{document.file}: one document of {len(document.text)} characters holds {mark!r} {count} "
                        f"times: keys would cross the documents that it parts; give separator={mark!r}",
                        stacklevel=3,
                    )
                    marks = []
        yield document


def _batches(found: Iterator[Document]) -> Iterator[tuple[list[Document], int]]:
    batch: list[Document] = []
    characters = size = 0
    for document in found:
        batch.append(document)
        characters += len(document.text)
        size += document.num_bytes
        if characters >= BATCH_CHARACTERS:
            yield batch, size
            batch, characters, size = [], 0, 0
    if batch:
        yield batch, size

"""What lies at the paths given to `Corpus.open`: token files, tables or text, opened with the facts beside them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from memgraft import _core
from memgraft.arguments import token_id
from memgraft.config import MAX_VOCAB_SIZE
from memgraft.corpus.documents import TEXT_SUFFIXES, TOKEN_SUFFIXES, has_token_files, is_text, text_files
from memgraft.corpus.facts import read_facts
from memgraft.corpus.foreign import (
    refuse_below,
    refuse_foreign,
    refuse_index,
    refuse_own,
    refuse_splits,
    token_files,
)
from memgraft.corpus.tables import TABLE_SUFFIXES, is_table, write_tables
from memgraft.corpus.text import tokenize_folder
from memgraft.corpus.vocabulary import find_special_ids, load_tokenizer, tokenizer_size
from memgraft.errors import ArgumentError, CorpusError
from memgraft.progress import Progress
from memgraft.system import temporary_folder
from memgraft.tokenizer import differs_from, mapping_facts, open_tokenizer, recorded_facts, tokenizer_file_fingerprint

PathLike = str | os.PathLike[str]
Opened = tuple[_core.Corpus, dict[str, Any]]
"""The compiled corpus, and the keyword arguments of :class:`memgraft.Corpus` that say what its tokens are."""


def kind_of(paths: Sequence[Path], tokenizer: PathLike | None) -> Literal["text", "table", "tokens"]:
    """What ``paths`` hold, where no format is named.

    Raises:
        CorpusError: text without a tokenizer, or a folder in which ``tokenizer`` could mean two things.
    """
    for item in paths:
        refuse_own(item)
        if item.is_dir() and not is_table(item) and not _holds_tokens(item) and not _has_prose(item):
            refuse_below(item, (*TOKEN_SUFFIXES, *TABLE_SUFFIXES))
    if all(is_text(item) for item in paths):
        if tokenizer is None:
            raise CorpusError(
                f"{paths[0]}: expected token files, found text; give tokenizer=<tokenizer.json>, or "
                "run `memgraft tokenize`"
            )
        return "text"
    if all(map(is_table, paths)) and not any(map(_holds_tokens, paths)):
        return "table"
    if tokenizer is not None:
        _refuse_mixed(paths)
    return "tokens"


def open_text(
    paths: Sequence[Path],
    *,
    tokenizer: PathLike,
    eos_id: int | None,
    temporary: PathLike | None,
    progress: Progress | None,
) -> Opened:
    """Tokenises a folder of text into an unlinked file; arguments and errors as for `Corpus.open`."""
    if len(paths) > 1:
        raise ArgumentError("path: expected one folder of text, got several; tokenise them one by one")
    files: dict[Path, int] = {}
    with temporary_folder(temporary) as folder:
        out = Path(folder) / "corpus"
        written = tokenize_folder(paths[0], tokenizer, out, eos=eos_id, files=files, progress=progress)
        core, facts = open_tokens([written])
    return core, {**facts, "source": ("text", paths), "files": files}


def open_tables(
    paths: Sequence[Path],
    *,
    tokenizer: PathLike | None,
    eos_id: int | None,
    column: str,
    temporary: PathLike | None,
    progress: Progress | None,
) -> Opened:
    """Reads tables of token ids into an unlinked file; arguments and errors as for `Corpus.open`."""
    known: dict[str, Any] = {"vocab_size": MAX_VOCAB_SIZE}
    if tokenizer is not None:
        loaded = load_tokenizer(tokenizer)
        known["tokenizer"] = tokenizer_file_fingerprint(tokenizer)
        known["tokenizer_mapping"] = mapping_facts(tokenizer)
        known["vocab_size"] = tokenizer_size(loaded)
        known["special_ids"] = find_special_ids(loaded)
    with temporary_folder(temporary) as folder:
        written = write_tables(paths, Path(folder) / "corpus", column=column, progress=progress, **known)
        core, facts = open_tokens([written], eos_id=_token("eos_id", eos_id))
    # The bound that the writer was given is nobody's vocabulary.
    return core, {**facts, "source": ("table", paths)} | ({"vocab_size": None} if tokenizer is None else {})


def open_tokens(
    paths: Sequence[Path],
    *,
    format: str | None = None,
    dtype: npt.DTypeLike | None = None,
    eos_id: int | None = None,
    tokenizer: PathLike | None = None,
    documents: Literal["file"] | None = None,
    delimiter: Literal["end", "start"] | None = None,
) -> Opened:
    """Opens token files and checks them against the facts beside them; arguments and errors as for `Corpus.open`."""
    for item in paths:
        _refuse_foreign(item, format, typed=dtype is not None)
    if documents not in (None, "file"):
        raise ArgumentError(f'documents: expected None or "file", got {documents!r}')
    if delimiter not in (None, "end", "start"):
        raise ArgumentError(f'delimiter: expected "end" or "start", got {delimiter!r}')
    core = _core.Corpus.open(
        [os.fspath(item) for item in paths],
        format=format,
        dtype=None if dtype is None else np.dtype(dtype).name,
        eos_id=_token("eos_id", eos_id),
        eos_first=None if delimiter is None else delimiter == "start",
        file_is_document=documents == "file",
    )
    facts = read_facts(core.paths)
    recorded = facts.get("num_tokens")
    if recorded is not None and recorded != core.num_tokens:
        raise CorpusError(
            f"{core.paths[0]}: expected the {recorded} tokens that the .json beside it records, found "
            f"{core.num_tokens}; the files do not belong together: tokenise again, or remove the .json"
        )
    fingerprint, vocab_size = facts.get("tokenizer"), facts.get("vocab_size")
    mapping, special_ids = facts.get("tokenizer_mapping"), facts.get("special_ids") or ()
    if tokenizer is not None:
        loaded = load_tokenizer(tokenizer)
        given = tokenizer_file_fingerprint(tokenizer)
        if fingerprint is None or mapping is None:
            mapping = mapping_facts(tokenizer) if fingerprint in (None, given) else None
        if differs_from(open_tokenizer(tokenizer), recorded_facts(fingerprint, mapping)):
            raise CorpusError(
                f"{core.paths[0]}: expected tokens of {os.fspath(tokenizer)} ({given[:12]}…), found tokens of "
                f"another tokenizer ({str(fingerprint)[:12]}…); give that one, or tokenise the text again"
            )
        fingerprint, vocab_size, special_ids = given, tokenizer_size(loaded), find_special_ids(loaded)
    return core, {
        "eos_id": facts.get("eos_id") if eos_id is None else eos_id,
        "vocab_size": vocab_size,
        "tokenizer": fingerprint,
        "tokenizer_mapping": mapping,
        "special_ids": special_ids,
        "recorded_split": facts.get("split"),
    }


def _refuse_foreign(path: Path, format: str | None, *, typed: bool) -> None:
    """Refuses several splits in one folder, and what other tools wrote and nobody can read here."""
    named = token_files(path, TOKEN_SUFFIXES) if path.is_dir() else []
    if path.is_dir():
        refuse_splits(path, named)
    if format is None:
        refuse_foreign(path, token_files=named, typed=typed)
    elif path.is_dir():
        refuse_index(path)
    else:
        refuse_index(path.parent, path.name)


def _has_prose(folder: Path) -> bool:
    """Whether there is text below ``folder`` that is more than the pages which describe a dataset."""
    return any(file.suffix.lower() != ".md" for file in text_files(folder))


def _holds_tokens(path: Path) -> bool:
    return path.is_dir() and has_token_files(path)


def _refuse_mixed(paths: Sequence[Path]) -> None:
    """Refuses a folder that holds both tokens and text, or neither: ``tokenizer=`` is then not clear.

    It can be the tokenizer that made the tokens, or the one that is to read the text.

    Raises:
        CorpusError: there is such a folder.
    """
    for path in paths:
        if path.is_dir() and not _holds_tokens(path):
            raise CorpusError(
                f"{path}: expected token files ({', '.join(TOKEN_SUFFIXES)}), tables ({', '.join(TABLE_SUFFIXES)}) "
                f"or text ({', '.join(TEXT_SUFFIXES)}), found none of them; name another folder"
            )
        if _holds_tokens(path) and any(entry.suffix.lower() in (".txt", ".jsonl") for entry in path.iterdir()):
            raise CorpusError(
                f"{path}: expected token files or text ({', '.join(TEXT_SUFFIXES)}), found both; name the files you "
                "mean, or give format= for the token files"
            )


def _token(name: str, value: int | None) -> int | None:
    if value is None:
        return None
    if not 0 <= token_id(name, value) < 2**32:
        raise ArgumentError(f"{name}: expected a token id, got {value}")
    return token_id(name, value)

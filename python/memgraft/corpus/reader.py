"""``Corpus``: one reader over token files, a stream of tokens cut into documents."""

import json
import operator
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from memgraft import _core
from memgraft.corpus.foreign import refuse_foreign, refuse_index, refuse_splits, token_files
from memgraft.corpus.tables import COLUMN, TABLE_SUFFIXES, is_table, write_tables
from memgraft.corpus.text import (
    TEXT_SUFFIXES,
    TOKEN_SUFFIXES,
    Progress,
    find_special_ids,
    has_token_files,
    is_text,
    load_tokenizer,
    tokenize_folder,
    tokenizer_file_fingerprint,
    tokenizer_size,
)
from memgraft.corpus.writer import MAX_VOCAB_SIZE, storage_errors
from memgraft.errors import ArgumentError, ConfigError, CorpusError, TokenError
from memgraft.keyed import Closed, decoder, place
from memgraft.progress import callback
from memgraft.system import check_writable, num_threads
from memgraft.tokenizer import differs_from, mapping_facts, open_tokenizer, recorded_facts

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

PathLike = str | os.PathLike[str]

#: Marks the facts file that :class:`memgraft.CorpusWriter` leaves beside the tokens.
FACTS_FORMAT = "memgraft.corpus"


class Corpus:
    """A token corpus: files, mapped and read on demand. Make one with :meth:`open`.

    Attributes:
        eos_id: the document delimiter, if there is one in the stream; never part of a key.
        vocab_size: size of the tokenizer that made the tokens, where known.
        tokenizer: fingerprint of that tokenizer's file, where known.
        tokenizer_mapping: fingerprints of what it does, which saving it again does not change; where known.
        special_ids: that tokenizer's special tokens; never part of a key.
    """

    def __init__(
        self,
        core: _core.Corpus,
        *,
        eos_id: int | None = None,
        vocab_size: int | None = None,
        tokenizer: str | None = None,
        tokenizer_mapping: Mapping[str, Any] | None = None,
        special_ids: Sequence[int] = (),
        source: tuple[str, Sequence[Path]] | None = None,
        recorded_split: Mapping[str, Any] | None = None,
    ) -> None:
        """Wraps the compiled corpus; use :meth:`open` instead."""
        self._core = core
        self._source = source
        self._recorded_split = recorded_split
        self.eos_id = core.eos_id if eos_id is None else eos_id
        self.vocab_size = vocab_size
        self.tokenizer = tokenizer
        self.tokenizer_mapping = tokenizer_mapping
        self.special_ids = tuple(special_ids)

    @classmethod
    def open(
        cls,
        path: PathLike | Sequence[PathLike],
        *,
        format: str | None = None,
        dtype: npt.DTypeLike | None = None,
        eos_id: int | None = None,
        tokenizer: PathLike | None = None,
        documents: Literal["file"] | None = None,
        delimiter: Literal["end", "start"] | None = None,
        column: str = COLUMN,
        temporary: PathLike | None = None,
        progress: Progress | bool | None = None,
    ) -> "Corpus":
        """Opens token files, reads tables of token ids, or tokenises a folder of text.

        The tokens of tables and text are kept in an unlinked temporary file while the corpus is open.

        Args:
            path: a file, a Megatron prefix, a directory of shards in one format, or several of these in order; Parquet
                or Arrow files, or a folder of them, as ``save_to_disk`` of ``datasets`` leaves it (a row is a document;
                positions with a zero in ``attention_mask`` are left out, a jump in ``position_ids`` begins a
                document); with ``tokenizer``, also a folder (or file) of ``.txt``, ``.md`` and ``.jsonl``.
            format: ``"nanogpt"``, ``"llmc"``, ``"megatron"``, ``"datatrove"``, ``"numpy"`` or ``"raw"`` (bare tokens of
                ``dtype``), where suffix, magic and neighbours leave it open.
            dtype: stored integer type, where the file does not say.
            eos_id: token that delimits documents. Formats without an index need it, or ``documents="file"``;
                in the others it cuts in addition to the index.
            tokenizer: path of the ``tokenizer.json`` (or its folder) that made, or is to make, the tokens.
            documents: ``"file"`` takes each file as one document.
            delimiter: whether ``eos_id`` ends a document (default) or starts one (llm.c's way, and its default).
            column: the column of token ids in a table.
            temporary: folder of that temporary file; ``$TMPDIR`` by default.
            progress: True for bars, or called with (stage, bytes done, bytes in all) while text is tokenised or
                tables are read.

        Raises:
            ConfigError: the library that the files need is not installed.
            CorpusError: a file is empty, damaged, ambiguous, or does not tell documents apart.
            StorageError: a file cannot be read.
        """
        progress = callback(progress)
        paths = [Path(item) for item in ([path] if isinstance(path, (str, os.PathLike)) else path)]
        if not paths:
            raise ArgumentError("path: expected at least one file or folder, got none")
        if format is None and all(is_text(item) for item in paths):
            if tokenizer is None:
                raise CorpusError(
                    f"{paths[0]}: expected token files, found text; give tokenizer=<tokenizer.json>, or "
                    "run `memgraft tokenize`"
                )
            return cls._open_text(paths, tokenizer, eos_id, temporary, progress)
        if format is None and all(map(is_table, paths)) and not any(map(_holds_tokens, paths)):
            return cls._open_tables(paths, tokenizer, eos_id, column, temporary, progress)
        if format is None and tokenizer is not None:
            _refuse_mixed(paths)
        for item in paths:
            named = token_files(item, TOKEN_SUFFIXES) if item.is_dir() else []
            if item.is_dir():
                refuse_splits(item, named)
            if format is None:
                refuse_foreign(item, token_files=named, typed=dtype is not None)
            elif item.is_dir():
                refuse_index(item)
            else:
                refuse_index(item.parent, item.name)
        if documents not in (None, "file"):
            raise ArgumentError(f'documents: expected None or "file", got {documents!r}')
        if delimiter not in (None, "end", "start"):
            raise ArgumentError(f'delimiter: expected "end" or "start", got {delimiter!r}')
        core = _core.Corpus.open(
            [os.fspath(item) for item in paths],
            format=format,
            dtype=None if dtype is None else np.dtype(dtype).name,
            eos_id=_index("eos_id", eos_id),
            eos_first=None if delimiter is None else delimiter == "start",
            file_is_document=documents == "file",
        )
        facts = _read_facts(core.paths)
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
        return cls(
            core,
            eos_id=facts.get("eos_id") if eos_id is None else eos_id,
            vocab_size=vocab_size,
            tokenizer=fingerprint,
            tokenizer_mapping=mapping,
            special_ids=special_ids,
            recorded_split=facts.get("split"),
        )

    @classmethod
    def _open_text(
        cls,
        paths: Sequence[Path],
        tokenizer: PathLike,
        eos_id: int | None,
        temporary: PathLike | None,
        progress: Progress | None,
    ) -> "Corpus":
        if len(paths) > 1:
            raise ArgumentError("path: expected one folder of text, got several; tokenise them one by one")
        with _temporary_folder(temporary) as folder:
            written = tokenize_folder(paths[0], tokenizer, Path(folder) / "corpus", eos=eos_id, progress=progress)
            corpus = cls.open(written)
        corpus._source = ("text", paths)
        return corpus

    @classmethod
    def _open_tables(
        cls,
        paths: Sequence[Path],
        tokenizer: PathLike | None,
        eos_id: int | None,
        column: str,
        temporary: PathLike | None,
        progress: Progress | None,
    ) -> "Corpus":
        facts: dict[str, Any] = {"vocab_size": MAX_VOCAB_SIZE}
        if tokenizer is not None:
            loaded = load_tokenizer(tokenizer)
            facts["tokenizer"] = tokenizer_file_fingerprint(tokenizer)
            facts["tokenizer_mapping"] = mapping_facts(tokenizer)
            facts["vocab_size"] = tokenizer_size(loaded)
            facts["special_ids"] = find_special_ids(loaded)
        with _temporary_folder(temporary) as folder:
            written = write_tables(paths, Path(folder) / "corpus", column=column, progress=progress, **facts)
            corpus = cls.open(written, eos_id=_index("eos_id", eos_id))
        corpus._source = ("table", paths)
        if tokenizer is None:
            corpus.vocab_size = None
        return corpus

    @property
    def num_tokens(self) -> int:
        """Tokens in the stream."""
        return self._core.num_tokens

    @property
    def num_documents(self) -> int:
        """Documents in the stream, empty ones included."""
        return self._core.num_documents

    @property
    def dtype(self) -> np.dtype[Any]:
        """The stored integer type."""
        return np.dtype(self._core.dtype)

    @property
    def format(self) -> str:
        """Format of the files; ``"text"`` and ``"table"`` where tokens were made or read out of them."""
        return self._core.format if self._source is None else self._source[0]

    @property
    def paths(self) -> list[Path]:
        """The token files, in order; of text and tables, what was opened."""
        return [Path(path) for path in self._core.paths] if self._source is None else list(self._source[1])

    @property
    def document_starts(self) -> npt.NDArray[np.uint64]:
        """``(D + 1,)`` uint64: start of every document, and the end of the last."""
        return self._core.document_starts()

    @property
    def split_facts(self) -> Mapping[str, Any] | None:
        """Which part of which corpus this is, after :meth:`split`: part, held_out, seed, of (fingerprint), counts."""
        return self._core.split_facts or self._recorded_split

    @property
    def fingerprint(self) -> str:
        """64 hex digits over tokens and documents, the same in every format; the first use reads the whole corpus."""
        return self._core.fingerprint(num_threads())

    def tokens(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.uint32]:
        """Returns positions ``start`` to ``stop`` as a ``(stop - start,)`` uint32 copy.

        Raises:
            ArgumentError: the window lies outside the corpus.
        """
        stop = self.num_tokens if stop is None else operator.index(stop)
        start = operator.index(start)
        if start < 0 or stop < 0:
            raise ArgumentError(f"tokens: expected 0 <= start <= stop <= {self.num_tokens}, got {start} and {stop}")
        return self._core.tokens(start, stop)

    def document(self, index: int) -> npt.NDArray[np.uint32]:
        """Returns the tokens of document ``index``, delimiter included, as a uint32 copy.

        Raises:
            ArgumentError: there is no such document.
        """
        if operator.index(index) < 0:
            raise ArgumentError(f"document: expected 0 to {self.num_documents - 1}, got {index}")
        return self._core.tokens(*self._core.document(index))

    def split(self, *, held_out: float, seed: int = 0) -> tuple["Corpus", "Corpus"]:
        """Returns (training part, held-out part), two views on the same files.

        ``round(held_out * num_documents)`` documents, at least one, are held out: those whose hash of seed and index is
        smallest, so the choice depends on nothing else. Both parts keep the order of documents and carry
        :attr:`split_facts`; mining records them in the key set.

        Raises:
            ArgumentError: ``held_out`` is not between 0 and 1.
            CorpusError: fewer than two documents, or a part without tokens.
        """
        if not 0 <= operator.index(seed) < 2**64:
            raise ArgumentError(f"seed: expected 0 to 2**64 - 1, got {seed}")
        train, held = self._core.split(float(held_out), seed, num_threads())
        return self._view(train), self._view(held)

    def without_documents(self) -> "Corpus":
        """What a task mines that was given no document: the same tokenizer and special tokens, nothing to read."""
        return self._view(self._core.without_documents())

    def _view(self, core: _core.Corpus) -> "Corpus":
        return Corpus(
            core,
            eos_id=self.eos_id,
            vocab_size=self.vocab_size,
            tokenizer=self.tokenizer,
            tokenizer_mapping=self.tokenizer_mapping,
            special_ids=self.special_ids,
            source=self._source,
        )

    def __len__(self) -> int:
        """Tokens in the stream."""
        return self.num_tokens

    def __getitem__(self, position: "int | slice") -> Any:
        """The token at a position (negative: from the end) as an int, or those of a slice as uint32 ``(n,)``.

        Raises:
            RowError: no such position.
        """
        if isinstance(position, slice):
            start, stop, step = position.indices(self.num_tokens)
            if step != 1:
                places = range(start, stop, step)
                low, high = (min(places), max(places) + 1) if places else (0, 0)
                return self.tokens(low, high)[np.arange(start, stop, step) - low]
            return self.tokens(start, max(start, stop))
        at = place(position, self.num_tokens)
        return int(self.tokens(at, at + 1)[0])

    def __enter__(self) -> "Corpus":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the files; every later use is refused."""
        self._core = Closed(f"corpus {self.paths[0]}")  # type: ignore[assignment]

    def to_pandas(self, num_documents: int | None = None, *, tokenizer: Any = None) -> "pd.DataFrame":
        """A table of the first ``num_documents`` documents (all by default): start, num_tokens, tokens.

        Args:
            num_documents: documents of the table at most.
            tokenizer: path of a ``tokenizer.json`` or its folder, or a loaded tokenizer: adds the column ``text``.

        Raises:
            ConfigError: pandas, or tokenizers for a path, is not installed.
            ArgumentError: ``num_documents`` is negative.
        """
        try:
            import pandas as pd
        except ModuleNotFoundError:
            raise ConfigError("to_pandas() needs pandas, which is not installed: pip install pandas") from None
        if num_documents is not None and num_documents < 0:
            raise ArgumentError(f"num_documents: expected at least 0, got {num_documents}")
        chosen = self.num_documents if num_documents is None else min(num_documents, self.num_documents)
        starts = self.document_starts[: chosen + 1].astype(np.int64)
        documents = [self.document(each) for each in range(chosen)]
        columns: dict[str, Any] = {"start": starts[:-1], "num_tokens": np.diff(starts), "tokens": documents}
        if tokenizer is not None:
            columns["text"] = decoder(tokenizer)([document.tolist() for document in documents])
        return pd.DataFrame(columns, index=pd.RangeIndex(chosen, name="document"))

    def __repr__(self) -> str:
        where = self.paths[0] if len(self.paths) == 1 else f"{len(self.paths)} files from {self.paths[0]}"
        part = f", {self.split_facts['part']} part" if self.split_facts else ""
        return f"Corpus({where}, {self.format}, {self.num_tokens:,} tokens, {self.num_documents:,} documents{part})"


@contextmanager
def _temporary_folder(parent: PathLike | None) -> Iterator[str]:
    """A folder that is removed at the end, in ``parent`` or where the system puts such things."""
    where = Path(tempfile.gettempdir() if parent is None else parent)
    if parent is not None:
        with storage_errors(where, "cannot make the folder; name another with temporary="):
            where.mkdir(parents=True, exist_ok=True)
    check_writable(where)
    with tempfile.TemporaryDirectory(prefix="memgraft-corpus-", dir=where) as folder:
        yield folder


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


def _index(name: str, value: int | None) -> int | None:
    if value is None:
        return None
    if not 0 <= operator.index(value) < 2**32:
        raise ArgumentError(f"{name}: expected a token id, got {value}")
    return operator.index(value)


def _read_facts(paths: Sequence[PathLike]) -> Mapping[str, Any]:
    """The facts beside the token files; shards must agree on them."""
    facts: dict[str, Any] = {}
    num_tokens: list[int] = []
    mappings: list[Mapping[str, Any] | None] = []
    for path in map(Path, paths):
        beside = path.with_suffix(".json")
        try:
            found = json.loads(beside.read_bytes())
        except (FileNotFoundError, ValueError):
            continue  # no file, or somebody else's
        if not isinstance(found, dict) or found.get("format") != FACTS_FORMAT:
            continue
        for name in ("tokenizer", "vocab_size", "eos_id", "special_ids"):
            if name in facts and facts[name] != found.get(name):
                raise TokenError(
                    f"{beside}: expected {name} {facts[name]} as in the first shard, found {found.get(name)}; "
                    "open corpora of different tokenizers apart"
                )
            facts[name] = found.get(name)
        mappings.append(found.get("tokenizer_mapping"))
        num_tokens.append(found.get("num_tokens", 0))
        if len(paths) == 1 and isinstance(found.get("split"), dict):
            facts["split"] = found["split"]
    if mappings and all(mapping == mappings[0] for mapping in mappings):
        facts["tokenizer_mapping"] = mappings[0]
    if num_tokens and len(num_tokens) == len(paths):
        facts["num_tokens"] = sum(num_tokens)
    return facts

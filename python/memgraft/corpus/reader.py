"""``Corpus``: one reader over token files, a stream of tokens cut into documents."""

import hashlib
import operator
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from memgraft import _core
from memgraft.arguments import refuse_constructor
from memgraft.corpus.opening import PathLike, kind_of, open_tables, open_text, open_tokens
from memgraft.corpus.tables import COLUMN
from memgraft.errors import ArgumentError, FingerprintError
from memgraft.keyed import Closed, Closing, decoder, pandas_for, place
from memgraft.progress import Progress, callback
from memgraft.system import num_threads

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]


Step = tuple[str, tuple[Any, ...]]
"""How a view is made of the corpus before: the name of a method, and its arguments."""

_GLANCED = 4096
"""Tokens at either end by which a corpus that is opened again is known."""


class Corpus(Closing):
    """A token corpus: files, mapped and read on demand. Make one with :meth:`open`.

    Token files pickle by path; text and tables, which lie in a file without a name, do not.

    Attributes:
        eos_id: the document delimiter, if there is one in the stream; never part of a key.
        vocab_size: size of the tokenizer that made the tokens, where known.
        tokenizer: fingerprint of that tokenizer's file, where known.
        tokenizer_mapping: fingerprints of what it does, which saving it again does not change; where known.
        special_ids: that tokenizer's special tokens; never part of a key.
        files: of text, the number of tokens of each file, in the order of the stream; else empty.
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
        files: Mapping[Path, int] | None = None,
        opened: Mapping[str, Any] | None = None,
        steps: Sequence[Step] = (),
    ) -> None:
        """Wraps the compiled corpus; use :meth:`open` instead."""
        refuse_constructor(core, _core.Corpus, "memgraft.Corpus.open")
        self._core = core
        self._opened = opened
        self._steps = tuple(steps)
        self._source = source
        self._recorded_split = recorded_split
        self.eos_id = core.eos_id if eos_id is None else eos_id
        self.vocab_size = vocab_size
        self.tokenizer = tokenizer
        self.tokenizer_mapping = tokenizer_mapping
        self.special_ids = tuple(special_ids)
        self.files = files or {}

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

        Documents that are in memory are written to a file first (:class:`memgraft.CorpusWriter`). The tokens of tables
        and text are kept in an unlinked temporary file while the corpus is open.

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
            progress: True for bars, or called with (phase, bytes done, bytes in all) while text is tokenised or
                tables are read.

        Raises:
            ArgumentError: an option out of range, or what is no path.
            ConfigError: the library that the files need is not installed.
            CorpusError: a file is empty, damaged, ambiguous, or does not tell documents apart.
            StorageError: a file cannot be read.
        """
        progress = callback(progress)
        if hasattr(path, "save_to_disk"):
            raise ArgumentError(
                f"path: expected paths, got a {type(path).__name__}; save_to_disk(folder) writes a dataset as a folder "
                "that this opens"
            )
        given = [path] if isinstance(path, (str, os.PathLike)) else list(path)
        for item in given:
            if not isinstance(item, (str, os.PathLike)):
                raise ArgumentError(
                    f"path: expected paths, got a {type(item).__name__}; documents of ids are written to a file with "
                    "memgraft.CorpusWriter"
                )
        paths = [Path(item) for item in given]
        if not paths:
            raise ArgumentError("path: expected at least one file or folder, got none")
        kind = kind_of(paths, tokenizer) if format is None else "tokens"
        opened = None
        if kind == "text":
            assert tokenizer is not None
            core, facts = open_text(paths, tokenizer=tokenizer, eos_id=eos_id, temporary=temporary, progress=progress)
        elif kind == "table":
            core, facts = open_tables(
                paths, tokenizer=tokenizer, eos_id=eos_id, column=column, temporary=temporary, progress=progress
            )
        else:
            options: dict[str, Any] = {
                "format": format,
                "dtype": dtype,
                "eos_id": eos_id,
                "tokenizer": tokenizer,
                "documents": documents,
                "delimiter": delimiter,
            }
            core, facts = open_tokens(paths, **options)
            # Absolute, since the process that opens it again may be in another folder.
            place = None if tokenizer is None else os.path.abspath(tokenizer)
            opened = {"path": [path.absolute() for path in paths], **options, "tokenizer": place}
        return cls(core, opened=opened, **facts)

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
        return self._view(train, "_part", 0, held_out, seed), self._view(held, "_part", 1, held_out, seed)

    def cut(self, rank: int, world: int) -> int:
        """The first document of shard ``rank`` where ``world`` shards get about equal tokens; the end for ``world``."""
        return self._core.cut(rank, world)

    def without_documents(self) -> "Corpus":
        """What a task mines that was given no document: the same tokenizer and special tokens, nothing to read."""
        return self._view(self._core.slice(0, 0), "without_documents")

    def _part(self, number: int, held_out: float, seed: int) -> "Corpus":
        """One of the two parts of :meth:`split`."""
        return self.split(held_out=held_out, seed=seed)[number]

    def _view(self, core: _core.Corpus, step: str, *arguments: Any) -> "Corpus":
        return Corpus(
            core,
            eos_id=self.eos_id,
            vocab_size=self.vocab_size,
            tokenizer=self.tokenizer,
            tokenizer_mapping=self.tokenizer_mapping,
            special_ids=self.special_ids,
            source=self._source,
            opened=self._opened,
            steps=(*self._steps, (step, arguments)),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles by the paths of its files and how they were opened, never the tokens.

        Raises:
            ArgumentError: the tokens are of text or tables.
        """
        if self._opened is None:
            raise ArgumentError(
                f"a corpus pickles by its files, and the tokens of {self.paths[0]} ({self.format}) lie in one without "
                "a name: write them with memgraft.tokenize_folder (text) or memgraft.CorpusWriter, and open that"
            )
        return _reopen, (dict(self._opened), self._steps, _glance(self))

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
        pd, chosen = pandas_for("num_documents", num_documents, self.num_documents)
        starts = self.document_starts[: chosen + 1].astype(np.int64)
        documents = [self.document(each) for each in range(chosen)]
        columns: dict[str, Any] = {"start": starts[:-1], "num_tokens": np.diff(starts), "tokens": documents}
        if tokenizer is not None:
            columns["text"] = decoder(tokenizer, inside=False)([document.tolist() for document in documents])
        return pd.DataFrame(columns, index=pd.RangeIndex(chosen, name="document"))

    def __repr__(self) -> str:
        try:
            sizes = f"{self.format}, {self.num_tokens:,} tokens, {self.num_documents:,} documents"
        except ArgumentError as closed:
            return f"Corpus({closed})"
        where = self.paths[0] if len(self.paths) == 1 else f"{len(self.paths)} files from {self.paths[0]}"
        part = f", {self.split_facts['part']} part" if self.split_facts else ""
        return f"Corpus({where}, {sizes}{part})"


def _glance(corpus: Corpus) -> tuple[int, int, str]:
    """Tokens, documents, and a hash of both ends: the fingerprint would read the whole corpus in every process."""
    ends = [corpus.tokens(0, min(_GLANCED, len(corpus))), corpus.tokens(max(0, len(corpus) - _GLANCED))]
    return len(corpus), corpus.num_documents, hashlib.sha256(np.concatenate(ends).tobytes()).hexdigest()


def _reopen(opened: Mapping[str, Any], steps: Sequence[Step], glance: tuple[int, int, str]) -> Corpus:
    corpus = Corpus.open(**opened)
    for name, arguments in steps:
        corpus = getattr(corpus, name)(*arguments)
    if (found := _glance(corpus)) != glance:
        raise FingerprintError(
            f"{opened['path'][0]}: expected the corpus that was pickled, {glance[0]} tokens in {glance[1]} documents, "
            f"found one of {found[0]} in {found[1]}: the files were replaced; open them again and pickle that"
        )
    return corpus

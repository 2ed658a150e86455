"""Writing a token corpus in Megatron's layout: written beside, fsynced, renamed."""

import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from memgraft.arguments import token_id
from memgraft.config import MAX_VOCAB_SIZE as MAX_VOCAB_SIZE
from memgraft.corpus.facts import FACTS_FORMAT
from memgraft.errors import ArgumentError, CorpusError, StorageError, TokenError
from memgraft.system import name_beside, sync_folder

MAX_SEQUENCE = 2**31 - 1
"""Longest sequence one entry of the index can hold; longer documents take several."""


@contextmanager
def storage_errors(path: Path, doing: str) -> Iterator[None]:
    """Turns the system's refusals into a :class:`StorageError` that names ``path`` and the way out in ``doing``."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}: {doing}") from error


class CorpusWriter:
    """Writes ``<path>.bin``, ``<path>.idx`` (Megatron's indexed dataset) and ``<path>.json`` (tokenizer facts).

    Use as a context manager: nothing stands under the final names before :meth:`finish`, which the end of the block
    calls where nobody has; a block that an error leaves removes what it wrote. Tokens are uint16 up to 65,536 ids,
    int32 above.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        vocab_size: int,
        eos_id: int | None = None,
        tokenizer: str | None = None,
        tokenizer_mapping: Mapping[str, Any] | None = None,
        special_ids: Sequence[int] = (),
        split: Mapping[str, Any] | None = None,
        declared: bool = True,
    ) -> None:
        """Opens the temporary files.

        Args:
            path: prefix of the three files; a ``.bin`` at its end is dropped.
            vocab_size: every token is smaller than this.
            eos_id: the delimiter that the caller appends to documents, if any; recorded.
            tokenizer: fingerprint of the tokenizer's file; recorded.
            tokenizer_mapping: its mapping (`memgraft.tokenizer.mapping_facts`); recorded.
            special_ids: the tokenizer's special tokens; recorded.
            split: which part of which corpus this is; recorded.
            declared: whether ``vocab_size`` is a tokenizer's or model's, and recorded, or a bound.
        """
        if not 0 < vocab_size <= MAX_VOCAB_SIZE:
            raise ArgumentError(f"vocab_size: expected 1 to {MAX_VOCAB_SIZE}, got {vocab_size}")
        text = os.fspath(path)
        self.path = Path(text[:-4] if text.endswith(".bin") else text)
        self.vocab_size, self.tokenizer = vocab_size, tokenizer
        self.eos_id = None if eos_id is None else token_id("eos_id", eos_id)
        self.tokenizer_mapping = tokenizer_mapping
        self.special_ids = [int(token) for token in special_ids]
        self.split, self.declared = split, declared
        self.dtype = np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<i4")
        self.num_tokens = 0
        self._lengths: list[int] = []
        self._documents = [0]
        self._open = True
        self._temporary = {suffix: name_beside(self.path, suffix) for suffix in (".bin", ".idx", ".json")}
        with self._writing():
            self._bin = open(self._temporary[".bin"], "wb")  # noqa: SIM115 - closed by finish() or abort()

    @property
    def num_documents(self) -> int:
        """Documents added so far."""
        return len(self._documents) - 1

    def add(self, tokens: npt.ArrayLike) -> None:
        """Appends one document of ``(n,)`` token ids.

        Raises:
            ArgumentError: no 1-D integers, or the writer is finished.
            TokenError: a token is not below ``vocab_size``.
            StorageError: the file cannot be written.
        """
        array = np.asarray(tokens)
        self._append(array)
        self._end_document(array.size)

    def _append(self, array: npt.NDArray[Any]) -> None:
        self._refuse_closed()
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise ArgumentError(f"tokens: expected a 1-D integer array, got {array.dtype} of shape {array.shape}")
        if array.size and not (int(array.min()) >= 0 and int(array.max()) < self.vocab_size):
            bad = int(array.max()) if int(array.max()) >= self.vocab_size else int(array.min())
            raise TokenError(
                f"document {self.num_documents}: expected tokens below vocab_size {self.vocab_size}, found {bad}; "
                "declare the tokenizer's full size"
            )
        with self._writing():
            self._bin.write(array.astype(self.dtype, copy=False).tobytes())
        self.num_tokens += array.size

    def _end_document(self, size: int) -> None:
        for start in range(0, max(size, 1), MAX_SEQUENCE):
            self._lengths.append(min(size - start, MAX_SEQUENCE))
        self._documents.append(len(self._lengths))

    def add_many(self, tokens: npt.ArrayLike, lengths: npt.ArrayLike) -> None:
        """Appends documents that follow one another in ``(n,)`` token ids; their ``(d,)`` lengths sum to ``n``.

        Raises:
            ArgumentError: the lengths do not sum to the number of tokens, or the writer is finished.
            TokenError: a token is not below ``vocab_size``.
            StorageError: the file cannot be written.
        """
        sizes = np.asarray(lengths, np.int64)
        array = np.asarray(tokens)
        if (sizes.size and int(sizes.min()) < 0) or int(sizes.sum()) != array.size:
            raise ArgumentError(f"lengths: expected to sum to the {array.size} tokens, got {int(sizes.sum())}")
        self._append(array)
        if sizes.size and int(sizes.max()) > MAX_SEQUENCE:
            for size in sizes.tolist():
                self._end_document(size)
            return
        first = len(self._lengths) + 1
        self._lengths.extend(sizes.tolist())
        self._documents.extend(range(first, first + sizes.size))

    def _refuse_closed(self) -> None:
        if not self._open:
            raise ArgumentError(f"{self.path}: this writer has finished or was given up; make another one")

    def _writing(self) -> AbstractContextManager[None]:
        return storage_errors(
            self.path, "cannot write the corpus; choose a folder with enough space (TMPDIR, for text and tables)"
        )

    def finish(self, source: str | os.PathLike[str] | None = None) -> Path:
        """Puts the corpus under its final names and returns its ``.bin``.

        Args:
            source: what the tokens are from, which an error names; default: the corpus itself.

        Raises:
            ArgumentError: it has finished before.
            CorpusError: no token was added.
            StorageError: the files cannot be written.
        """
        self._refuse_closed()
        if self.num_tokens == 0:
            self.abort()
            named = os.fspath(source or self.path)
            raise CorpusError(f"{named}: expected at least one token, found none; is the text empty?")
        with self._writing():
            path = self._finish()
        self._open = False
        return path

    def _finish(self) -> Path:
        _sync_close(self._bin)
        with open(self._temporary[".idx"], "wb") as idx:
            lengths = np.array(self._lengths, "<i4")
            pointers = np.zeros(len(lengths), "<i8")
            np.cumsum(lengths[:-1].astype("<i8") * self.dtype.itemsize, out=pointers[1:])
            code = 8 if self.dtype.itemsize == 2 else 4
            idx.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(lengths), len(self._documents)))
            for part in (lengths, pointers, np.array(self._documents, "<i8")):
                idx.write(part.tobytes())
            _sync(idx)
        with open(self._temporary[".json"], "w", encoding="utf-8") as facts:
            json.dump(self._facts(), facts, indent=2)
            _sync(facts)
        final = {suffix: self.path.with_name(self.path.name + suffix) for suffix in self._temporary}
        # The .bin comes last: alone it would pass for nanoGPT's bare tokens, while an .idx without it is refused.
        final[".bin"].unlink(missing_ok=True)
        for suffix in (".json", ".idx", ".bin"):
            os.replace(self._temporary[suffix], final[suffix])
        sync_folder(self.path.parent)
        return final[".bin"]

    def _facts(self) -> dict[str, Any]:
        return {
            "format": FACTS_FORMAT,
            "format_version": 1,
            "tokenizer": self.tokenizer,
            "vocab_size": self.vocab_size if self.declared else None,
            "eos_id": self.eos_id,
            "special_ids": self.special_ids,
            "num_tokens": self.num_tokens,
            "num_documents": self.num_documents,
            **({} if self.tokenizer_mapping is None else {"tokenizer_mapping": dict(self.tokenizer_mapping)}),
            **({} if self.split is None else {"split": dict(self.split)}),
        }

    def abort(self) -> None:
        """Removes the temporary files; the final names are untouched."""
        self._open = False
        with suppress(OSError):  # closing flushes, which fails again where writing has failed
            self._bin.close()
        for path in self._temporary.values():
            path.unlink(missing_ok=True)

    def __enter__(self) -> "CorpusWriter":
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finishes where :meth:`finish` or :meth:`abort` has not; after an error removes the temporary files."""
        if kind is None and self._open:
            self.finish()
        self.abort()

    def __repr__(self) -> str:
        """The prefix, and what was added."""
        return f"CorpusWriter({self.path}, {self.num_tokens:,} tokens, {self.num_documents:,} documents)"


def _sync(stream: Any) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _sync_close(stream: Any) -> None:
    _sync(stream)
    stream.close()

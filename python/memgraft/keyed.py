"""What keys, indexes, banks and corpora have in common: ``[]``, ``with``, and a table for pandas."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

from memgraft.decoding import decode_inside, find_anchor
from memgraft.errors import ArgumentError, ConfigError, RowError
from memgraft.tokenizer_file import load_tokenizer_file

if TYPE_CHECKING:
    from typing import Self  # Python 3.10 has none at run time

    import pandas as pd  # type: ignore[import-untyped]

__all__ = ["Closed", "Closing", "Keyed", "as_key", "checked_row", "decoder", "pandas_for", "place"]


class Closed:
    """Stands where the compiled half stood: every use says that the object was closed."""

    def __init__(self, name: str) -> None:
        self.__name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        raise ArgumentError(f"{self.__name}: is closed; open it again")

    def __len__(self) -> int:
        raise ArgumentError(f"{self.__name}: is closed; open it again")

    def __repr__(self) -> str:
        """For what has it inside, so that a closed object can be shown."""
        return f"{self.__name}, closed"


class Closing:
    """Has files, and lets go of them at the end of a ``with`` block."""

    __slots__ = ()

    def close(self) -> None:
        """Lets go of the files; what was copied out of them stays."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Keyed(Closing):
    """Rows with a key, a count and a number of documents each; the compiled half ``_core`` has them."""

    __slots__ = ()
    _core: Any

    def __len__(self) -> int:
        raise NotImplementedError

    def key(self, row: int) -> tuple[int, ...]:
        """The tokens of ``row``.

        Raises:
            ArgumentError: no such row.
        """
        key: tuple[int, ...] = self._core.key(checked_row(row, len(self)))
        return key

    def count(self, row: int) -> int:
        """Occurrences of the key of ``row`` in the corpus it was mined from; errors as for :meth:`key`."""
        return int(self._core.count(checked_row(row, len(self))))

    def documents(self, row: int) -> int:
        """Documents with the key of ``row``; 0 where they were not counted. Errors as for :meth:`key`."""
        return int(self._core.documents(checked_row(row, len(self))))

    @overload
    def __getitem__(self, row: int) -> tuple[int, ...]: ...
    @overload
    def __getitem__(self, row: slice) -> list[tuple[int, ...]]: ...
    def __getitem__(self, row: int | slice) -> tuple[int, ...] | list[tuple[int, ...]]:
        """The key of a row, counted from the end where negative, or those of a slice.

        Raises:
            RowError: no such row.
        """
        if isinstance(row, slice):
            return [self.key(each) for each in range(*row.indices(len(self)))]
        return self.key(place(row, len(self)))

    def to_pandas(self, num_rows: int | None = None, *, tokenizer: Any = None) -> pd.DataFrame:
        """A table of the most frequent ``num_rows`` rows (all by default): order, count, documents, key.

        Args:
            num_rows: rows of the table at most.
            tokenizer: path of a ``tokenizer.json`` or its folder, or a loaded tokenizer: adds the column ``text``.

        Raises:
            ConfigError: pandas, or tokenizers for a path, is not installed.
            ArgumentError: ``num_rows`` is negative.
        """
        pd, length = pandas_for("num_rows", num_rows, len(self))
        rows = range(length)
        keys = [self.key(row) for row in rows]
        columns: dict[str, Any] = {
            "order": [len(key) for key in keys],
            "count": [self.count(row) for row in rows],
            "documents": [self.documents(row) for row in rows],
            "key": keys,
        }
        if tokenizer is not None:
            columns["text"] = decoder(tokenizer)(keys)
        return pd.DataFrame(columns, index=pd.RangeIndex(len(keys), name="row"))


def pandas_for(name: str, asked: int | None, length: int) -> tuple[Any, int]:
    """Pandas, and the rows of a table: ``asked`` of ``length``, or all where it is None.

    Args:
        name: what the caller's argument ``asked`` is called.
        asked: rows at most.
        length: rows that there are.

    Raises:
        ConfigError: pandas is not installed.
        ArgumentError: ``asked`` is negative.
    """
    try:
        import pandas
    except ModuleNotFoundError:
        raise ConfigError("to_pandas() needs pandas, which is not installed: pip install pandas") from None
    if asked is not None and asked < 0:
        raise ArgumentError(f"{name}: expected at least 0, got {asked}")
    return pandas, length if asked is None else min(asked, length)


def as_key(tokens: object) -> tuple[int, ...] | None:
    """The tokens of a sequence, an array or a tensor as a tuple; None where they are not whole numbers."""
    if not isinstance(tokens, Iterable):
        return None
    try:
        return tuple(map(operator.index, tokens))
    except TypeError:
        return None


def checked_row(row: int, num_keys: int) -> int:
    """``row`` as an int inside ``0..num_keys``.

    Raises:
        ArgumentError: it is not.
    """
    if not 0 <= row < num_keys:
        raise ArgumentError(f"row: expected 0 to {num_keys - 1}, got {row}")
    return int(row)


def place(row: int, length: int) -> int:
    """``row`` as one of ``0 .. length - 1``; a negative one counts from the end.

    Raises:
        RowError: there is none; iteration ends there.
    """
    try:
        number = row.__index__()
    except AttributeError:
        raise ArgumentError(f"row: expected a whole number or a slice, got {type(row).__name__}") from None
    if not -length <= number < length:
        raise RowError(f"row: expected {-length} to {length - 1}, got {number}")
    return number % length


def decoder(tokenizer: Any, *, inside: bool = True) -> Callable[[Sequence[Sequence[int]]], list[str]]:
    """What makes texts of keys: from a path or a loaded tokenizer; special tokens are kept.

    ``inside``: as they stand inside a document, with the space before a first word; else as whole texts.

    Raises:
        ConfigError: a path is given and tokenizers is not installed.
        ArgumentError: no such file, or no tokenizer.
        FormatError: the file is not a tokenizer.
    """
    if isinstance(tokenizer, (str, os.PathLike)):
        tokenizer = load_tokenizer_file(tokenizer)
    if not hasattr(tokenizer, "decode"):
        raise ArgumentError(f"tokenizer: expected a path or a tokenizer, got {type(tokenizer).__name__}")

    def decode(keys: Sequence[Sequence[int]]) -> list[str]:
        return [str(tokenizer.decode(list(key), skip_special_tokens=False)) for key in keys]

    def encode(text: str) -> list[int]:
        found = tokenizer.encode(text, add_special_tokens=False)
        return list(getattr(found, "ids", found))  # of tokenizers, or of transformers

    if not inside:
        return decode
    anchor = find_anchor(encode, decode)
    return lambda keys: decode_inside(keys, decode, anchor)

"""Where the rows of a bank made of banks come from: one number a row, beside the values."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memgraft._core import fingerprint_bytes
from memgraft.bank.overlay import Layer
from memgraft.errors import FormatError, LimitError, StorageError

__all__ = ["ORIGINS_NAME", "Origins", "sources_of"]

ORIGINS_NAME = "origins.npy"
_MOST_SOURCES = 1 << 16


def sources_of(layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """The banks that rows of ``layers`` were harvested into first: name, fingerprint, corpus and donor of each."""
    found: list[dict[str, Any]] = []
    for layer in layers:
        made = layer.manifest.corpus.get("sources")
        if made is not None:
            found += made
            continue
        manifest = layer.manifest
        found.append(
            {
                "bank": layer.path.name,
                "fingerprint": manifest.fingerprint,
                "corpus": dict(manifest.corpus),
                "donor": dict(manifest.donor),
            }
        )
    return found


@dataclass(frozen=True)
class Origins:
    """The source of each row, uint16 ``(rows,)`` into the list ``sources`` of the manifest's corpus."""

    sources: npt.NDArray[np.uint16]

    @classmethod
    def of_rows(cls, layers: Sequence[Layer], rows: npt.NDArray[np.int32]) -> "Origins":
        """The sources of ``rows`` of the stack of ``layers``, which may be made of banks themselves.

        Raises:
            LimitError: more sources than a row's number can say.
        """
        found = np.zeros(len(rows), np.uint16)
        first = 0
        for layer in layers:
            made: Sequence[Any] | None = layer.manifest.corpus.get("sources")
            num = 1 if made is None else len(made)
            if first + num > _MOST_SOURCES:
                raise LimitError(f"sources: expected at most {_MOST_SOURCES} banks behind a bank, found more")
            own = (rows >= layer.rows.start) & (rows < layer.rows.stop)
            inside = (
                np.uint16(0)
                if made is None
                else read(layer.path, layer.manifest.corpus).sources[rows[own] - layer.first_row]
            )
            found[own] = first + inside.astype(np.int64)
            first += num
        return cls(found)

    def to_bytes(self) -> bytes:
        """The file's content, as numpy writes it."""
        target = io.BytesIO()
        np.save(target, self.sources.astype("<u2"), allow_pickle=False)
        return target.getvalue()

    def facts(self) -> dict[str, str]:
        """What the manifest says of the file."""
        return {"file": ORIGINS_NAME, "content": fingerprint_bytes(self.to_bytes())}


def read(folder: Path, corpus: Mapping[str, Any]) -> Origins:
    """The origins of the bank in ``folder``, checked against its manifest.

    Raises:
        StorageError: the file is missing or cannot be read.
        FormatError: it is damaged or of another bank.
    """
    path = folder / ORIGINS_NAME
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}; restore the file") from error
    expected = (corpus.get("origins") or {}).get("content")
    found = fingerprint_bytes(data)
    if found != expected:
        raise FormatError(f"{path}: damaged or of another bank: expected content {expected}, found {found}")
    return Origins(np.load(io.BytesIO(data), allow_pickle=False))

"""Writes that are complete or an error: whole buffers, synced files, synced directories."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memgraft.errors import StorageError
from memgraft.system import write_beside

_MOST = 1 << 30
"""Bytes of one call; systems take no more than two GiB."""
_NO_ALLOCATE = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


def pwrite_all(file: int, path: Path, data: bytes | memoryview, offset: int | None) -> None:
    """Writes all of ``data`` at ``offset``, or appends it where that is None.

    Raises:
        StorageError: naming file and offset.
    """
    view = memoryview(data)
    view = view if view.format == "B" and view.ndim == 1 else view.cast("B")
    written = 0
    while written < len(view):
        try:
            if offset is None:
                written += os.write(file, view[written:])
            else:
                # Rows of a bank are written one by one: slices of a slice cost more than the call.
                part = view if not written and len(view) <= _MOST else view[written : written + _MOST]
                written += os.pwrite(file, part, offset + written)
        except OSError as error:
            at = "the end" if offset is None else f"byte {offset + written}"
            raise StorageError(f"{path}: writing at {at}: {error.strerror}; what was done before is kept") from error


def reserve(file: int, path: Path, length: int) -> None:
    """Makes the file ``length`` bytes long, with room on the disk where the file system can promise it.

    Raises:
        StorageError: not enough room.
    """
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, length)
    except OSError as error:
        if error.errno not in _NO_ALLOCATE:
            raise StorageError(f"{path}: no room for {length} bytes: {error.strerror}; free some or move") from error
    try:
        os.ftruncate(file, length)
    except OSError as error:
        raise StorageError(f"{path}: cannot be {length} bytes long: {error.strerror}") from error


def mapped_table(path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> "np.memmap[Any, Any]":
    """A mapped ``.npy`` of ``shape``, for which there is room on the disk: a mapping that outgrows it ends the process.

    Raises:
        StorageError: there is no room.
    """
    try:
        made = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        with open(path, "r+b") as file:
            reserve(file.fileno(), path, os.fstat(file.fileno()).st_size)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{path}: cannot be written: {error.strerror}; free some room or move") from error
    return made


def write_text(path: Path, text: str) -> None:
    """Writes ``path`` in UTF-8 beside, fsyncs, renames.

    Raises:
        StorageError: the system refused.
    """
    write_beside(path, text.encode())

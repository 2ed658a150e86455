"""Writes that are complete or an error: whole buffers, synced files, synced directories."""

import errno
import os
from pathlib import Path

from memgraft.errors import StorageError
from memgraft.system import sync_folder, written_beside

_NO_ALLOCATE = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


def pwrite_all(file: int, path: Path, data: bytes | memoryview, offset: int | None) -> None:
    """Writes all of ``data`` at ``offset``, or appends it where that is None.

    Raises:
        StorageError: naming file and offset.
    """
    view = memoryview(data).cast("B")
    written = 0
    while written < len(view):
        try:
            if offset is None:
                written += os.write(file, view[written:])
            else:
                written += os.pwrite(file, view[written : written + (1 << 30)], offset + written)
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


def write_text(path: Path, text: str) -> None:
    """Writes ``path`` in UTF-8 beside, fsyncs, renames."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Writes ``path`` beside, fsyncs, renames.

    Raises:
        StorageError: the system refused.
    """
    with written_beside(path) as beside:
        beside.write_bytes(data)


def fsync_directory(path: Path) -> None:
    """Makes renames and new names inside ``path`` durable, where its file system can."""
    sync_folder(path)

"""Which rows of an unfinished bank are on the disk."""

import os
import zlib
from pathlib import Path

from memgraft.bank.files import pwrite_all


class DoneLog:
    """A file of done-marks, one line a chunk, and the ranges they make up.

    Attributes:
        done: half-open row ranges, ascending, apart.
    """

    def __init__(self, path: Path) -> None:
        """Opens or makes the log; a torn last line, left by a kill, is cut off.

        Raises:
            OSError: the file cannot be opened.
        """
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        text = b""
        while block := os.pread(self._file, 1 << 20, len(text)):
            text += block
        self.done: list[tuple[int, int]] = []
        good = 0
        for line in text.splitlines(keepends=True):
            parts = line.split()
            if not line.endswith(b"\n") or len(parts) != 3 or parts[2] != _check(b" ".join(parts[:2])):
                break
            self.done = merge(self.done, int(parts[0]), int(parts[1]))
            good += len(line)
        os.ftruncate(self._file, good)

    def add(self, start: int, stop: int) -> None:
        """Marks rows done that have been synced.

        Raises:
            StorageError: the disk refused.
        """
        mark = f"{start} {stop}".encode()
        pwrite_all(self._file, self.path, mark + b" " + _check(mark) + b"\n", None)
        os.fdatasync(self._file)
        self.done = merge(self.done, start, stop)

    def close(self) -> None:
        """Closes the file; once or more often."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _check(mark: bytes) -> bytes:
    """What ends a done-mark, so that a torn one is told from a whole one."""
    return b"%08x" % zlib.crc32(mark)


def merge(done: list[tuple[int, int]], start: int, stop: int) -> list[tuple[int, int]]:
    """``done`` (ascending, apart) with ``start..stop`` added."""
    if start == stop:
        return done
    apart = [part for part in done if part[1] < start or part[0] > stop]
    touching = [part for part in done if not (part[1] < start or part[0] > stop)]
    start = min([start, *(part[0] for part in touching)])
    stop = max([stop, *(part[1] for part in touching)])
    return sorted([*apart, (start, stop)])
